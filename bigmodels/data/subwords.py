"""Tokenizers of parts of words, by the libraries of Hugging Face and of SentencePiece."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from bigmodels import errors
from bigmodels.data import chat_templates
from bigmodels.data.sources import digest
from bigmodels.data.spelling import Texts, as_utf8, int_list, lengths_of, read, write_description

_MASKS = ('[MASK]', '<mask>')
# How pretrained vocabularies name the token between documents, in the order in which to look.
_END_OF_TEXT = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]')


class HuggingFace:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library.

    `end_of_text` names the token that ends a document; if it is empty, the customary names are
    looked up. `begin_of_text` names the one that begins it; empty for none. `chat_template` and
    `roles`, pairs such as ('pad_token', '<pad>'), are kept for those who ask for them.

    Byte lengths are exact for byte-level BPE. Vocabularies that mark word starts (WordPiece,
    Metaspace) may count one byte too many per text, for a first space that is not there.
    """

    def __init__(
        self,
        content: str,
        end_of_text: str = '',
        begin_of_text: str = '',
        chat_template: chat_templates.ChatTemplate | None = None,
        roles: tuple[tuple[str, str], ...] = (),
    ):
        self.content, self.chat_template, self._roles = content, chat_template, roles
        self._tokenizer = _of_content(content)
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
                f'{", ".join(map(repr, self.special_ids())) or "none is special"}.'
            )
        if begin_of_text and begin_of_text not in vocabulary:
            raise errors.UserError(
                f'The tokenizer has no token {begin_of_text!r}: begin_of_text is the one that '
                "begins a document, or '' for none."
            )
        self._end_of_text_name, self._begin_of_text_name = name, begin_of_text
        self.end_of_text = vocabulary[name]
        self.begin_of_text = vocabulary[begin_of_text] if begin_of_text else None

    def __reduce__(self):
        names = self._end_of_text_name, self._begin_of_text_name
        return HuggingFace, (self.content, *names, self.chat_template, self._roles)

    def encode(self, text: str) -> np.ndarray:
        as_utf8(text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_chat(self, text: str) -> np.ndarray:
        """The ids of a rendered chat, int32 [L]: special tokens that it spells are these tokens."""
        return self.encode_spans(text)[0]

    def encode_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode_chat`, and with which character of the text each begins: int32 [L] both."""
        as_utf8(text)
        encoded = self._spelt.encode(text, add_special_tokens=False)
        begins = [begin for begin, _ in encoded.offsets]
        return np.array(encoded.ids, np.int32), np.array(begins, np.int32)

    @functools.cached_property
    def _spelt(self):
        return _of_content(self.content)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(int_list(ids), skip_special_tokens=True)

    def token_bytes(self) -> list[bytes]:
        texts = [b''] * self.vocab_size
        spelling = _spelling(self.content)
        for token, id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            texts[id] = spelling(token)
        for id, added in self._tokenizer.get_added_tokens_decoder().items():
            texts[id] = b'' if added.special else added.content.encode()
        return texts

    def byte_lengths(self) -> np.ndarray:
        return lengths_of(self.token_bytes())

    def token_id(self, token: str) -> int:
        """The id of a token by its name."""
        id = self._tokenizer.token_to_id(token)
        if id is None:
            special = errors.some([*map(repr, self.special_ids())], 120)
            raise errors.UserError(f'The tokenizer has no token {token!r}; special are: {special}.')
        return id

    @property
    def special_tokens(self) -> dict[str, str]:
        """The tokens that have a role, by its name, such as 'eos_token'."""
        tokens = dict(self.chat_template.tokens) if self.chat_template else {}
        tokens |= dict(self._roles)
        tokens['eos_token'] = self._end_of_text_name
        return tokens | (
            {'bos_token': self._begin_of_text_name} if self._begin_of_text_name else {}
        )

    def special_ids(self) -> dict[str, int]:
        """The special tokens by name, in the order of their ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in sorted(added.items()) if token.special}

    def fingerprint(self) -> str:
        begin = [self._begin_of_text_name] if self._begin_of_text_name else []
        return digest('hugging_face', self.content, self._end_of_text_name, *begin)

    def save(self, directory) -> None:
        description = {
            'kind': 'hugging_face',
            'end_of_text': self._end_of_text_name,
            'begin_of_text': self._begin_of_text_name,
            'roles': self._roles,
        }
        if self.chat_template is not None:
            description['chat_template'] = dataclasses.asdict(self.chat_template)
        write_description(directory, description)
        pathlib.Path(directory, 'tokenizer.json').write_text(self.content, encoding='utf-8')


class SentencePiece:
    """A SentencePiece model. It may normalise text, so decoding need not give back every byte.

    With `begin` documents begin with its token of that kind.
    """

    def __init__(self, content: bytes, begin: bool = False):
        self.content, self._begin = content, begin
        self._model = _sentencepiece().SentencePieceProcessor(model_proto=content)
        self.vocab_size = self._model.vocab_size()
        self.end_of_text = self._model.eos_id()
        if self.end_of_text < 0:
            raise errors.UserError(
                'The SentencePiece model has no end-of-sentence token, which must separate '
                'documents. Train it with eos_id=1 or another free id.'
            )
        self.begin_of_text = self._model.bos_id() if begin else None
        if self.begin_of_text is not None and self.begin_of_text < 0:
            raise errors.UserError('The SentencePiece model has no token that begins a sentence.')

    def __reduce__(self):
        return SentencePiece, (self.content, self._begin)

    def encode(self, text: str) -> np.ndarray:
        as_utf8(text)
        return np.array(self._model.encode(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([id for id in int_list(ids) if id < self.vocab_size])

    def token_bytes(self) -> list[bytes]:
        return [
            b''
            if self._model.is_control(id) or self._model.is_unknown(id)
            else _metaspace_bytes(self._model.id_to_piece(id))
            for id in range(self.vocab_size)
        ]

    def byte_lengths(self) -> np.ndarray:
        return lengths_of(self.token_bytes())

    def fingerprint(self) -> str:
        return digest('sentencepiece', self.content, *(['begin'] if self._begin else []))

    def save(self, directory) -> None:
        write_description(directory, {'kind': 'sentencepiece', 'begin': self._begin})
        pathlib.Path(directory, 'tokenizer.model').write_bytes(self.content)


def _of_content(content: str):
    """The library's tokenizer of a tokenizer.json, without the truncation and padding it keeps.

    They are of the calls before it was saved, not of the model: transformers leaves them out too.
    """
    tokenizer = _tokenizers().Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_hugging_face(
    texts: Texts, path: str, end_of_text: str = '', begin_of_text: str = ''
) -> HuggingFace:
    """`path` is a `tokenizer.json` or the folder that holds one, and with it a chat template."""
    del texts
    file = pathlib.Path(path)
    file = file / 'tokenizer.json' if file.is_dir() else file
    content = read(file).decode()
    _tokenizers()
    try:
        template = chat_templates.beside(file.parent)
        roles = chat_templates.special_tokens(chat_templates.config_beside(file.parent))
        return HuggingFace(content, end_of_text, begin_of_text, template, roles)
    except errors.UserError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise errors.UserError(f'{file} is not a tokenizer.json: {error}.') from error


def published_names(file: pathlib.Path, end_id: int | None) -> tuple[str, str, str]:
    """Of a tokenizer.json: the token of an id, the one that its rules put before a text, the mask.

    Each empty where there is none.
    """
    tokenizer = _of_content(read(file).decode())
    encoding = tokenizer.encode('a', add_special_tokens=True)
    first = encoding.tokens[0] if encoding.special_tokens_mask[0] else ''
    end = (end_id is not None and tokenizer.id_to_token(end_id)) or ''
    known = tokenizer.get_vocab(with_added_tokens=True)
    return end, first, next((mask for mask in _MASKS if mask in known), '')


def published_id(file: pathlib.Path, token: str) -> int | None:
    """The id of a token of a tokenizer.json, None where it has none."""
    return _of_content(read(file).decode()).token_to_id(token)


def load_sentencepiece(texts: Texts, path: str, begin: bool = False) -> SentencePiece:
    """`path` is a `.model` file."""
    del texts
    content = read(pathlib.Path(path))
    try:
        return SentencePiece(content, begin)
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
