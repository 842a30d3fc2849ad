"""Random-access sources of interactions, of users who rated items: singly, or as histories.

Both read a CSV file with a header row, plain or `.gz`, and order its rows by time, those of the
same time as the file has them. A split is a function of the file and the settings alone:

- `leave_one_out`: of every user with at least three interactions the last one is 'test' and the one
  before it 'valid'; all others are 'train';
- `time`: of all interactions in their order, the first `fractions[0]` are 'train', those up to
  `fractions[1]` are 'valid', the rest is 'test'.

No record holds anything that comes after it.
"""

import dataclasses
import json
from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index, digest, table_sources

Split = Literal['train', 'valid', 'test']
SplitBy = Literal['leave_one_out', 'time']
SPLITS = ('train', 'valid', 'test')
LEAST_TO_HOLD_OUT = 3  # interactions of a user of whom the last two are held out
PRIOR_WEIGHT = 5.0  # ratings that a mean of few is drawn to the mean of all by


@dataclasses.dataclass(frozen=True)
class Log:
    """Interactions in order of time, and the split of each.

    Fields:
      user, item: str [n] arrays of objects.
      rating: float32 [n].
      timestamp: int64 [n], in the file's unit.
      split: int8 [n], a place in SPLITS.
      described: of the file, in words.
      fingerprint: of the file and the split.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    split: np.ndarray
    described: str
    fingerprint: str


def read(
    path: str,
    columns: tuple[str, str, str, str],
    rating_range: tuple[float, float],
    split_by: SplitBy,
    fractions: tuple[float, float],
) -> Log:
    """The interactions of a CSV file.

    Args:
      columns: the names of those of users, items, ratings and times.
      rating_range: the lowest and the highest rating there can be.
      split_by, fractions: see above.

    Raises:
      UserError: for a missing column, an id that is a broken number, a time that is no integer, and
        a rating that is no number or out of range.
    """
    table = table_sources.Csv(path)
    values = table.take(np.arange(len(table)))
    for name in columns:
        if name not in values:
            raise errors.unknown(f'column of {path}', name, values)
    user, item, rating, timestamp = (values[name] for name in columns)
    user, item = identifiers(user, columns[0], path), identifiers(item, columns[1], path)
    rating = _checked_ratings(rating, rating_range, f'{columns[2]} of {path}')
    if timestamp.dtype != np.int64:
        raise errors.UserError(f'The column {columns[3]} of {path} must be integers, of time.')
    order = np.argsort(timestamp, kind='stable')
    user, item, rating, timestamp = (x[order] for x in (user, item, rating, timestamp))
    split = _by_time(len(user), fractions) if split_by == 'time' else _leave_one_out(user)
    settings = json.dumps([columns, split_by, fractions if split_by == 'time' else None])
    return Log(
        user,
        item,
        rating,
        timestamp,
        split,
        f'{path}, split by {split_by}',
        digest('interactions', table.fingerprint(), settings),
    )


def identifiers(column: np.ndarray, name: str, path: str) -> np.ndarray:
    """A column of ids as an array of str objects; integers are written in decimal.

    Raises:
      UserError: for a column of broken numbers, and for an empty id.
    """
    if column.dtype.kind == 'f':
        raise errors.UserError(
            f'The column {name} of {path} is of broken numbers; ids must be integers or text.'
        )
    ids = column.astype(str).astype(object)
    empty = np.flatnonzero(ids == '')
    if len(empty):
        raise errors.UserError(f'{path}, record {empty[0]}: {name} is empty.')
    return ids


def _checked_ratings(column: np.ndarray, limits: tuple[float, float], where: str) -> np.ndarray:
    """A column of ratings as float32."""
    ratings = np.empty(len(column), np.float32)
    for i, value in enumerate(column):
        try:
            ratings[i] = value
        except ValueError as error:
            raise errors.UserError(f'{where}, record {i}: {value!r} is no number.') from error
    low, high = limits
    outside = np.flatnonzero(~((ratings >= low) & (ratings <= high)))  # NaN as well
    if len(outside):
        raise errors.UserError(
            f'{where}, record {outside[0]}: the rating {ratings[outside[0]]:g} is not from {low:g} '
            f'to {high:g}, as rating_range says.'
        )
    return ratings


def _by_time(count: int, fractions: tuple[float, float]) -> np.ndarray:
    first, second = fractions
    if not 0 < first <= second <= 1:
        raise errors.UserError(
            f'fractions = {fractions} must be (first, second) with 0 < first <= second <= 1, such '
            'as (0.8, 0.9).'
        )
    limits = [int(first * count), int(second * count)]
    return np.searchsorted(limits, np.arange(count), side='right').astype(np.int8)


def _leave_one_out(user: np.ndarray) -> np.ndarray:
    _, number, counts = np.unique(user, return_inverse=True, return_counts=True)
    place, _ = _places(number)
    from_end = counts[number] - 1 - place
    held_out = np.where(counts[number] >= LEAST_TO_HOLD_OUT, 2 - from_end, 0)
    return np.maximum(held_out, 0).astype(np.int8)


def _places(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place int64 [n] of each row among those of its group, an order that has groups together)."""
    order = np.argsort(group, kind='stable')
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(starts, sizes)
    return place, order


class Interactions(table_sources.Columns):
    """One record for each interaction of a split, in order of time.

    Record: {'user', 'item': str, 'rating': float32, 'timestamp': int64}, and of the ratings before
    it, held-out ones as well: {'user_count', 'item_count': float32}, of this user and of this item,
    and {'user_mean', 'item_mean': float32}, each drawn to the mean of all before it as if by five
    more of that, which is itself drawn to 0 alike.
    """

    def __init__(
        self,
        path: str,
        split: Split = 'train',
        split_by: SplitBy = 'time',
        fractions: tuple[float, float] = (0.8, 0.9),
        columns: tuple[str, str, str, str] = ('user_id', 'item_id', 'rating', 'timestamp'),
        rating_range: tuple[float, float] = (0.0, 10.0),
    ):
        log = read(path, columns, rating_range, split_by, fractions)
        kept = log.split == SPLITS.index(split)
        if not kept.any():
            raise errors.UserError(f'{log.described}: no interaction is in {split!r}.')
        every = {
            'user': log.user,
            'item': log.item,
            'rating': log.rating,
            'timestamp': log.timestamp,
        }
        earlier = _mean_before(log.rating, np.zeros(len(log.rating), np.int64), 0)[1]
        for name in ('user', 'item'):
            _, number = np.unique(every[name], return_inverse=True)
            counts, means = _mean_before(log.rating, number, earlier)
            every |= {f'{name}_count': counts, f'{name}_mean': means}
        super().__init__({name: column[kept] for name, column in every.items()})
        self._description = f'interactions {log.described}, {split}: {len(self):,}'
        self._fingerprint = digest(log.fingerprint, split)

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return self._description


def _mean_before(
    ratings: np.ndarray, group: np.ndarray, prior: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """The number and the mean, drawn to `prior`, of the ratings before each in its group."""
    place, order = _places(group)
    sums = np.cumsum(ratings[order], dtype=np.float64) - ratings[order]
    before = np.empty(len(ratings))
    before[order] = sums - np.repeat(sums[place[order] == 0], np.bincount(group))
    means = (before + PRIOR_WEIGHT * prior) / (place + PRIOR_WEIGHT)
    return place.astype(np.float32), means.astype(np.float32)


class Histories:
    """What users had, one after the other.

    Of 'train' one record for each user, of the training interactions; of 'valid' and 'test' one
    for each held-out interaction: what its user had before it, and as the last item itself. One
    whose user had nothing before is left out, and counted in the description.

    Record: {'user': str, 'items': str [n] array of objects, 'ratings': float32 [n], 'timestamps':
    int64 [n]}.
    """

    def __init__(
        self,
        path: str,
        split: Split = 'train',
        split_by: SplitBy = 'leave_one_out',
        fractions: tuple[float, float] = (0.8, 0.9),
        columns: tuple[str, str, str, str] = ('user_id', 'item_id', 'rating', 'timestamp'),
        rating_range: tuple[float, float] = (0.0, 10.0),
    ):
        log = read(path, columns, rating_range, split_by, fractions)
        _, number = np.unique(log.user, return_inverse=True)
        place, order = _places(number)
        self._users, self._items = log.user[order], log.item[order]
        self._ratings, self._timestamps = log.rating[order], log.timestamp[order]
        chosen = log.split[order] == SPLITS.index(split)
        last = np.flatnonzero(chosen)
        if split == 'train':  # the training interactions of a user come before the others
            ends = np.append(number[order][last][1:] != number[order][last][:-1], True)
            last, cold = last[ends[: len(last)]], 0
        else:
            cold = (place[order][last] == 0).sum()
            last = last[place[order][last] > 0]
        if not len(last):
            raise errors.UserError(f'{log.described}: no user has a history in {split!r}.')
        self._starts, self._stops = last - place[order][last], last + 1
        without = f', {cold:,} left out: their users have no history' if cold else ''
        self._description = f'histories {log.described}, {split}: {len(self):,}{without}'
        self._fingerprint = digest(log.fingerprint, 'histories', split)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        span = slice(self._starts[i], self._stops[i])
        return {
            'user': self._users[span.start],
            'items': self._items[span],
            'ratings': self._ratings[span],
            'timestamps': self._timestamps[span],
        }

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return self._description
