"""From a source of texts to language-model examples: tokenise once, then chunk or pack.

Tokens live in one memory-mapped file; examples are cut from it by index, so that example i is a
function of (corpus, settings, i) alone. Everything here can be pickled and read by threads.
"""

import bisect
import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bigmodels import errors
from bigmodels.data import pipeline
from bigmodels.data.sources import checked_index, digest
from bigmodels.data.tokenizers import Tokenizer, document

_FORMAT = 2  # part of every cache key: raise it when the files or their meaning change
_DESCRIPTION, _LEARNT = 'corpus.json', 'learnt.bin'


class TokenCorpus:
    """The tokens of all documents, one after another, mapped from the files in `directory`.

    tokens: uint16 or int32 [num_tokens]; offsets: int64 [num_documents + 1], document i is
    tokens[offsets[i]:offsets[i + 1]]; learnt: bool [num_tokens], whether a token is to be learnt,
    None where all are. Raises UserError if a file is absent or of a wrong size.
    """

    def __init__(self, directory):
        self._directory = str(directory)
        damage = _damage(pathlib.Path(directory))
        if damage:
            raise errors.UserError(f'The tokenised corpus in {directory} is damaged: {damage}.')
        description = json.loads(pathlib.Path(directory, _DESCRIPTION).read_text())
        self._fingerprint = description['fingerprint']
        self.vocab_size = description['vocab_size']
        self.tokens = np.memmap(
            pathlib.Path(directory, 'tokens.bin'), description['dtype'], mode='r'
        )
        self.learnt = None
        if _LEARNT in description['sizes']:
            self.learnt = np.memmap(pathlib.Path(directory, _LEARNT), np.bool_, mode='r')
        self.offsets = np.load(
            pathlib.Path(directory, 'offsets.npy'), mmap_mode='r', allow_pickle=False
        )

    def __reduce__(self):
        return TokenCorpus, (self._directory,)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def fingerprint(self) -> str:
        return self._fingerprint


def tokenize_corpus(
    source,
    tokenizer: Tokenizer,
    cache_dir,
    field: str = 'text',
    append_end_of_text: bool = True,
    begin: bool = True,
) -> TokenCorpus:
    """The tokens of `record[field]` of every record, from `cache_dir` if they are there.

    The cache is keyed by the content of the source, the tokenizer and the settings. A corpus
    appears in it whole or not at all, however many processes write it at once; one that was
    damaged later is made again. One document is held in memory at a time. Without
    `append_end_of_text` documents follow one another directly, as a corpus of one file should;
    without `begin` they lack the tokenizer's token that begins a document, if it has one.
    """
    ending = np.array([tokenizer.end_of_text] if append_end_of_text else [], np.int32)

    tokens_of = functools.partial(document, tokenizer) if begin else tokenizer.encode

    def encode(record):
        return np.append(tokens_of(text_of(record, field)), ending), None

    settings = [field, append_end_of_text, begin]
    return cached_corpus(source, tokenizer, cache_dir, settings, encode, f'the field {field!r}')


def cached_corpus(
    source,
    tokenizer: Tokenizer,
    cache_dir,
    settings: Sequence[Any],
    encode: Callable[[Mapping], tuple[np.ndarray, np.ndarray | None]],
    what: str,
) -> TokenCorpus:
    """A `TokenCorpus` of every record, see `tokenize_corpus`.

    Args:
      settings: all that decides what `encode` makes of a record, beside the tokenizer.
      encode: record -> (its tokens, which of them are to be learnt: bool, or None for all).
      what: is encoded, for the error where it is empty.
    """
    settings = json.dumps([_FORMAT, *settings])
    fingerprint = digest(source.fingerprint(), tokenizer.fingerprint(), settings)
    cache_dir = pathlib.Path(cache_dir)
    target = cache_dir / f'tokens-{fingerprint[:24]}'
    with pipeline.writing_cache(cache_dir):
        if not _damage(target):
            return TokenCorpus(target)
        scratch = cache_dir / f'.writing-{uuid.uuid4().hex}'
        scratch.mkdir()
        try:
            _write_corpus(scratch, fingerprint, source, tokenizer.vocab_size, encode, what)
            _publish(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return TokenCorpus(target)


def _write_corpus(
    directory: pathlib.Path,
    fingerprint: str,
    source,
    vocab_size: int,
    encode: Callable,
    what: str,
) -> None:
    """Writes tokens.bin, offsets.npy and, last, the description that has their sizes."""
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
    offsets = np.zeros(len(source) + 1, np.int64)
    with open(directory / 'tokens.bin', 'wb') as stream, open(directory / _LEARNT, 'wb') as beside:
        for i in range(len(source)):
            try:
                tokens, learnt = encode(source[i])
            except errors.UserError as error:
                raise errors.UserError(f'Record {i} of {source.describe()}: {error}') from error
            stream.write(tokens.astype(dtype).tobytes())
            if learnt is not None:
                beside.write(learnt.tobytes())
            offsets[i + 1] = offsets[i] + len(tokens)
    if not offsets[-1]:
        raise errors.UserError(f'{source.describe()}: no text in {what}.')
    np.save(directory / 'offsets.npy', offsets)
    files = ['tokens.bin', 'offsets.npy']
    if (directory / _LEARNT).stat().st_size:
        files.append(_LEARNT)
    sizes = {name: (directory / name).stat().st_size for name in files}
    description = {
        'fingerprint': fingerprint,
        'vocab_size': vocab_size,
        'dtype': dtype.name,
        'sizes': sizes,
    }
    (directory / _DESCRIPTION).write_text(json.dumps(description))


def text_of(record: dict[str, Any], field: str) -> str:
    """The text in a field of a record; UserError where there is none."""
    if field not in record:
        raise errors.unknown('field', field, record)
    if not isinstance(record[field], str):
        kind = type(record[field]).__name__
        raise errors.UserError(f'The field {field!r} is {kind}, wanted str.')
    return record[field]


def _publish(scratch: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a finished corpus to its place, unless another process has been faster."""
    while _damage(target):
        try:
            os.rename(scratch, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Something is in the way. If it is not another process's whole corpus, it is moved aside
        # before it is deleted, so that nobody sees it half deleted.
        if _damage(target):
            aside = target.parent / f'.damaged-{uuid.uuid4().hex}'
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                os.rename(target, aside)
            shutil.rmtree(aside, ignore_errors=True)


def _damage(directory: pathlib.Path) -> str:
    """What is wrong with the files of a corpus, '' if they are there in their recorded sizes."""
    try:
        sizes = json.loads((directory / _DESCRIPTION).read_text())['sizes']
        for name, size in sizes.items():
            found = (directory / name).stat().st_size
            if found != size:
                return f'{name} has {found:,} bytes and should have {size:,}'
    except (FileNotFoundError, ValueError, KeyError) as error:
        return f'{type(error).__name__} {error}'
    return ''


class Chunks:
    """Windows of `length` tokens over the whole corpus, regardless of where documents end.

    Example i is {'inputs' int32 [L], 'targets' int32 [L], 'weights' float32 [L]}: the tokens from
    i * L, and those one later. Every token but the first is a target exactly once; the last
    window is padded with weight 0, or left out if `drop_remainder`.
    """

    def __init__(self, corpus: TokenCorpus, length: int, drop_remainder: bool = False):
        _check_length(length)
        num_targets = corpus.num_tokens - 1
        if num_targets < (length if drop_remainder else 1):
            raise errors.UserError(
                f'The corpus has {corpus.num_tokens:,} tokens, too few for one sequence of length '
                f'{length:,}, which takes {length + 1:,}. Use a shorter length or more text.'
            )
        self._corpus = corpus
        self._length = length
        self._count = num_targets // length if drop_remainder else -(-num_targets // length)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return _single(self.take(np.array([checked_index(index, len(self))])))

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, as arrays [n, L]."""
        places = indices[:, None] * self._length + np.arange(self._length + 1)
        count = self._corpus.num_tokens
        tokens = self._corpus.tokens[np.minimum(places, count - 1)].astype(np.int32)
        real = places[:, 1:] < count
        return {
            'inputs': tokens[:, :-1] * real,
            'targets': tokens[:, 1:] * real,
            'weights': real.astype(np.float32),
        }


class Packed:
    """Whole documents side by side in rows of `length` tokens, none attending to another.

    Documents are cut into pieces of at most `length` tokens, and the pieces go into rows by
    best-fit decreasing. Example i is {'inputs', 'targets', 'positions', 'segment_ids' int32 [L],
    'weights' float32 [L]}: positions count from 0 in each piece, segment_ids from 1 in each row
    (0 is padding). Every token of the corpus is an input once; its target is the next token of
    its document, even in another piece, and the last one of a document has weight 0, as has a
    target that is not to be learnt.
    """

    def __init__(self, corpus: TokenCorpus, length: int):
        _check_length(length)
        self._corpus = corpus
        self._length = length
        starts, sizes, stops = _pieces(np.asarray(corpus.offsets), length)
        row = best_fit_decreasing(sizes, length)
        order = np.argsort(row, kind='stable')
        self._starts, self._sizes, self._stops = starts[order], sizes[order], stops[order]
        counts = np.bincount(row)
        self._row_offsets = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self._row_offsets) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return _single(self.take(np.array([checked_index(index, len(self))])))

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, as arrays [n, L]."""
        shape = (len(indices), self._length)
        names = ('inputs', 'targets', 'positions', 'segment_ids')
        batch = {name: np.zeros(shape, np.int32) for name in names}
        batch['weights'] = np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            self._fill({name: array[row] for name, array in batch.items()}, index)
        return batch

    def _fill(self, example: dict[str, np.ndarray], index: int) -> None:
        """Writes the pieces of a row into arrays [L] of zeros."""
        at = 0
        for segment, piece in enumerate(range(*self._row_offsets[index : index + 2]), 1):
            start, size = self._starts[piece], self._sizes[piece]
            targets = self._corpus.tokens[start + 1 : min(start + size + 1, self._stops[piece])]
            example['inputs'][at : at + size] = self._corpus.tokens[start : start + size]
            example['targets'][at : at + len(targets)] = targets
            learnt = self._corpus.learnt
            example['weights'][at : at + len(targets)] = (
                1 if learnt is None else learnt[start + 1 : start + 1 + len(targets)]
            )
            example['positions'][at : at + size] = np.arange(size)
            example['segment_ids'][at : at + size] = segment
            at += size


class Padded:
    """Each document alone in a row of `length` tokens; of longer ones the first `length`.

    Example i is {'inputs', 'segment_ids' int32 [L]}: segment_ids are 1 at its tokens and 0 at
    padding.

    Raises:
      UserError: for a document without tokens, by its number.
    """

    def __init__(self, corpus: TokenCorpus, length: int):
        _check_length(length)
        sizes = np.diff(corpus.offsets)
        if not sizes.all():
            raise errors.UserError(f'Record {int(np.argmin(sizes))} has no text.')
        self._corpus = corpus
        self._length = length

    def __len__(self) -> int:
        return self._corpus.num_documents

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return _single(self.take(np.array([checked_index(index, len(self))])))

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, as arrays [n, L]."""
        places = self._corpus.offsets[indices][:, None] + np.arange(self._length)
        real = places < self._corpus.offsets[indices + 1][:, None]
        tokens = self._corpus.tokens[np.minimum(places, self._corpus.num_tokens - 1)]
        return {'inputs': tokens.astype(np.int32) * real, 'segment_ids': real.astype(np.int32)}


def _single(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The only example of a batch."""
    return {name: array[0] for name, array in batch.items()}


def _check_length(length: int) -> None:
    if length < 1:
        raise errors.UserError(f'length = {length} must be at least 1 token.')


def _pieces(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The start and size of each piece of the documents, and the stop of the document it is of.

    offsets: int64 [num_documents + 1]. All results int64 [num_pieces], in corpus order.
    """
    counts = -(-np.diff(offsets) // length)
    document = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = offsets[document] + within * length
    stops = offsets[document + 1]
    return starts, np.minimum(length, stops - starts), stops


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece, int64 [num_pieces]: the fullest row it fits in, largest piece first.

    sizes are 1 to `capacity`. Equal sizes keep their order, so the plan is deterministic.
    """
    order = np.argsort(-sizes, kind='stable')
    rows = np.empty(len(sizes), np.int64)
    # Pieces that fill a row come first and need no search.
    num_rows = int((sizes == capacity).sum())
    rows[order[:num_rows]] = np.arange(num_rows)
    rows_with = [[] for _ in range(capacity)]  # by free positions
    free = []  # the numbers of free positions that some row has, sorted
    for piece in order[num_rows:].tolist():
        size = int(sizes[piece])
        best = bisect.bisect_left(free, size)
        if best < len(free):
            left = free[best]
            row = rows_with[left].pop()
            if not rows_with[left]:
                del free[best]
        else:
            left, row = capacity, num_rows
            num_rows += 1
        rows[piece] = row
        left -= size
        if left:
            if not rows_with[left]:
                bisect.insort(free, left)
            rows_with[left].append(row)
    return rows
