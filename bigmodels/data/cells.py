"""Values of tables: what is missing, and numbers and texts that are the same however they came."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import narrowed

# Plain numbers that lose nothing as int64 or float32 columns. Not among them: 007, integers of 19
# digits or more, and 12e4, which may be identifiers; one such value makes its column text. So does
# an integer of 2**53 or more beside numbers that are none, since floats would round it.
_INTEGER = re.compile(r'[+-]?(0|[1-9][0-9]{0,17})')
_REAL = re.compile(
    r'(?![+-]?[0-9]+e[0-9])'
    r'[+-]?(((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf)',
    re.IGNORECASE,
)
# What stands for a value that is missing, in lower case and without blanks around it.
MISSING = ('', '?', 'na', 'nan', 'none', 'null')


def is_missing(value: Any) -> bool:
    """Whether a value of a record stands for none: None, NaN, or a text in MISSING."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (not _is_several(value) and bool(value != value))


def _is_several(value: Any) -> bool:
    return isinstance(value, list | tuple | dict) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )


def number(value: Any) -> float:
    """A value of a record as a finite number; NaN where it is missing.

    Raises:
      ValueError: if it is neither.
    """
    if is_missing(value):
        return float('nan')
    if _is_several(value) or (isinstance(value, str) and '_' in value):  # 1_000 is Python's
        raise ValueError('it is not a number')
    try:
        found = float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if np.isinf(found):
        raise ValueError('it is not finite')
    return found


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number, or missing."""
    try:
        number(value)
    except ValueError:
        return False
    return True


def text_of(value: Any) -> str:
    """A value of a record as the text of a category or an id; '' where it is missing.

    A number is the same text whatever type its column was read as: 5 is '5' as an integer, as 5.0
    and as '5.0'; others are rounded to float32. 12e4 stays as it is: it may be a part of a hash.

    Raises:
      UserError: for several values in one.
    """
    if is_missing(value):
        return ''
    if _is_several(value):
        raise errors.UserError(f'{value!r} are several values: a category or an id is one.')
    if isinstance(value, str):
        value = value.strip()
        if _INTEGER.fullmatch(value):
            return str(int(value))
        if not _REAL.fullmatch(value):
            return value
        value = float(value)
    if isinstance(value, float | np.floating) and np.isfinite(value):
        return str(int(value)) if float(value).is_integer() else str(np.float32(value))
    return str(value)


def numbers(values: Sequence[str]) -> np.ndarray:
    """A CSV column of `numeric` as float32."""
    return np.array([number(value) for value in values], np.float32)


def as_written(values: Sequence[str]) -> np.ndarray:
    """A CSV column of `text` as an object array of str."""
    return np.array(values, object)


def typed(values: Sequence[str]) -> np.ndarray:
    """A CSV column as int64, float32, float64, or an object array of str."""
    if all(_INTEGER.fullmatch(value) for value in values):
        return np.array([int(value) for value in values], np.int64)
    if all(_REAL.fullmatch(value) and not _is_large(value) for value in values):
        return narrowed(np.array([float(value) for value in values]))
    return as_written(values)


def _is_large(text: str) -> bool:
    """Whether a number is an integer that a float may round to another."""
    return bool(_INTEGER.fullmatch(text)) and abs(int(text)) >= 2**53
