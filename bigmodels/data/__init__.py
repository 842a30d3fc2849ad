"""Data: random-access sources, tokenizers, and sequences of examples made from them.

A source is built from config keys and never changes afterwards. It has

- `len(source)` and `source[i] -> dict` of numpy arrays, numpy scalars and str; an index out of
  range raises IndexError;
- `fingerprint() -> str`, a hex digest of the content and of every setting that changes what it
  yields: equal on all machines for equal data;
- `describe() -> str`, one line for the start screen;
- where records are stacked faster than read one by one, `take(indices) -> dict` of the records of
  int64 [n] indices in [0, len(source)) as new arrays [n, ...];
- where it is made from another, `wraps`, a class variable {argument: {name: class}}: that argument
  is a section which chooses one of these by its `name`;

and it can be pickled and read by several threads. Whatever is wrong with the data is a UserError,
at construction where it can be seen there. A new source is one class and one line in `SOURCES`, and
one in the table of each source that may be made from it.
"""

from bigmodels.data import sources
from bigmodels.data.sources import (
    anonymized_source,
    audio_sources,
    box_sources,
    caption_sources,
    chat_sources,
    cleaned_source,
    graph_sources,
    image_sources,
    interaction_sources,
    mask_sources,
    pair_sources,
    scene_sources,
    speech_sources,
    stdlib_source,
    sum_sources,
    table_sources,
    tfds_source,
    video_sources,
)

SOURCES: dict[str, type] = {
    'stdlib': stdlib_source.Stdlib,
    'text_files': sources.TextFiles,
    'jsonl': sources.JsonLines,
    'chats': chat_sources.Chats,
    'preferences': chat_sources.Preferences,
    'parallel_text': pair_sources.ParallelText,
    'squad': pair_sources.Squad,
    'csv': table_sources.Csv,
    'tsv': table_sources.Tsv,
    'anonymized': anonymized_source.Anonymized,
    'cleaned': cleaned_source.Cleaned,
    'npz': table_sources.Npz,
    'digits': table_sources.Digits,
    'interactions': interaction_sources.Interactions,
    'histories': interaction_sources.Histories,
    'image_folder': image_sources.ImageFolder,
    'jpeg_npz': image_sources.JpegNpz,
    'decoded_jpeg_npz': image_sources.DecodedJpegNpz,
    'mnist': image_sources.Mnist,
    'mask_npz': mask_sources.MaskNpz,
    'mask_folder': mask_sources.MaskFolder,
    'moving_digits': video_sources.MovingDigits,
    'pascal_voc': box_sources.PascalVoc,
    'coco': box_sources.Coco,
    'captioned': caption_sources.Captioned,
    'image_text_folder': caption_sources.ImageTextFolder,
    'digit_scenes': scene_sources.DigitScenes,
    'wav_folder': audio_sources.WavFolder,
    'audio_npz': audio_sources.AudioNpz,
    'transcribed': speech_sources.Transcribed,
    'librispeech': speech_sources.LibriSpeech,
    'digit_strings': speech_sources.DigitStrings,
    'sums': sum_sources.Sums,
    'graph_npz': graph_sources.GraphNpz,
    'tfds': tfds_source.Tfds,
}
