"""What tokenizers share: text as UTF-8, ids as integers, and the file that says which one it is."""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bigmodels import errors

Texts = Callable[[], Iterator[str]]
DESCRIPTION = 'tokenizer_kind.json'


def write_description(directory, description: dict) -> None:
    """Writes which tokenizer a directory holds, as JSON; makes the directory."""
    path = pathlib.Path(directory, DESCRIPTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(description), encoding='utf-8')


def read(path: pathlib.Path) -> bytes:
    """The bytes of a tokenizer's file; raises UserError if there is none."""
    if not path.is_file():
        raise errors.UserError(f'There is no tokenizer file {str(path)!r}.')
    return path.read_bytes()


def as_utf8(text: str) -> bytes:
    """Text as UTF-8; raises UserError for half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise errors.UserError(
            f'The character {text[error.start]!r} at position {error.start:,} of the text is half '
            'of a surrogate pair, which UTF-8 cannot hold. Remove it.'
        ) from error


def int_list(ids: Iterable[int]) -> list[int]:
    """Ids of any integer type, as libraries want them."""
    return np.asarray(ids, np.int64).tolist()


def lengths_of(texts: Iterable[bytes]) -> np.ndarray:
    """The bytes of each text, int32 [n]."""
    return np.array([len(text) for text in texts], np.int32)
