"""What a run of a published model has in its config: the model, a task that it answers, and data.

Nobody has trained such a run: its data is what every machine has, or folders that the user names.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from bigmodels.data import chat_templates, subwords
from bigmodels.interop import directories, pictures
from bigmodels.interop.family import Entries, Family
from bigmodels.models import MODELS

SEQUENCE_LENGTH = 1024  # of texts, at most


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


_TASKS = {'resnet': _image, 'transformer': _text, 'vit': _image}


def tokenizer(directory: pathlib.Path, published: Mapping) -> tuple[Entries, str]:
    """The config section of a directory's tokenizer, empty where it has none, and its mask."""
    path = directory / directories.TOKENIZER_CONFIG
    entries = directories.read_json(path) if path.is_file() else {}
    if (directory / directories.TOKENIZER).is_file():
        ends = published.get('eos_token_id')
        end, begin, mask = subwords.published_names(
            directory / directories.TOKENIZER, ends[0] if isinstance(ends, list) else ends
        )
        end = dict(chat_templates.special_tokens(entries)).get('eos_token', end)
        section = {'name': 'hugging_face', 'path': str(directory)}
        return section | {'end_of_text': end, 'begin_of_text': begin}, mask
    if (directory / directories.SENTENCEPIECE).is_file():
        path = str(directory / directories.SENTENCEPIECE)
        begin = bool(entries.get('add_bos_token', True))
        return {'name': 'sentencepiece', 'path': path, 'begin': begin}, ''
    return {}, ''
