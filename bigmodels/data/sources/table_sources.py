"""Random-access sources of tables and arrays, held in memory: CSV, TSV, `.npz`, digits."""

import csv
import io
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data.cells import as_written, is_number, number, numbers, typed
from bigmodels.data.sources import BOM, checked_index, digest, one_file, read_text

Line = tuple[int, list[str]]  # of a CSV file: the number of its last line, and its values


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

    A column is int64 if every value is an integer, float32 if every value is a number (float64
    if it has whole ones that float32 would round), else str: one empty value or '?' leaves its
    column text, for the task to decide what it means. Numbers of which some are integers of 2**53
    or more, and others no integers, are str as well.

    Args:
      rows: those that are read, as a slice of the file's records: '0:8640', or '4::5' for every
        fifth one.
      without: slices of records that are left out of `rows`.
      numeric: columns of numbers, read as float32; an empty value, '?' and 'NA' are NaN.
      text: columns of str, whatever their values look like.
      broken: whether a record with another number of values than the header, or with a value in
        a column of `numeric` that is no finite number, is refused or left out.
      duplicates: whether a record that repeats an earlier one of `rows` is kept, left out, or
        refused. `describe` counts both kinds.
    """

    def __init__(
        self,
        path: str,
        rows: str = ':',
        without: Sequence[str] = (),
        numeric: Sequence[str] = (),
        broken: Literal['refuse', 'drop'] = 'refuse',
        duplicates: Literal['keep', 'drop', 'refuse'] = 'keep',
        text: Sequence[str] = (),
    ):
        self._path, self._broken, self._duplicates = path, broken, duplicates
        written = read_text(path)
        header, lines = csv_rows(path, written)
        # Earlier versions left blank lines out: their runs are not to go on with other records.
        gaps = len(header) == 1 and any(row == [''] for _, row in lines)
        for name in (*numeric, *text):
            if name not in header:
                raise errors.unknown(f'column of {path}', name, header)
        readers = dict.fromkeys(text, as_written) | dict.fromkeys(numeric, numbers)
        lines = _selected(lines, rows, without, path)
        lines, self._num_broken = self._whole(lines, header, numeric)
        lines, self._num_duplicates = self._distinct(lines)
        if not lines:
            raise errors.UserError(f'{path} has no record in rows {rows!r} that is not left out.')
        columns = zip(*(row for _, row in lines), strict=True)
        super().__init__(
            {
                name: readers.get(name, typed)(values)
                for name, values in zip(header, columns, strict=True)
            }
        )
        settings = (rows, tuple(without), tuple(numeric), broken, duplicates)
        settings += (tuple(text),) if text else ()  # of earlier versions' runs there is none
        self._fingerprint = digest('csv with gaps' if gaps else 'csv', written, repr(settings))

    def _whole(self, lines: Sequence[Line], header, numeric) -> tuple[list[Line], int]:
        """The lines that are not broken, and how many are."""
        places = [(name, header.index(name)) for name in numeric]
        kept = []
        for line, row in lines:
            problem = _problem(row, header, places)
            if not problem:
                kept.append((line, row))
            elif self._broken == 'refuse':
                raise errors.UserError(f'{self._path}:{line} {problem}')
        return kept, len(lines) - len(kept)

    def _distinct(self, lines: Sequence[Line]) -> tuple[list[Line], int]:
        """The lines as `duplicates` says, and how many repeat an earlier one."""
        first = {}
        for line, row in lines:
            earlier = first.setdefault(tuple(row), line)
            if earlier != line and self._duplicates == 'refuse':
                raise errors.UserError(
                    f'{self._path}:{line} repeats line {earlier}. Leave it out, or set duplicates '
                    'to "keep" or "drop".'
                )
        count = len(lines) - len(first)
        if self._duplicates == 'drop':
            return [(line, list(row)) for row, line in first.items()], count
        return list(lines), count

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        done = 'left out' if self._duplicates == 'drop' else 'kept'
        repeated = f', {self._num_duplicates:,} duplicates {done}' if self._num_duplicates else ''
        broken = f', {self._num_broken:,} broken records left out' if self._num_broken else ''
        size = f'{len(self):,} rows, {len(self._columns)} columns'
        return f'csv {self._path}: {size}{repeated}{broken}'


class Tsv(Columns):
    """Lines of values between tabs, plain or `.gz`, held in memory by columns as in `Csv`.

    There is no quoting: a value is all between two tabs. `columns` names them in a file without a
    header; where it is empty, the first line does.
    """

    def __init__(self, path: str, columns: tuple[str, ...] = ()):
        self._path = path
        text = read_text(path)
        lines = text.removeprefix(BOM).removesuffix('\n').split('\n') if text else []
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
        super().__init__({name: typed(column) for name, column in zip(names, values, strict=True)})
        # The same names give other records of the same text, one fewer where they are in it.
        self._fingerprint = digest('tsv' if columns else 'tsv with a header', text, *names)

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

    Record: {'image': uint8 [8, 8] from 0 to 255, as in picture files, 'label': int64}.
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
        images = np.rint(digits.images[kept] * (255 / 16)).astype(np.uint8)
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
            found = {name: archive[name] for name in arrays or archive.files}
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.UserError(
            f'{path} cannot be read without pickled objects: {error}. Save plain arrays with '
            'np.savez_compressed.'
        ) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise errors.UserError(f'{path}: {name} is another file, not an array.')
    return found


def checked_offsets(offsets: np.ndarray, where: str) -> np.ndarray:
    """Integers [n] of any type as int64, so that neither differences nor products wrap round.

    Raises:
      UserError: for other values; `where` names the array.
    """
    if offsets.dtype.kind not in 'iu' or offsets.ndim != 1:
        raise errors.UserError(
            f'{where} is {offsets.dtype} {list(offsets.shape)}, and must be a row of integers.'
        )
    return offsets.astype(np.int64)


def csv_rows(path: str, text: str, tabs: bool = False) -> tuple[list[str], list[Line]]:
    """The header of a CSV file, and the lines below it that are not blank.

    In one column of numbers a blank line is a missing value, unless only such lines follow.

    Args:
      path: for errors.
      tabs: whether values are all between two tabs, without quoting.

    Raises:
      UserError: naming the line, for what is no CSV, no row of values, or a column there twice.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a field may be a whole article
    form = dict(delimiter='\t', quoting=csv.QUOTE_NONE) if tabs else {}
    reader = csv.reader(io.StringIO(text.removeprefix(BOM), newline=''), strict=True, **form)
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise errors.UserError(f'{path}:{reader.line_num} is not CSV: {error}.') from error
    filled = [i for i, (_, row) in enumerate(lines) if row]
    if len(filled) < 2:
        raise errors.UserError(f'{path} needs a header row and at least one row of values.')
    (_, header), *lines = lines[filled[0] : filled[-1] + 1]
    if len(header) == 1 and all(is_number(value) for _, row in lines for value in row):
        lines = [(line, row or ['']) for line, row in lines]
    lines = [(line, row) for line, row in lines if row]
    if len(set(header)) < len(header):
        raise errors.UserError(f'{path}:1 names a column twice: {", ".join(header)}.')
    return header, lines


def whole_rows(path: str, text: str) -> tuple[list[str], list[list[str]]]:
    """`csv_rows` of which none is broken: the header, and the rows as they are written.

    Raises:
      UserError: as it does, and for a row of another length than the header's.
    """
    header, lines = csv_rows(path, text)
    for line, row in lines:
        if problem := _problem(row, header, ()):
            raise errors.UserError(f'{path}:{line} {problem}')
    return header, [row for _, row in lines]


def _selected(lines: list[Line], rows: str, without: Sequence[str], path: str) -> list[Line]:
    kept = np.zeros(len(lines), bool)
    kept[_indices(rows, len(lines), path)] = True
    for left_out in without:
        kept[_indices(left_out, len(lines), path)] = False
    return [lines[i] for i in np.flatnonzero(kept)]


def _indices(text: str, length: int, path: str) -> np.ndarray:
    """The indices below `length` in a slice such as '0:100' or '4::5'."""
    try:
        first, stop, *step = (int(part) if part else None for part in text.split(':'))
        return np.arange(length)[slice(first, stop, *step)]
    except (ValueError, TypeError) as error:
        raise errors.UserError(
            f'{path}: rows {text!r} are no slice START:STOP or START:STOP:STEP.'
        ) from error


def _problem(row: list[str], header: list[str], numeric: Sequence[tuple[str, int]]) -> str:
    """What is broken about a record, nothing if it is whole."""
    if len(row) != len(header):
        return (
            f'has {len(row)} values, the header has {len(header)} columns. Quote values that hold '
            'a comma.'
        )
    for name, place in numeric:
        try:
            number(row[place])
        except ValueError:
            return f'has {row[place]!r} in the column {name!r}, which is no finite number.'
    return ''


def arrays_digest(kind: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of arrays, with their names, types and shapes."""
    parts = [
        part
        for name, array in sorted(arrays.items())
        for part in (name, array.dtype.str, str(array.shape), array.tobytes())
    ]
    return digest(kind, *parts)
