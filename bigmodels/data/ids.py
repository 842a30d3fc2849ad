"""The ids of users, items or categories that were seen in training, as rows of a table."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from bigmodels import errors
from bigmodels.data.cells import text_of

UNKNOWN = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Ids:
    """Id <-> row: `names[i]` has row i + 1, the most frequent first; row 0 is any other id.

    Fields:
      names: the ids as text, see `text_of`.
      counts: how often each was seen, int64 [len(names)].
    """

    names: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def fit(cls, seen: np.ndarray, min_count: int = 1) -> 'Ids':
        """Those that occur at least `min_count` times among `seen`, numbers or text.

        Raises:
          UserError: if there is none.
        """
        values, counts = np.unique(np.asarray(seen, str), return_counts=True)
        # What `text_of` makes one, 5 and 5.0, is one.
        names, places = np.unique([text_of(value) for value in values], return_inverse=True)
        counts = np.bincount(places, counts, len(names)).astype(np.int64)
        order = np.argsort(-counts, kind='stable')
        order = order[counts[order] >= min_count]
        if not len(order):
            raise errors.UserError(f'No id occurs {min_count} times or more in the training data.')
        return cls(tuple(names[order].tolist()), counts[order])

    @property
    def num_rows(self) -> int:
        """Those of a table for these ids, with the row of unknown ones."""
        return len(self.names) + 1

    def rows(self, names: Iterable[Any]) -> np.ndarray:
        """int32 [n] of ids, text or numbers; UNKNOWN for one whose text is not among `names`."""
        row_of = self._rows
        return np.array([row_of.get(text_of(name), UNKNOWN) for name in names], np.int32)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {text_of(name): row for row, name in enumerate(self.names, 1)}

    def check_rows(self, key: str, rows: int) -> None:
        """Raises UserError if a model's table, of config key `key`, is too small for them."""
        if rows < self.num_rows:
            raise errors.UserError(
                f'The training data has {len(self.names):,} ids and one row is for unknown ones, '
                f'but config.{key} is {rows:,}: set it to at least {self.num_rows:,}.'
            )

    def save(self, path: pathlib.Path) -> None:
        """Writes them as JSON."""
        content = {'names': self.names, 'counts': self.counts.tolist()}
        path.write_text(json.dumps(content, ensure_ascii=False))

    @classmethod
    def restore(cls, path: pathlib.Path) -> 'Ids':
        """What `save` wrote."""
        content = json.loads(path.read_text())
        return cls(tuple(content['names']), np.array(content['counts'], np.int64))
