"""From the columns of a table to arrays for a model: what training records say of each column.

Axes: n records, N numeric columns, C categorical ones.
"""

import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import numpy as np

from bigmodels import errors
from bigmodels.data.cells import number, text_of

UNKNOWN = 0  # the code, in every column, of a category that training has not or hardly seen
KNOTS = 1000  # at most, of a numeric column's scale


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the columns of a table become numbers; made by `fit`, the same wherever it is used.

    A number becomes its normal score: the standard normal quantile at its mid-rank among the
    training values, so that ties, such as many zeros, have the middle of their ranks. Between
    the kept values (at most KNOTS) it is linear, outside of them constant.

    A category becomes the place of its text in the column's list, and UNKNOWN where it is not
    there; numbers, also those written as text, are categories by their shortest text, and a
    missing value is the category ''. Codes of all columns are numbered through, for one table of
    embeddings.

    Fields:
      knots: numeric column -> (ascending values, their scores).
      categories: categorical column -> its texts, without the unknown one.
      missing: what a missing number is: an error, or ('impute') the median's score and, as a
        category of its own column beside the categorical ones, the fact.
    """

    knots: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    categories: Mapping[str, Sequence[str]]
    missing: Literal['refuse', 'impute']

    @property
    def num_categories(self) -> int:
        """The number of codes over all columns."""
        indicators = 2 * len(self.knots) if self.missing == 'impute' else 0
        return sum(len(known) + 1 for known in self.categories.values()) + indicators

    def encode(self, columns: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """Columns of n values -> {'inputs': float32 [n, N], 'categories': int32 [n, C]}.

        Raises:
          UserError: for a column that is not there, and a value that is no number or missing
            where it must not be; names the column, and the record by its place in the columns.
        """
        for name in (*self.knots, *self.categories):
            if name not in columns:
                raise errors.unknown('column: the table lacks', name, columns)
        scores, codes = [], []
        start = 0
        for name, known in self.categories.items():
            places = {text_of(text): i for i, text in enumerate(known, UNKNOWN + 1)}
            column = [places.get(text_of(value), UNKNOWN) for value in columns[name]]
            codes.append(np.array(column, np.int32) + start)
            start += len(known) + 1
        for name, (values, normal) in self.knots.items():
            column = numbers(columns[name], name)
            absent = np.isnan(column)
            if self.missing == 'impute':
                codes.append(absent.astype(np.int32) + start)
                start += 2
            elif absent.any():
                raise errors.UserError(
                    f'The column {name!r} has no value in record {absent.argmax()}. Fill it in, '
                    'leave the record out, or train with task.missing = "impute".'
                )
            column = np.where(absent, values[np.abs(normal).argmin()], column)  # the median
            scores.append(np.interp(column, values, normal))
        count = len(next(iter(columns.values())))
        return {
            'inputs': _stacked(scores, count, np.float32),
            'categories': _stacked(codes, count, np.int32),
        }

    def save(self, path: pathlib.Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + '\n')


def fit(
    columns: Mapping[str, Sequence],
    numeric: Sequence[str],
    categorical: Sequence[str],
    min_count: int = 1,
    missing: Literal['refuse', 'impute'] = 'refuse',
) -> Encoding:
    """The encoding that training records give.

    Args:
      columns: name -> n values.
      numeric, categorical: the columns to encode.
      min_count: a category of fewer records is as an unknown one, whose embedding is so trained.

    Raises:
      UserError: for a column that is not there, or a numeric one with other values or none.
    """
    for name in (*numeric, *categorical):
        if name not in columns:
            raise errors.unknown('column: the table lacks', name, columns)
    categories = {}
    for name in categorical:
        counts = collections.Counter(map(text_of, columns[name]))
        categories[name] = sorted(text for text, count in counts.items() if count >= min_count)
    knots = {name: normal_scores(numbers(columns[name], name), name) for name in numeric}
    return Encoding(knots, categories, missing)


def restore(path: pathlib.Path) -> Encoding:
    """The encoding that `save` wrote."""
    return Encoding(**json.loads(path.read_text()))


@dataclasses.dataclass(frozen=True)
class Scale:
    """Means and standard deviations of columns [C], as training has them."""

    means: Sequence[float]
    deviations: Sequence[float]

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Values [..., C] with mean 0 and deviation 1, float32."""
        return ((values - np.array(self.means)) / np.array(self.deviations)).astype(np.float32)

    def restored(self, values: jax.Array) -> jax.Array:
        """Standardised values [..., C] in their own units."""
        return values * np.float32(self.deviations) + np.float32(self.means)

    def save(self, path: pathlib.Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + '\n')

    @classmethod
    def restore(cls, path: pathlib.Path) -> 'Scale':
        """What `save` wrote."""
        return cls(**json.loads(path.read_text()))


def scale_of(values: np.ndarray) -> Scale:
    """The scale of values [n, C]; a column of equal values is only centred."""
    varies = values.min(0) < values.max(0)  # a deviation of equal values is rounded, and not 0
    deviations = np.where(varies, values.std(0), 1)
    return Scale(np.where(varies, values.mean(0), values[0]).tolist(), deviations.tolist())


def normal_scores(values: np.ndarray, name: str) -> tuple[list[float], list[float]]:
    """Ascending distinct values of a column, at most KNOTS, and the normal scores of their ranks.

    Args:
      values: float64 [n]; NaN is left out.
      name: of the column, for errors.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        raise errors.UserError(f'The column {name!r} has no number in any training record.')
    distinct, counts = np.unique(values, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(values)
    if len(distinct) > KNOTS:
        evenly = np.linspace(ranks[0], ranks[-1], KNOTS)
        kept = np.unique(np.searchsorted(ranks, evenly).clip(max=len(ranks) - 1))
        distinct, ranks = distinct[kept], ranks[kept]
    quantile = statistics.NormalDist().inv_cdf
    return distinct.tolist(), [quantile(rank) for rank in ranks.tolist()]


def numbers(values: Sequence, name: str) -> np.ndarray:
    """A column as float64 [n], NaN where a value is missing.

    Raises:
      UserError: for a value that is no finite number, and for what is no column.
    """
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str | bytes):
        raise errors.UserError(f'The column {name!r} is {values!r}, wanted several numbers.')
    if isinstance(values, np.ndarray) and values.dtype.kind in 'iuf':
        found = values.astype(np.float64)
        if not np.isinf(found).any():
            return found
    found = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            found[i] = number(value)
        except ValueError as error:
            shown = repr(value) if isinstance(value, str) else value
            raise errors.UserError(
                f'The column {name!r} has {shown} in record {i}, which is no finite number.'
            ) from error
    return found


def _stacked(columns: Sequence[np.ndarray], count: int, dtype) -> np.ndarray:
    """[n, columns], also of no columns."""
    return np.stack(columns, axis=1).astype(dtype) if columns else np.zeros((count, 0), dtype)
