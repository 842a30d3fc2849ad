"""How published models of sound want it, and what they are told before they write.

Of preprocessor_config.json or processor_config.json, see `pictures.told`, and of
generation_config.json, as fields of `SpeechToText` and back.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from bigmodels import errors
from bigmodels.data import subwords
from bigmodels.interop import directories, pictures
from bigmodels.models.parts import log_mel
from bigmodels.tasks.speech_to_text import SpeechToText

GENERATION = 'generation_config.json'
SAMPLE_RATE = 16_000
# What `log_mel.whisper_features` does, in the words of preprocessor_config.json.
DONE = {
    'sampling_rate': SAMPLE_RATE,
    'n_fft': log_mel.WHISPER_WINDOW,
    'hop_length': log_mel.WHISPER_HOP,
    'dither': 0.0,
    'do_normalize': False,
}
MULTILINGUAL = 51_865  # tokens that published models of several languages have at least
START, UNTIMED, TASKS = '<|startoftranscript|>', '<|notimestamps|>', ('transcribe', 'translate')
LANGUAGE = re.compile(r'<\|([a-z]{2,3})\|>')


def read(directory: pathlib.Path, published: Mapping) -> dict[str, Any]:
    """Fields of a task: sound, the prompt, the language, and the tokens that are never written.

    Raises:
      UserError: if the files say of sound what is not done here.
    """
    path, entries = pictures.told(directory, 'feature_extractor')
    for key, value in DONE.items():
        if entries.get(key, value) not in (value, None):
            raise errors.UserError(f'{path} has {key} = {entries[key]!r}; here it is {value!r}.')
    path = directory / GENERATION
    told = {**published, **(directories.read_json(path) if path.is_file() else {})}
    several = told.get('is_multilingual', published['vocab_size'] >= MULTILINGUAL)
    spoken = ('<|{language}|>', f'<|{told.get("task") or TASKS[0]}|>') if several else ()
    names = {id: name for name, id in told.get('lang_to_id', {}).items()}
    forced = dict(told.get('forced_decoder_ids') or ())
    language = told.get('language') or names.get(forced.get(1)) or 'en'
    prompt = (START, *spoken, UNTIMED)
    frames = 2 * published['max_source_positions']
    return {
        'sound': {
            'sample_rate': SAMPLE_RATE,
            'max_seconds': frames * log_mel.WHISPER_HOP / SAMPLE_RATE,
            'num_mels': published['num_mel_bins'],
        },
        'max_tokens': published['max_target_positions'] - len(prompt),
        'prompt': prompt,
        'language': language.removeprefix('<|').removesuffix('|>'),
        'suppressed': tuple(told.get('suppress_tokens') or ()),
        'suppressed_first': tuple(told.get('begin_suppress_tokens') or ()),
    }


def token_ids(task: SpeechToText) -> dict[str, Any]:
    """What config.json and generation_config.json say of tokens."""
    end = task.vocabulary.end_of_text
    return {
        'decoder_start_token_id': int(task.prompt_ids(task.language)[0]),
        **dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), end),
    }


def check_rate(task: SpeechToText) -> None:
    """Raises UserError for sound that transformers cannot prepare as the task does.

    Its filters end at 8 kHz whatever the rate (WhisperFeatureExtractor), ours at half the rate.
    """
    if task.front_end.sample_rate != SAMPLE_RATE:
        raise errors.UserError(
            f'task.sound.sample_rate = {task.front_end.sample_rate:,} cannot be written: '
            f"transformers' Whisper hears {SAMPLE_RATE:,} Hz alone. Set it and the sample_rate of "
            f'its source to that, which resamples recordings, and train anew.'
        )


def write(directory: pathlib.Path, task: SpeechToText) -> None:
    """Writes both files; without the tokens of languages and tasks where the tokenizer has none."""
    samples = 2 * (task.model.max_source_length or task.model.max_length) * log_mel.WHISPER_HOP
    entries = {
        'feature_extractor_type': 'WhisperFeatureExtractor',
        'feature_size': task.model.num_mels,
        'chunk_length': samples // SAMPLE_RATE,
        'padding_value': 0.0,
        **DONE,
    }
    directories.write_json(directory / pictures.FILE, entries)
    entries = {
        **token_ids(task),
        'max_length': task.model.max_length,
        'suppress_tokens': list(task.suppressed),
        'begin_suppress_tokens': list(task.suppressed_first),
        'is_multilingual': '<|{language}|>' in task.prompt,
    }
    by_name = isinstance(task.vocabulary, subwords.HuggingFace)
    special = task.vocabulary.special_ids() if by_name else {}
    if UNTIMED in special:
        entries['no_timestamps_token_id'] = special[UNTIMED]
    if entries['is_multilingual']:
        told = {name: id for name, id in special.items() if LANGUAGE.fullmatch(name)}
        named = {name: special[f'<|{name}|>'] for name in TASKS if f'<|{name}|>' in special}
        entries |= {'lang_to_id': told, 'task_to_id': named, 'language': task.language}
    directories.write_json(directory / GENERATION, entries)
