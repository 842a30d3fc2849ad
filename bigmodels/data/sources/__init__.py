"""Random-access sources of text and records in files.

The contract is in `bigmodels.data`. Everything that can be wrong with a file is found when the
source is built, and told as a UserError that names the file and the line or byte.
"""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import operator
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bigmodels import errors

BOM = '\ufeff'  # with which some programs begin a file


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each with its length, so that ('ab', 'c') is not ('a', 'bc')."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, 'little'))
        sha.update(data)
    return sha.hexdigest()


def checked_index(index: int, length: int) -> int:
    """`index` in [0, length), negative ones counted from the end; raises IndexError outside."""
    index = operator.index(index)
    if not -length <= index < length:
        raise IndexError(f'index {index} of a sequence of length {length}')
    return index % length


class FileSpans:
    """Byte ranges of files, read on demand; a file that vanished or changed size is an error.

    Plain files are read by range. A `.gz` file allows none, so it is decompressed whole at its
    first use and kept; the kept bytes do not travel with a pickle.
    """

    def __init__(self, paths: Sequence[str], file: Sequence[int], start, stop):
        """Span i is bytes [start[i], stop[i]) of the decompressed `paths[file[i]]`."""
        self._paths = tuple(paths)
        self._sizes = tuple(map(size_of, paths))
        self._file = np.asarray(file, np.int32)
        self._start = np.asarray(start, np.int64)
        self._stop = np.asarray(stop, np.int64)
        self._decompressed = {}

    def __len__(self) -> int:
        return len(self._file)

    def __getstate__(self):
        return self.__dict__ | {'_decompressed': {}}

    @property
    def num_bytes(self) -> int:
        return int((self._stop - self._start).sum())

    @property
    def num_files(self) -> int:
        return len(self._paths)

    def path(self, i: int) -> str:
        return self._paths[self._file[i]]

    def read(self, i: int) -> bytes:
        file, start, stop = int(self._file[i]), int(self._start[i]), int(self._stop[i])
        path = self._paths[file]
        if file in self._decompressed:
            return self._decompressed[file][start:stop]
        try:
            size = os.path.getsize(path)
            if size != self._sizes[file]:
                raise errors.UserError(
                    f'{path} changed during the run: it had {self._sizes[file]:,} bytes when it '
                    f'was indexed and has {size:,} now. Restore it, or start a new run on it.'
                )
            if path.endswith('.gz'):
                self._decompressed[file] = read_bytes(path)
                return self._decompressed[file][start:stop]
            with open(path, 'rb') as stream:
                stream.seek(start)
                return stream.read(stop - start)
        except FileNotFoundError as error:
            raise errors.UserError(
                f'{path} vanished during the run. Put it back, or start a new run without it.'
            ) from error
        except OSError as error:
            raise errors.UserError(f'{path} cannot be read: {error.strerror}.') from error


class TextFiles:
    """UTF-8 text files, plain or `.gz`, of a path or a glob (`**` descends); record {'text': str}.

    Each file is a document, or each part of it between two `split_documents` separators.
    `fraction` (lo, hi) keeps the characters [int(lo * n), int(hi * n)) of the n in all files
    together, in the order of their sorted paths: (0.0, 0.9) and (0.9, 1.0) give nanoGPT's split.
    A document cut by a limit keeps the part inside.
    """

    def __init__(
        self, path: str, fraction: tuple[float, float] = (0.0, 1.0), split_documents: str = ''
    ):
        if len(fraction) != 2 or not 0 <= fraction[0] < fraction[1] <= 1:
            raise errors.UserError(
                f'fraction = {fraction} must be (lo, hi) with 0 <= lo < hi <= 1, such as (0, 0.9).'
            )
        self._path = path
        paths = _matching_files(path)
        documents, num_characters, contents = [], 0, hashlib.sha256()
        for file, name in enumerate(paths):
            text = read_text(name)
            contents.update(digest(text).encode())
            for start, stop, characters in _documents(text, split_documents):
                documents.append((file, start, stop, characters.start + num_characters,
                                  characters.stop + num_characters))  # fmt: skip
            num_characters += len(text)
        lo, hi = (int(limit * num_characters) for limit in fraction)
        kept = [
            _clip(document, lo, hi, paths)
            for document in documents
            if max(document[3], lo) < min(document[4], hi)
        ]
        if not kept:
            raise errors.UserError(
                f'{path} holds no text in the range {fraction} of its {num_characters:,} '
                f'characters ({len(paths)} files). Give other files or a wider fraction.'
            )
        self._spans = FileSpans(paths, *zip(*kept, strict=True))
        self._fingerprint = digest('text', contents.hexdigest(), f'{lo} {hi}', split_documents)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'text': self._spans.read(checked_index(index, len(self))).decode()}

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return (
            f'text files {self._path}: {len(self):,} documents in {self._spans.num_files:,} '
            f'files, {self._spans.num_bytes / 1e6:.1f} MB'
        )


class JsonLines:
    """A JSON object per line, in plain or `.gz` files of a path or a glob; blank lines are skipped.

    Numbers become int64 or float32 scalars, lists of numbers arrays; the rest stays as parsed.
    """

    def __init__(self, path: str):
        self._path = path
        paths = _matching_files(path)
        lines, contents = [], hashlib.sha256()
        for file, name in enumerate(paths):
            start = 0
            for number, line in enumerate(lines_of(name), 1):
                contents.update(line)
                if line.strip():
                    self._record(line, f'{name}:{number}')
                    lines.append((file, start, start + len(line)))
                start += len(line)
        if not lines:
            raise errors.UserError(f'{path} holds no record: every line is blank.')
        self._spans = FileSpans(paths, *zip(*lines, strict=True))
        self._fingerprint = digest('jsonl', contents.hexdigest())

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        return self._record(self._spans.read(i), f'{self._spans.path(i)}, record {i}')

    def _record(self, line: bytes, where: str) -> dict[str, Any]:
        return parse_json_line(line, where)

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'jsonl {self._path}: {len(self):,} records, {self._spans.num_bytes / 1e6:.1f} MB'


def _matching_files(pattern: str) -> list[str]:
    """The sorted files that a path or a glob names; at least one, or a UserError."""
    if os.path.isdir(pattern):
        raise errors.UserError(f'{pattern} is a folder. Write {pattern}/**/* for the files in it.')
    names = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    files = [name for name in names if os.path.isfile(name)]
    if not files:
        raise errors.UserError(
            f'No file matches {pattern!r}, seen from {os.getcwd()}. Give a path or a glob.'
        )
    return files


def visible_files(folder: str) -> list[str]:
    """The sorted POSIX paths, relative to a folder, of the files at any depth below it.

    Hidden files do not count, nor what is in hidden folders.
    """
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        relative = pathlib.Path(where).relative_to(folder)
        found += [(relative / name).as_posix() for name in files if not name.startswith('.')]
    return sorted(found)


def one_file(path: str) -> str:
    """The path, if it is a file; else a UserError."""
    if not os.path.isfile(path):
        raise errors.UserError(f'There is no file {path!r}, seen from {os.getcwd()}.')
    return path


def read_bytes(path: str) -> bytes:
    """The content of a file, decompressed if its name ends in `.gz`.

    Raises:
      UserError: if there is no such file, it may not be read, or it is not a whole gzip file.
    """
    with _reading(path):
        data = pathlib.Path(one_file(path)).read_bytes()
    if not path.endswith('.gz'):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise errors.UserError(f'{path} is not a whole gzip file: {error}.') from error


def size_of(path: str) -> int:
    """Bytes of a file; UserError if there is none, or what a link names is not there."""
    with _reading(path):
        return os.path.getsize(path)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.UserError(f'{path} cannot be read: {error.strerror}.') from error


def digest_of_files(kind: str, names: Sequence[str], files: Sequence[Sequence[str]]) -> str:
    """Over names, the sizes of each one's files, and the content of 64 of them, evenly spaced."""
    sample = np.linspace(0, len(names) - 1, min(64, len(names))).astype(int)
    sizes = ([size_of(path) for path in group] for group in files)
    return digest(
        kind,
        *(f'{name} {size}' for name, size in zip(names, sizes, strict=True)),
        *(read_bytes(path) for i in sample for path in files[i]),
    )


def read_below(path: str, name: str) -> bytes:
    """The bytes of a file of a folder, or of a `.zip` of one, by its path below it.

    Raises:
      UserError: if there is none, it cannot be read, or the name leads out of the folder.
    """
    if os.path.isabs(name) or '..' in pathlib.PurePath(name).parts:
        raise errors.UserError(f'{path}: the file {name!r} must lie in it.')
    if not os.path.isfile(path):
        return read_bytes(os.path.join(path, name))
    try:
        with _archive(path) as archive:
            return archive.read(name)
    except KeyError as error:
        raise errors.UserError(f'{path} holds no file {name!r}.') from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise errors.UserError(f'{path}: {name} cannot be read: {error}.') from error


def sizes_below(path: str, names: Iterable[str]) -> dict[str, int]:
    """The bytes of those of the files of a folder, or of a `.zip` of one, that are there.

    Raises:
      UserError: if a file of this path is no archive.
    """
    if not os.path.isfile(path):
        paths = {name: os.path.join(path, name) for name in names}
        return {n: os.path.getsize(p) for n, p in paths.items() if os.path.isfile(p)}
    with _archive(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    return {name: sizes[name] for name in names if name in sizes}


def _archive(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise errors.UserError(f'{path} is no whole zip archive: {error}.') from error


def read_text(path: str) -> str:
    """The text of a UTF-8 file, plain or `.gz`; UserError with the offset of what is not text."""
    data = read_bytes(path)
    nul = data.find(b'\0')
    if nul >= 0:
        raise errors.UserError(f'{path} is not text: it has a NUL at byte offset {nul:,}.')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f'{path} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset '
            f'{error.start:,}. Convert it (iconv -t UTF-8) or leave it out.'
        ) from error


def _documents(text: str, separator: str) -> Iterator[tuple[int, int, range]]:
    """The byte start, byte stop and character range of each document of a text.

    A byte order mark, with which some programs begin a file, is in none.
    """
    character = int(text.startswith(BOM))
    start, text = len(text[:character].encode()), text[character:]
    for document in text.split(separator) if separator else [text]:
        stop = start + len(document.encode())
        yield start, stop, range(character, character + len(document))
        start = stop + len(separator.encode())
        character += len(document) + len(separator)


def _clip(document, lo: int, hi: int, paths: Sequence[str]) -> tuple[int, int, int]:
    """The (file, start, stop) bytes of the part of a document in the characters [lo, hi)."""
    file, start, stop, first, last = document
    if first < lo or last > hi:
        text = read_bytes(paths[file])[start:stop].decode()
        stop = start + len(text[: hi - first].encode())
        start += len(text[: max(lo - first, 0)].encode())
    return file, start, stop


def lines_of(path: str) -> Iterator[bytes]:
    """The lines of a file with their line ends, one at a time unless it is compressed."""
    if path.endswith('.gz'):
        yield from io.BytesIO(read_bytes(path))
    else:
        with _reading(path), open(one_file(path), 'rb') as stream:
            yield from stream


def parse_json_line(line: bytes, where: str) -> dict[str, Any]:
    """The record in a line of JSON, as in `JsonLines`; UserError naming `where` if it is none."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f'it is a {type(record).__name__}')
        return {key: _as_numpy(value) for key, value in record.items()}
    except (ValueError, OverflowError, RecursionError) as error:
        raise errors.UserError(f'{where} is not a JSON object on one line: {error}.') from error


def _as_numpy(value: Any) -> Any:
    """Numbers and flat lists of numbers as numpy; anything else unchanged."""
    kinds = {type(item) for item in value} if isinstance(value, list) else {type(value)}
    if kinds == {bool}:
        dtype = np.bool_
    elif kinds == {int}:
        if any(abs(item) >= 2**63 for item in (value if isinstance(value, list) else [value])):
            return value  # an unsigned hash, say
        dtype = np.int64
    elif kinds and kinds <= {int, float}:
        return narrowed(np.asarray(value, np.float64))[()]
    else:
        return value
    return np.asarray(value, dtype) if isinstance(value, list) else dtype(value)


def narrowed(wide: np.ndarray) -> np.ndarray:
    """float64 as float32, unless that rounds whole ones below 2**53, which may be identifiers.

    What is too large for float32 stays float64 too.
    """
    with np.errstate(over='ignore'):
        narrow = wide.astype(np.float32)
    rounded = (wide == np.rint(wide)) & (wide != narrow) & (np.abs(wide) < 2**53)
    return wide if (rounded | (np.isinf(narrow) & np.isfinite(wide))).any() else narrow
