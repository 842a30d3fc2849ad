"""Random-access sources of tables and arrays, held in memory: CSV, TSV, `.npz`, digits."""

import csv
import io
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index, digest, read_text

# Plain numbers that lose nothing as int64 or float32 columns. Not among them: 007 and integers
# of 19 digits or more, which are identifiers; one such value makes its column text.
_INTEGER = re.compile(r'[+-]?(0|[1-9][0-9]{0,17})')
_REAL = re.compile(
    r'[+-]?(((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf)', re.IGNORECASE
)


class Columns:
    """Records in memory by columns, which are made read-only: record i is {name: column[i]}.

    The sources that are so are subclasses, and add `fingerprint` and `describe`.
    """

    def __init__(self, columns: dict[str, np.ndarray]):
        """Each column is [n] or [n, ...], all of the same n."""
        for column in columns.values():
            column.setflags(write=False)
        self._columns = columns
        self._length = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        return {name: column[i] for name, column in self._columns.items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The records of int64 [n] indices, stacked; columns of str as arrays of objects."""
        return {name: column[indices] for name, column in self._columns.items()}


class Csv(Columns):
    """A comma-separated file with a header row, plain or `.gz`, held in memory by columns.

    A column is int64 if every value is an integer, float32 if every value is a number, else
    str: one empty value or '?' leaves its column text, for the task to decide what it means.
    """

    def __init__(self, path: str):
        self._path = path
        text = read_text(one_file(path))
        reader = csv.reader(io.StringIO(text, newline=''), strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise errors.UserError(f'{path}:{reader.line_num} is not CSV: {error}.') from error
        if len(rows) < 2:
            raise errors.UserError(f'{path} needs a header row and at least one row of values.')
        (_, header), *rows = rows
        if len(set(header)) < len(header):
            raise errors.UserError(f'{path}:1 names a column twice: {", ".join(header)}.')
        for line, row in rows:
            if len(row) != len(header):
                raise errors.UserError(
                    f'{path}:{line} has {len(row)} values, the header has {len(header)} columns. '
                    'Quote values that hold a comma.'
                )
        columns = zip(*(row for _, row in rows), strict=True)
        super().__init__(
            {name: _typed(values) for name, values in zip(header, columns, strict=True)}
        )
        self._fingerprint = digest('csv', text)

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'csv {self._path}: {len(self):,} rows, {len(self._columns)} columns'


class Tsv(Columns):
    """Lines of values between tabs, plain or `.gz`, held in memory by columns as in `Csv`.

    There is no quoting: a value is all between two tabs. `columns` names them in a file without a
    header; where it is empty, the first line does.
    """

    def __init__(self, path: str, columns: tuple[str, ...] = ()):
        self._path = path
        text = read_text(one_file(path))
        lines = text.removesuffix('\n').split('\n') if text else []
        rows = [line.removesuffix('\r').split('\t') for line in lines]
        first = 1 if columns else 2
        names = columns or tuple(rows.pop(0) if rows else ())
        if not rows:
            raise errors.UserError(f'{path} has no line of values.')
        if len(set(names)) < len(names):
            raise errors.UserError(f'{path}: a column is named twice: {", ".join(names)}.')
        for line, row in enumerate(rows, first):
            if len(row) != len(names):
                raise errors.UserError(
                    f'{path}:{line} has {len(row)} values between tabs, wanted {len(names)}: '
                    f'{", ".join(names)}.'
                )
        values = zip(*rows, strict=True)
        super().__init__({name: _typed(column) for name, column in zip(names, values, strict=True)})
        self._fingerprint = digest('tsv', text, *names)

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'tsv {self._path}: {len(self):,} lines of {", ".join(self._columns)}'


class Npz(Columns):
    """Arrays of one `.npz` file with the same leading axis; record i is {name: array[i]}.

    `arrays` names those to read, all of them if it is empty.
    """

    def __init__(self, path: str, arrays: tuple[str, ...] = ()):
        self._path = path
        columns = read_npz(path, arrays)
        lengths = {name: array.shape[0] for name, array in columns.items() if array.ndim}
        if not lengths or len(lengths) < len(columns) or len(set(lengths.values())) > 1:
            shapes = {name: array.shape for name, array in columns.items()}
            raise errors.UserError(
                f'The arrays of {path} need one leading axis of the same length, got {shapes}. '
                'Name those that belong together in arrays.'
            )
        super().__init__(columns)
        self._fingerprint = arrays_digest('npz', columns)

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'npz {self._path}: {len(self):,} records of {", ".join(self._columns)}'


class Digits(Columns):
    """The 1,797 handwritten digits that scikit-learn carries; every fifth one is 'valid'.

    Record: {'image': uint8 [8, 8] with values 0 to 16, 'label': int64}.
    """

    def __init__(self, split: Literal['train', 'valid'] = 'train'):
        try:
            from sklearn import datasets
        except ImportError as error:
            raise errors.UserError(
                "The source 'digits' needs scikit-learn: pip install 'bigmodels[tables]'."
            ) from error
        digits = datasets.load_digits()
        kept = (np.arange(len(digits.target)) % 5 == 0) == (split == 'valid')
        self._split = split
        images = digits.images[kept].astype(np.uint8)
        super().__init__({'image': images, 'label': digits.target[kept].astype(np.int64)})

    def fingerprint(self) -> str:
        return arrays_digest('digits', self._columns)

    def describe(self) -> str:
        return f'digits {self._split}: {len(self):,} images of 8 x 8'


def read_npz(path: str, arrays: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, all of them where none are named.

    Raises:
      UserError: for a file that is no archive or is damaged, lacks one of them, or holds objects.
    """
    if not zipfile.is_zipfile(one_file(path)):
        raise errors.UserError(f'{path} is not an .npz archive, or it is cut short.')
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in arrays:
                if name not in archive.files:
                    raise errors.unknown(f'array in {path}', name, archive.files)
            return {name: archive[name] for name in arrays or archive.files}
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.UserError(
            f'{path} cannot be read without pickled objects: {error}. Save plain arrays with '
            'np.savez_compressed.'
        ) from error


def one_file(path: str) -> str:
    """The path, if it is a file; else a UserError."""
    if not os.path.isfile(path):
        raise errors.UserError(f'There is no file {path!r}, seen from {os.getcwd()}.')
    return path


def _typed(values: Sequence[str]) -> np.ndarray:
    """A CSV column as int64, float32, or an object array of str."""
    if all(_INTEGER.fullmatch(value) for value in values):
        return np.array([int(value) for value in values], np.int64)
    if all(_REAL.fullmatch(value) for value in values):
        return np.array([float(value) for value in values], np.float32)
    return np.array(values, object)


def arrays_digest(kind: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of arrays, with their names, types and shapes."""
    parts = [
        part
        for name, array in sorted(arrays.items())
        for part in (name, array.dtype.str, str(array.shape), array.tobytes())
    ]
    return digest(kind, *parts)
