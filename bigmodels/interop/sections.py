"""What a run of a published model has in its config: the model, a task that it answers, and data.

Nobody has trained such a run: its data is what every machine has, or folders that the user names.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from bigmodels.data import chat_templates, subwords
from bigmodels.interop import directories, pictures, sounds
from bigmodels.interop.family import Entries, Family
from bigmodels.models import MODELS

SEQUENCE_LENGTH = 1024  # of texts, at most
# That images are compared with until the user names others.
CLASSES = ('cat', 'dog')


def of_run(
    directory: pathlib.Path, published: Mapping, family: Family, fields: Entries
) -> dict[str, dict[str, Any]]:
    """The sections `model`, `data` and `task` of a model of these fields."""
    [name] = (name for name, model in MODELS.items() if model is family.model)
    data, task = _TASKS[name](directory, published, fields)
    return {'model': {'name': name, **fields}, 'data': data, 'task': task}


def _sets(source: Entries, **evaluated) -> Entries:
    """The data of one source: its part for training, and the one for evaluation."""
    return {'train': source, 'evals': {'valid': source | evaluated}}


def _text(directory: pathlib.Path, published: Mapping, fields: Entries) -> tuple[Entries, Entries]:
    vocabulary, mask = tokenizer(directory, published)
    causal = fields.get('causal', True)
    task = {
        'name': 'language_modeling' if causal else 'masked_language_modeling',
        'sequence_length': min(fields['max_length'], SEQUENCE_LENGTH),
        'tokenizer': vocabulary,
        **({} if causal else {'mask_token': mask}),
    }
    return _sets({'name': 'stdlib', 'split': 'train'}, split='valid'), task


def _image(directory: pathlib.Path, published: Mapping, fields: Entries) -> tuple[Entries, Entries]:
    task = {'name': 'classification', **pictures.read(directory, published)}
    return _sets({'name': 'image_folder', 'path': 'images'}), task


def _image_text(
    directory: pathlib.Path, published: Mapping, fields: Entries
) -> tuple[Entries, Entries]:
    of_texts = published.get('text_config', {})
    vocabulary, _ = tokenizer(directory, {**published, **of_texts})
    sees_padding = not fields['text'].get('causal', True)
    task = {
        'name': 'image_text',
        'sequence_length': fields['text']['max_length'],
        'tokenizer': vocabulary,
        'loss': 'sigmoid' if 'init_bias' in fields else 'softmax',
        'classes': CLASSES,
        **({'padding': _padding(directory, of_texts)} if sees_padding else {}),
        **pictures.read(directory, published),
    }
    images = {'name': 'image_folder', 'path': 'images'}
    return _sets({'name': 'captioned', 'images': images, 'classes': CLASSES}), task


def _padding(directory: pathlib.Path, of_texts: Mapping) -> int:
    """The id that fills texts up: the tokenizer's, as newer files say nothing of it elsewhere."""
    entries, file = chat_templates.config_beside(directory), directory / directories.TOKENIZER
    name = dict(chat_templates.special_tokens(entries)).get('pad_token')
    id = subwords.published_id(file, name) if name and file.is_file() else None
    return of_texts.get('pad_token_id', 1) if id is None else id


def _text_to_text(
    directory: pathlib.Path, published: Mapping, fields: Entries
) -> tuple[Entries, Entries]:
    vocabulary, _ = tokenizer(directory, published)
    length = min(fields['max_length'], SEQUENCE_LENGTH)
    task = {
        'name': 'text_to_text',
        'source_length': length,
        'target_length': length,
        'cut_sources': True,
        'tokenizer': vocabulary,
        'start_id': published.get('decoder_start_token_id', published.get('pad_token_id', 0)),
    }
    return _sets({'name': 'parallel_text', 'source': 'source.txt', 'target': 'target.txt'}), task


def _speech_to_text(
    directory: pathlib.Path, published: Mapping, fields: Entries
) -> tuple[Entries, Entries]:
    vocabulary, _ = tokenizer(directory, published)
    told = sounds.read(directory, published)
    task = {'name': 'speech_to_text', 'tokenizer': vocabulary, **told}
    recordings = {'name': 'transcribed', 'path': 'recordings', 'sample_rate': sounds.SAMPLE_RATE}
    return _sets(recordings), task


def _encoder_decoder(
    directory: pathlib.Path, published: Mapping, fields: Entries
) -> tuple[Entries, Entries]:
    described = _speech_to_text if fields.get('num_mels') else _text_to_text
    return described(directory, published, fields)


_TASKS = {
    'clip': _image_text,
    'encoder_decoder': _encoder_decoder,
    'resnet': _image,
    'transformer': _text,
    'vit': _image,
}


def tokenizer(directory: pathlib.Path, published: Mapping) -> tuple[Entries, str]:
    """The config section of a directory's tokenizer, empty where it has none, and its mask."""
    entries = chat_templates.config_beside(directory)
    if (directory / directories.TOKENIZER).is_file():
        ends = published.get('eos_token_id')
        end, begin, mask = subwords.published_names(
            directory / directories.TOKENIZER, ends[0] if isinstance(ends, list) else ends
        )
        end = dict(chat_templates.special_tokens(entries)).get('eos_token', end)
        section = {'name': 'hugging_face', 'path': str(directory)}
        return section | {'end_of_text': end, 'begin_of_text': begin}, mask
    for name, begins in ((directories.SENTENCEPIECE, True), (directories.SPIECE, False)):
        if (directory / name).is_file():
            begin = bool(entries.get('add_bos_token', begins))
            section = {'name': 'sentencepiece', 'path': str(directory / name), 'begin': begin}
            return section, ''
    return {}, ''
