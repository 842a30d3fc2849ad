"""Text to integers and back: bytes, characters, Hugging Face, SentencePiece and trained BPE.

`fit` makes the tokenizer that a config section names, once per run; `save` writes it beside the
run and `restore` reads it again, from plain data: nothing is unpickled or executed.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from bigmodels import config, errors
from bigmodels.data.sources import digest

Texts = Callable[[], Iterator[str]]
_DESCRIPTION = 'tokenizer_kind.json'
# How pretrained vocabularies name the token between documents, in the order in which to look.
_END_OF_TEXT = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]')


class Tokenizer(Protocol):
    """What every tokenizer here has. Immutable, and safe to pickle and to share by threads.

    Special tokens stand for no text: they decode to '' and have byte length 0. Text that spells
    one is encoded as the ordinary text that it is.
    """

    vocab_size: int  # ids are 0 <= id < vocab_size
    end_of_text: int  # the id that ends a document

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

    def encode(self, text: str) -> np.ndarray:
        if '\0' in text:
            raise errors.UserError(
                f'The text has a NUL character at position {text.index(chr(0)):,}, which marks '
                "the end of a document for the tokenizer 'bytes'. Remove it."
            )
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(id for id in _int_list(ids) if id).decode(errors='replace')

    def token_bytes(self) -> list[bytes]:
        return [bytes([id]) if id != self.end_of_text else b'' for id in range(self.vocab_size)]

    def byte_lengths(self) -> np.ndarray:
        return _lengths(self.token_bytes())

    def fingerprint(self) -> str:
        return digest('bytes')

    def save(self, directory) -> None:
        _write_description(directory, {'kind': 'bytes'})


class Characters:
    """The characters of the training corpus, sorted. '\\n', always one of them, ends a document.

    It is an ordinary character too: it decodes to itself and counts one byte.
    """

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
        return ''.join(self._characters[id] for id in _int_list(ids))

    def token_bytes(self) -> list[bytes]:
        return [character.encode() for character in self._characters]

    def byte_lengths(self) -> np.ndarray:
        return _lengths(self.token_bytes())

    def fingerprint(self) -> str:
        return digest('characters', self._characters)

    def save(self, directory) -> None:
        _write_description(directory, {'kind': 'characters', 'characters': self._characters})


class HuggingFace:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library.

    `end_of_text` names the token that ends a document; if it is empty, the customary names are
    looked up. Byte lengths are exact for byte-level BPE. Vocabularies that mark word starts
    (WordPiece, Metaspace) may count one byte too many per text, for a first space that is not
    there.
    """

    def __init__(self, content: str, end_of_text: str = ''):
        self._content = content
        self._tokenizer = _tokenizers().Tokenizer.from_str(content)
        # Text that spells a special token must not become one.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        candidates = (end_of_text,) if end_of_text else _END_OF_TEXT
        name = next((name for name in candidates if name in vocabulary), None)
        if name is None:
            raise errors.UserError(
                f'The tokenizer has no token {" or ".join(map(repr, candidates))}. Set end_of_text '
                'to the name of the one that ends a document, among: '
                f'{", ".join(map(repr, self._special_tokens().values())) or "none is special"}.'
            )
        self._end_of_text_name = name
        self.end_of_text = vocabulary[name]

    def __reduce__(self):
        return HuggingFace, (self._content, self._end_of_text_name)

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(_int_list(ids), skip_special_tokens=True)

    def token_bytes(self) -> list[bytes]:
        texts = [b''] * self.vocab_size
        spelling = _spelling(self._content)
        for token, id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            texts[id] = spelling(token)
        for id, added in self._tokenizer.get_added_tokens_decoder().items():
            texts[id] = b'' if added.special else added.content.encode()
        return texts

    def byte_lengths(self) -> np.ndarray:
        return _lengths(self.token_bytes())

    def _special_tokens(self) -> dict[int, str]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {id: token.content for id, token in added.items() if token.special}

    def fingerprint(self) -> str:
        return digest('hugging_face', self._content, self._end_of_text_name)

    def save(self, directory) -> None:
        description = {'kind': 'hugging_face', 'end_of_text': self._end_of_text_name}
        _write_description(directory, description)
        pathlib.Path(directory, 'tokenizer.json').write_text(self._content, encoding='utf-8')


class SentencePiece:
    """A SentencePiece model. It may normalise text, so decoding need not give back every byte."""

    def __init__(self, content: bytes):
        self._content = content
        self._model = _sentencepiece().SentencePieceProcessor(model_proto=content)
        self.vocab_size = self._model.vocab_size()
        self.end_of_text = self._model.eos_id()
        if self.end_of_text < 0:
            raise errors.UserError(
                'The SentencePiece model has no end-of-sentence token, which must separate '
                'documents. Train it with eos_id=1 or another free id.'
            )

    def __reduce__(self):
        return SentencePiece, (self._content,)

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        return np.array(self._model.encode(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(_int_list(ids))

    def token_bytes(self) -> list[bytes]:
        return [
            b''
            if self._model.is_control(id) or self._model.is_unknown(id)
            else _metaspace_bytes(self._model.id_to_piece(id))
            for id in range(self.vocab_size)
        ]

    def byte_lengths(self) -> np.ndarray:
        return _lengths(self.token_bytes())

    def fingerprint(self) -> str:
        return digest('sentencepiece', self._content)

    def save(self, directory) -> None:
        _write_description(directory, {'kind': 'sentencepiece'})
        pathlib.Path(directory, 'tokenizer.model').write_bytes(self._content)


def make_bytes(texts: Texts) -> Bytes:
    """Needs nothing of the corpus."""
    del texts
    return Bytes()


def fit_characters(texts: Texts, characters: str = '') -> Characters:
    """`Characters` of the corpus; or those given, and then no text is read."""
    return Characters(characters or (c for text in texts() for c in set(text)))


def load_hugging_face(texts: Texts, path: str, end_of_text: str = '') -> HuggingFace:
    """`path` is a `tokenizer.json` or the folder that holds one."""
    del texts
    file = pathlib.Path(path)
    file = file / 'tokenizer.json' if file.is_dir() else file
    content = _read(file).decode()
    _tokenizers()
    try:
        return HuggingFace(content, end_of_text)
    except errors.UserError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise errors.UserError(f'{file} is not a tokenizer.json: {error}.') from error


def load_sentencepiece(texts: Texts, path: str) -> SentencePiece:
    """`path` is a `.model` file."""
    del texts
    content = _read(pathlib.Path(path))
    try:
        return SentencePiece(content)
    except RuntimeError as error:
        raise errors.UserError(f'{path} is not a SentencePiece model: {error}.') from error


def train_bpe(texts: Texts, vocab_size: int) -> HuggingFace:
    """A byte-level BPE of the corpus: 256 bytes, `<|endoftext|>`, then the commonest merges.

    The same corpus gives the same tokenizer. A small corpus may give fewer than `vocab_size`.
    """
    if vocab_size < 257:
        raise errors.UserError(
            f'vocab_size = {vocab_size} is too small for byte-level BPE: 256 bytes and the end of '
            'text need 257.'
        )
    library = _tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT[0]],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return HuggingFace(tokenizer.to_str(), _END_OF_TEXT[0])


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    'bytes': make_bytes,
    'characters': fit_characters,
    'hugging_face': load_hugging_face,
    'sentencepiece': load_sentencepiece,
    'bpe': train_bpe,
}


def fit(section: Mapping, texts: Texts, path: str = 'tokenizer') -> Tokenizer:
    """The tokenizer of a config section; `texts()` iterates over the training corpus."""
    return config.choose(TOKENIZERS, section, path, texts=texts)


def restore(directory) -> Tokenizer:
    """The tokenizer that `save(directory)` wrote."""
    directory = pathlib.Path(directory)
    description = json.loads(_read(directory / _DESCRIPTION))
    kind = description['kind']
    if kind == 'bytes':
        return Bytes()
    if kind == 'characters':
        return Characters(description['characters'])
    if kind == 'hugging_face':
        content = _read(directory / 'tokenizer.json').decode()
        return HuggingFace(content, description['end_of_text'])
    if kind == 'sentencepiece':
        return SentencePiece(_read(directory / 'tokenizer.model'))
    kinds = ['bytes', 'characters', 'hugging_face', 'sentencepiece']
    raise errors.unknown(f'tokenizer kind in {directory / _DESCRIPTION}', kind, kinds)


def _write_description(directory, description: dict) -> None:
    path = pathlib.Path(directory, _DESCRIPTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(description), encoding='utf-8')


def _read(path: pathlib.Path) -> bytes:
    if not path.is_file():
        raise errors.UserError(f'There is no tokenizer file {str(path)!r}.')
    return path.read_bytes()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise errors.UserError(
            f'The character {text[error.start]!r} at position {error.start:,} of the text is half '
            'of a surrogate pair, which UTF-8 cannot hold. Remove it.'
        ) from error


def _code_points(text: str) -> np.ndarray:
    """Unicode code points, uint32 [L]. A lone surrogate passes: it is found unknown later."""
    return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def _int_list(ids: Iterable[int]) -> list[int]:
    return np.asarray(ids, np.int64).tolist()


def _lengths(texts: Iterable[bytes]) -> np.ndarray:
    return np.array([len(text) for text in texts], np.int32)


def _spelling(content: str) -> Callable[[str], bytes]:
    """The function from a token of a tokenizer.json's vocabulary to its text."""
    decoder = json.dumps(json.loads(content).get('decoder'))
    if '"ByteLevel"' in decoder:
        alphabet = _byte_level_alphabet()
        return lambda token: b''.join(alphabet.get(c, c.encode()) for c in token)
    if '"WordPiece"' in decoder:
        return lambda token: token[2:].encode() if token[:2] == '##' else b' ' + token.encode()
    return _metaspace_bytes


def _byte_level_alphabet() -> dict[str, bytes]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's own code).

    It is the character of that code where this is printable, else one of those from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + i): bytes([byte]) for i, byte in enumerate(others)
    }


def _metaspace_bytes(token: str) -> bytes:
    is_byte = len(token) == 6 and token.startswith('<0x') and token.endswith('>')
    return bytes.fromhex(token[3:5]) if is_byte else token.replace('▁', ' ').encode()


def _tokenizers():
    try:
        import tokenizers
    except ImportError as error:
        raise _missing('tokenizers') from error
    return tokenizers


def _sentencepiece():
    try:
        import sentencepiece
    except ImportError as error:
        raise _missing('sentencepiece') from error
    return sentencepiece


def _missing(library: str) -> errors.UserError:
    return errors.UserError(
        f"This tokenizer needs the library {library!r}: pip install 'bigmodels[text]'."
    )
