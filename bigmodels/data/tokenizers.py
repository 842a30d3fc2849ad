"""Text to integers and back: bytes, characters, Hugging Face, SentencePiece and trained BPE.

`fit` makes the tokenizer that a config section names, once per run; `save` writes it beside the
run and `restore` reads it again, from plain data: nothing is unpickled or executed.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from bigmodels import config, errors
from bigmodels.data import chat_templates
from bigmodels.data.sources import digest
from bigmodels.data.spelling import (
    DESCRIPTION,
    Texts,
    as_utf8,
    int_list,
    lengths_of,
    read,
    write_description,
)
from bigmodels.data.subwords import (
    HuggingFace,
    SentencePiece,
    load_hugging_face,
    load_sentencepiece,
    train_bpe,
)


class Tokenizer(Protocol):
    """What every tokenizer here has. Immutable, and safe to pickle and to share by threads.

    Special tokens stand for no text: they decode to '' and have byte length 0. Text that spells
    one is encoded as the ordinary text that it is. Ids from `vocab_size` on, of which a model may
    have some, decode to '' too.
    """

    vocab_size: int  # ids are 0 <= id < vocab_size
    end_of_text: int  # the id that ends a document
    begin_of_text: int | None  # the id that begins a document, where the model was trained on one

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [L]."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 that each token stands for, or a part of it."""

    def byte_lengths(self) -> np.ndarray:
        """How many bytes of UTF-8 each token stands for, int32 [V]: for bits per byte."""

    def fingerprint(self) -> str:
        """A hex digest of all that decides the ids of a text."""

    def save(self, directory) -> None:
        """Writes what `restore(directory)` needs."""


class Bytes:
    """The 256 bytes of UTF-8. Byte 0, which text files do not hold, ends a document."""

    vocab_size = 256
    end_of_text = 0
    begin_of_text = None

    def encode(self, text: str) -> np.ndarray:
        if '\0' in text:
            raise errors.UserError(
                f'The text has a NUL character at position {text.index(chr(0)):,}, which marks '
                "the end of a document for the tokenizer 'bytes'. Remove it."
            )
        return np.frombuffer(as_utf8(text), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(id for id in int_list(ids) if 0 < id < 256).decode(errors='replace')

    def token_bytes(self) -> list[bytes]:
        return [bytes([id]) if id != self.end_of_text else b'' for id in range(self.vocab_size)]

    def byte_lengths(self) -> np.ndarray:
        return lengths_of(self.token_bytes())

    def fingerprint(self) -> str:
        return digest('bytes')

    def save(self, directory) -> None:
        write_description(directory, {'kind': 'bytes'})


class Characters:
    """The characters of the training corpus, sorted. '\\n', always one of them, ends a document.

    It is an ordinary character too: it decodes to itself and counts one byte.
    """

    begin_of_text = None

    def __init__(self, characters: Iterable[str]):
        self._characters = ''.join(sorted({*characters, '\n'}))
        self._codes = _code_points(self._characters)
        self.vocab_size = len(self._characters)
        self.end_of_text = self._characters.index('\n')

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        unknown = self._codes[np.minimum(ids, self.vocab_size - 1)] != codes
        if unknown.any():
            position = int(unknown.argmax())
            raise errors.UserError(
                f'The character {text[position]!r} at position {position:,} of the text is not '
                f'one of the {self.vocab_size} characters of the training corpus. Remove it, '
                "train on text that has it, or use the tokenizer 'bytes'."
            )
        return ids.astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return ''.join(self._characters[id] for id in int_list(ids) if id < self.vocab_size)

    def token_bytes(self) -> list[bytes]:
        return [character.encode() for character in self._characters]

    def byte_lengths(self) -> np.ndarray:
        return lengths_of(self.token_bytes())

    def fingerprint(self) -> str:
        return digest('characters', self._characters)

    def save(self, directory) -> None:
        write_description(directory, {'kind': 'characters', 'characters': self._characters})


def make_bytes(texts: Texts) -> Bytes:
    """Needs nothing of the corpus."""
    del texts
    return Bytes()


def fit_characters(texts: Texts, characters: str = '') -> Characters:
    """`Characters` of the corpus; or those given, and then no text is read."""
    return Characters(characters or (c for text in texts() for c in set(text)))


def load_saved(texts: Texts, path: str) -> Tokenizer:
    """That of another run, of any kind: `path` is its folder `preprocessing`."""
    del texts
    return restore(path)


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    'bytes': make_bytes,
    'characters': fit_characters,
    'hugging_face': load_hugging_face,
    'sentencepiece': load_sentencepiece,
    'bpe': train_bpe,
    'saved': load_saved,
}


def fit(section: Mapping, texts: Texts, path: str = 'tokenizer') -> Tokenizer:
    """The tokenizer of a config section; `texts()` iterates over the training corpus."""
    return config.choose(TOKENIZERS, section, path, texts=texts)


def restore(directory) -> Tokenizer:
    """The tokenizer that `save(directory)` wrote."""
    directory = pathlib.Path(directory)
    description = json.loads(read(directory / DESCRIPTION))
    kind = description['kind']
    if kind == 'bytes':
        return Bytes()
    if kind == 'characters':
        return Characters(description['characters'])
    if kind == 'hugging_face':
        content = read(directory / 'tokenizer.json').decode()
        given = description.get('chat_template')
        template = given and chat_templates.ChatTemplate(given['source'], _pairs(given['tokens']))
        begin = description.get('begin_of_text', '')
        roles = _pairs(description.get('roles', ()))
        return HuggingFace(content, description['end_of_text'], begin, template, roles)
    if kind == 'sentencepiece':
        content = read(directory / 'tokenizer.model')
        return SentencePiece(content, description.get('begin', False))
    kinds = ['bytes', 'characters', 'hugging_face', 'sentencepiece']
    raise errors.unknown(f'tokenizer kind in {directory / DESCRIPTION}', kind, kinds)


def document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a document that begins with a text, int32 [L], with the token that begins it."""
    ids = tokenizer.encode(text)
    if tokenizer.begin_of_text is None:
        return ids
    return np.concatenate([np.array([tokenizer.begin_of_text], np.int32), ids])


@functools.lru_cache(maxsize=16)
def spelling(tokenizer: Tokenizer, num_ids: int) -> tuple[bytes, ...]:
    """`token_bytes`, and no text for the further ids of a model that has `num_ids`."""
    texts = tokenizer.token_bytes()
    return (*texts, *[b''] * (num_ids - len(texts)))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token of a tokenizer.json by its name.

    Raises:
      UserError: for another kind of tokenizer, or one without it.
    """
    if not isinstance(tokenizer, HuggingFace):
        raise errors.UserError(
            f'The token {token!r} is looked up in a tokenizer.json, which this '
            f'{type(tokenizer).__name__} has not.'
        )
    return tokenizer.token_id(token)


def _pairs(lists: Iterable[Iterable[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, token) for name, token in lists)


def _code_points(text: str) -> np.ndarray:
    """Unicode code points, uint32 [L].

    A lone surrogate passes: it is found unknown later, since tasks fit no tokenizer to one.
    """
    return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
