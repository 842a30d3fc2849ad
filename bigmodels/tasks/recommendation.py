"""What the tasks that recommend items to users share: their ids, their lists and the figures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors
from bigmodels.data.ids import Ids
from bigmodels.data.sources import interaction_sources, table_sources
from bigmodels.scores import ranking
from bigmodels.tasks.base import Defaults, described, field_of

ITEMS, TITLES = 'items.json', 'titles.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of the training data, and the titles of those that have one."""

    ids: Ids
    titles: Mapping[str, str]

    def save(self, directory: Path) -> None:
        """Writes two JSON files."""
        self.ids.save(directory / ITEMS)
        (directory / TITLES).write_text(json.dumps(self.titles, ensure_ascii=False))

    @classmethod
    def restore(cls, directory: Path) -> 'Catalogue':
        """What `save` wrote."""
        titles = json.loads((directory / TITLES).read_text())
        return cls(Ids.restore(directory / ITEMS), titles)


def read_titles(path: str, columns: tuple[str, str], items: Ids) -> dict[str, str]:
    """The titles of `items` in a CSV file, whose columns of ids and of titles are named."""
    table = table_sources.Csv(path)
    values = table.take(np.arange(len(table)))
    for name in columns:
        if name not in values:
            raise errors.unknown(f'column of {path}', name, values)
    ids = interaction_sources.identifiers(values[columns[0]], columns[0], path)
    known = set(items.names)
    pairs = zip(ids, values[columns[1]], strict=True)
    return {item: str(title) for item, title in pairs if item in known}


@dataclasses.dataclass(frozen=True)
class Recommendation(Defaults):
    """Histories of users -> the items that come next.

    A subclass has `scores_of_items(params, batch) -> [B, V]`, in which -inf is an item that is not
    recommended: never those that the user has had, as far as the example tells.

    Fields:
      model: see the task.
      history_length: the latest items of a user that are looked at.
      count: of items in an answer.
      titles: a CSV file with the titles of items, '' for none; read when a run begins.
      title_columns: those of its ids and titles.
      catalogue: see `fit`. A history's items that are not in it are left out; a held-out one
        counts as never found.
    """

    model: nn.Module
    history_length: int
    count: int = 10
    titles: str = ''
    title_columns: tuple[str, str] = ('item_id', 'title')
    catalogue: Catalogue | None = None

    score_names = ('ndcg@10', 'hit_rate@10', 'mrr', 'hit_rate@100')
    record_fields: ClassVar = {'items': 'ids'}  # what `preprocess` needs, name -> kind
    vocab_key = ''  # the model's field of its number of items

    def __post_init__(self):
        if self.history_length < 1:
            raise errors.UserError(
                f'config.task.history_length = {self.history_length} must be at least 1.'
            )

    def fit(self, source: Sequence) -> 'Recommendation':
        """Learns the items there are, of training records."""
        # As objects, for an empty list beside integers makes floats of them, which round large ids.
        items = [np.asarray(record['items'], object) for record in self.records_of(source)]
        ids = Ids.fit(np.concatenate(items))
        titles = read_titles(self.titles, self.title_columns, ids) if self.titles else {}
        return self._with(Catalogue(ids, titles))

    def save(self, directory: Path) -> None:
        """Writes the items and their titles."""
        self.catalogue.save(directory)

    def restored(self, directory: Path) -> 'Recommendation':
        """With what `save` wrote."""
        return self._with(Catalogue.restore(directory))

    def _with(self, catalogue: Catalogue) -> 'Recommendation':
        catalogue.ids.check_rows(f'model.{self.vocab_key}', getattr(self.model, self.vocab_key))
        return dataclasses.replace(self, catalogue=catalogue)

    @property
    def item_ids(self) -> Ids:
        """Those of the catalogue."""
        return self.catalogue.ids

    def records_of(self, source: Sequence) -> list[Mapping[str, Any]]:
        """All records of a source; UserError where there are none, or one is not as `checked`."""
        with errors.told_of(described(source)):
            if not len(source):
                raise errors.UserError('There are no records.')
            return [self.checked(source[i]) for i in range(len(source))]

    def checked(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """A source's record, which has the `record_fields`.

        Raises:
          UserError: if it lacks one of them.
        """
        for name in self.record_fields:
            field_of(record, name)
        return record

    def history_rows(self, items: Sequence | np.ndarray | str | int | None) -> np.ndarray:
        """The rows of a history's known items, the latest `history_length` of them, int32 [n].

        Args:
          items: ids, the latest last; or these in one text, separated by commas or blanks; or a
            number, which is the only one; or None, for no history.
        """
        if items is None:
            items = ()
        elif isinstance(items, str):
            items = items.replace(',', ' ').split()
        rows = self.item_ids.rows(items if np.iterable(items) else [items])
        return rows[rows > 0][-self.history_length :]

    def held_out(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record of a history whose last item is to be found -> an example."""
        raise NotImplementedError

    def is_item(self, rows: int) -> np.ndarray:
        """bool [rows]: which rows of the model's table are items; all of a task not yet fitted."""
        stop = rows if self.catalogue is None else self.item_ids.num_rows
        return (np.arange(rows) > 0) & (np.arange(rows) < stop)

    def recommendable(self, scores: jax.Array, seen: jax.Array) -> jax.Array:
        """scores [B, V] with -inf at unknown items and at those of seen int [B, L], rows."""
        scores = jnp.where(self.is_item(scores.shape[1]), scores, -jnp.inf)
        return jax.vmap(lambda row, had: row.at[had].set(-jnp.inf))(scores, seen)

    def predict(self, params, model_state, batch) -> dict[str, jax.Array]:
        """The best items of each example: {'rows' int32, 'scores' float32 [B, count]}."""
        scores = self.scores_of_items(params, batch)
        values, rows = jax.lax.top_k(scores, min(self.count, scores.shape[1]))
        return {'rows': rows, 'scores': values}

    def postprocess(self, prediction: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """What `predict` gives of one example -> [{'item', 'title' if known, 'score'}]."""
        answer = []
        for row, score in zip(prediction['rows'], prediction['scores'], strict=True):
            if score == -np.inf:  # there are no more items
                break
            item = self.item_ids.names[row - 1]
            titles = self.catalogue.titles
            title = {'title': titles[item]} if item in titles else {}
            answer.append({'item': item, **title, 'score': float(score)})
        return answer

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """Where each example's held-out item is in the list of all."""
        targets = self.targets_of(batch)
        return {'place': ranking.places(self.scores_of_items(params, batch), targets)}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The figures of `score_names`."""
        places = outcomes['place']
        return {
            'ndcg@10': ranking.ndcg(places, 10),
            'hit_rate@10': ranking.hit_rate(places, 10),
            'mrr': ranking.mean_reciprocal_rank(places),
            'hit_rate@100': ranking.hit_rate(places, 100),
        }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The examples of held-out records, see `Recommendation.held_out`."""

    source: Sequence
    task: Recommendation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            record = self.task.checked(self.source[index])
            if not len(record['items']):
                raise errors.UserError('There is no item to hold out.')
            return self.task.held_out(record)
        except errors.UserError as error:
            raise errors.UserError(f'{described(self.source)}, record {index}: {error}') from error
