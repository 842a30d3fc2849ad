"""Directories of published models: config.json, and tensors in safetensors files.

The format of the files: https://github.com/huggingface/safetensors. Tensors are mapped from disk,
so what is not read costs no memory.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from bigmodels import errors

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
TOKENIZER, TOKENIZER_CONFIG = 'tokenizer.json', 'tokenizer_config.json'
SENTENCEPIECE, CHAT_TEMPLATE = 'tokenizer.model', 'chat_template.jinja'
SPIECE = 'spiece.model'  # T5's name of a SentencePiece model
# What is fetched of a model: data, never code or pickles.
PATTERNS = ('*.json', '*.safetensors', SENTENCEPIECE, SPIECE, CHAT_TEMPLATE)
HUB = 'hf://'
# As the format names types. Parameters are of the first three; others occur in buffers.
DTYPES = {
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F64': np.dtype(np.float64),
    'I64': np.dtype(np.int64),
    'I32': np.dtype(np.int32),
    'U8': np.dtype(np.uint8),
    'BOOL': np.dtype(np.bool_),
}
WRITTEN = ('float32', 'bfloat16', 'float16')  # types that parameters are written in
SHARD_BYTES = 5 * 10**9  # of one file, as published models have them


def resolve(source: str) -> pathlib.Path:
    """The directory that a source names: itself, or hf://OWNER/NAME[@REVISION], which is fetched.

    Raises:
      UserError: if there is no such directory, or it cannot be fetched.
    """
    if not source.startswith(HUB):
        directory = pathlib.Path(source)
        if not directory.is_dir():
            raise errors.UserError(f'There is no directory {source}.')
        return directory
    try:
        import huggingface_hub
    except ImportError as error:
        raise errors.UserError(
            f"{source} needs the library 'huggingface-hub': pip install 'bigmodels[interop]', or "
            f'give a directory that holds the model.'
        ) from error
    name, _, revision = source.removeprefix(HUB).partition('@')
    try:
        fetched = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=PATTERNS
        )
    except (OSError, ValueError) as error:  # what the library's own errors are
        raise errors.UserError(
            f'{source} cannot be fetched: {" ".join(str(error).split())[:500]}'
        ) from error
    return pathlib.Path(fetched)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
      UserError: if the file is missing or holds none.
    """
    if not path.is_file():
        raise errors.UserError(f'{path.parent} has no {path.name}.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise errors.UserError(f'{path} is no JSON: {error}.') from error
    if not isinstance(content, dict):
        raise errors.UserError(f'{path} holds no JSON object.')
    return content


def tensors(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of a model by name, mapped from its files: one, or those that the index names.

    Raises:
      UserError: if files are missing or damaged, or hold other tensors than the index says.
    """
    if (directory / INDEX).is_file():
        where = read_json(directory / INDEX).get('weight_map')
        if not isinstance(where, dict):
            raise errors.UserError(f'{directory / INDEX} has no weight_map.')
        found = {}
        for file in sorted(set(where.values())):
            found |= mapped(directory / pathlib.PurePath(file).name)
        if found.keys() != where.keys():
            different = sorted(found.keys() ^ where.keys())
            raise errors.UserError(
                f'{directory / INDEX} and the files that it names differ in: '
                f'{errors.some(different)}.'
            )
        return found
    if not (directory / WEIGHTS).is_file():
        pickles = [path.name for path in directory.glob('*.bin')]
        hint = f' ({pickles[0]} is a pickle, which could run code)' if pickles else ''
        raise errors.UserError(
            f'{directory} has neither {WEIGHTS} nor {INDEX}{hint}: save the model with '
            f'save_pretrained of the library transformers.'
        )
    return mapped(directory / WEIGHTS)


def mapped(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of one file, views of its bytes on disk."""
    if not path.is_file():
        raise errors.UserError(f'{path} is missing.')
    with path.open('rb') as file:
        header_bytes = int.from_bytes(file.read(8), 'little')
        left = path.stat().st_size - 8 - header_bytes
        if left < 0:
            raise errors.UserError(f'{path} is damaged: it ends within its header.')
        try:
            header = json.loads(file.read(header_bytes))
            entries = {
                name: (entry['dtype'], tuple(entry['shape']), *entry['data_offsets'])
                for name, entry in header.items()
                if name != '__metadata__'
            }
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise errors.UserError(f'{path} is damaged: its header cannot be read.') from error
    content = np.memmap(path, np.uint8, 'r', 8 + header_bytes) if left else np.zeros(0, np.uint8)
    found = {}
    for name, (kind, shape, begin, end) in entries.items():
        if kind not in DTYPES:
            raise errors.UserError(
                f'{path}: the tensor {name} is of the type {kind}, as in quantised models; what is '
                f'read is {", ".join(DTYPES)}.'
            )
        if end - begin != math.prod(shape) * DTYPES[kind].itemsize or not 0 <= begin <= end <= left:
            raise errors.UserError(f'{path} is damaged: it has not all bytes of {name}.')
        found[name] = content[begin:end].view(DTYPES[kind]).reshape(shape)
    return found


def write_tensors(
    directory: pathlib.Path,
    named: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors into files of at most `shard_bytes`, or one tensor each, and their index.

    What is in one file is in memory at once.
    """
    files: list[list[str]] = []
    waiting: dict[str, np.ndarray] = {}

    def flush() -> None:
        path = directory / f'{len(files)}.part'
        safetensors.numpy.save_file(waiting, path, metadata={'format': 'pt'})
        files.append(list(waiting))
        waiting.clear()

    total = 0
    for name, tensor in named:
        held = sum(other.nbytes for other in waiting.values())
        if waiting and held + tensor.nbytes > shard_bytes:
            flush()
        waiting[name] = np.ascontiguousarray(tensor).reshape(tensor.shape)
        total += tensor.nbytes
    flush()
    if len(files) == 1:
        (directory / '0.part').rename(directory / WEIGHTS)
        return
    where = {}
    for number, names in enumerate(files):
        file = f'model-{number + 1:05}-of-{len(files):05}.safetensors'
        (directory / f'{number}.part').rename(directory / file)
        where |= dict.fromkeys(names, file)
    write_json(
        directory / INDEX,
        {'metadata': {'total_size': total}, 'weight_map': dict(sorted(where.items()))},
    )


def write_json(path: pathlib.Path, content: Mapping) -> None:
    """Writes an object as JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
