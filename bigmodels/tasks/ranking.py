"""Whether a user will like an item."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import table_encoding
from bigmodels.data.ids import Ids
from bigmodels.data.table_encoding import Scale, scale_of
from bigmodels.scores.classification import roc_auc
from bigmodels.tasks.base import Defaults, Examples, array_of, columns_of, described, field_of

NUMBERS = 'numbers.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """What training records say of ids and numbers.

    Fields:
      ids: of each category.
      scale: of the numbers [N].
    """

    ids: Mapping[str, Ids]
    scale: Scale

    def save(self, directory: Path) -> None:
        """Writes JSON files, one for each category and one of the numbers."""
        for name, ids in self.ids.items():
            ids.save(directory / f'ids_{name}.json')
        self.scale.save(directory / NUMBERS)

    @classmethod
    def restore(cls, directory: Path, categories: Sequence[str]) -> 'Encoding':
        """What `save` wrote."""
        ids = {name: Ids.restore(directory / f'ids_{name}.json') for name in categories}
        return cls(ids, Scale.restore(directory / NUMBERS))


@dataclasses.dataclass(frozen=True)
class Ranking(Defaults):
    """Interactions -> the probability that the rating is at least `threshold`.

    Fields:
      model: inputs [B, N] and categories int [B, C] -> logits [B], such as `DLRM`, with the
        field `category_sizes`.
      categories: the record's fields that are ids, such as users and items.
      counts, numbers: its fields that are numbers; the model sees them with mean 0 and standard
        deviation 1 over the training data, and counts as log(1 + count).
      rating: its field that is judged.
      min_count: ids with fewer training records share row 0, as unknown ones do.
      encoding: see `fit`.
    """

    model: nn.Module
    categories: tuple[str, ...] = ('user', 'item')
    counts: tuple[str, ...] = ('user_count', 'item_count')
    numbers: tuple[str, ...] = ('user_mean', 'item_mean')
    rating: str = 'rating'
    threshold: float = 8.0
    min_count: int = 5
    encoding: Encoding | None = None

    score_names = ('auc',)
    target_keys = ('rating',)

    def __post_init__(self):
        if len(self.model.category_sizes) != len(self.categories):
            raise errors.UserError(
                f'model.category_sizes has {len(self.model.category_sizes)} sizes, and '
                f'task.categories names {len(self.categories)}: {", ".join(self.categories)}.'
            )
        if not self.counts and not self.numbers:
            raise errors.UserError('task.counts and task.numbers are both empty: name a field.')

    def fit(self, source: Sequence) -> 'Ranking':
        """Learns the ids there are and the numbers' statistics, of training records."""
        fields = ('categories', 'counts', 'numbers')
        with errors.told_of(described(source)):
            columns = columns_of(source, {f'task.{key}': getattr(self, key) for key in fields})
            ids = {name: Ids.fit(columns[name], self.min_count) for name in self.categories}
            scale = scale_of(self._values(columns))
        return self._with(Encoding(ids, scale))

    def save(self, directory: Path) -> None:
        """Writes the encoding."""
        self.encoding.save(directory)

    def restored(self, directory: Path) -> 'Ranking':
        """With what `save` wrote."""
        return self._with(Encoding.restore(directory, self.categories))

    def _with(self, encoding: Encoding) -> 'Ranking':
        for i, name in enumerate(self.categories):
            key = f'model.category_sizes[{i}]'
            encoding.ids[name].check_rows(key, self.model.category_sizes[i])
        return dataclasses.replace(self, encoding=encoding)

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, name -> kind."""
        return dict.fromkeys((*self.categories, *self.counts, *self.numbers), 'value')

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record, or several stacked -> {'inputs' [..., N], 'categories' int32 [..., C]}.

        Also 'targets' float32 [...], 0 or 1, where there is a rating. An unknown id is row 0.

        Raises:
          UserError: for a record without one of the fields, or with a number that is missing
            or not finite.
        """
        rows = [self.encoding.ids[name].rows(np.atleast_1d(field_of(raw, name)))
                for name in self.categories]  # fmt: skip
        numbers = self.encoding.scale.standardised(self._values(raw))
        self._check_sizes([*rows, numbers[..., 0]])
        categories = np.stack(rows, -1).reshape(*numbers.shape[:-1], -1)
        example = {'inputs': numbers, 'categories': categories}
        if self.rating in raw:
            ratings = table_encoding.numbers(np.atleast_1d(raw[self.rating]), self.rating)
            if np.isnan(ratings).any():
                raise errors.UserError(f'The field {self.rating} has no value.')
            self._check_sizes([ratings, numbers[..., 0]])
            liked = (ratings >= self.threshold).reshape(numbers.shape[:-1])
            example['targets'] = np.float32(liked)
        return example

    def _values(self, raw: Mapping[str, Any]) -> np.ndarray:
        """Counts, as logarithms, and numbers, float64 [..., N]."""

        def numbers(name: str) -> np.ndarray:
            value = array_of(raw, name, dtype=np.float64)
            if not np.isfinite(value).all():
                raise errors.UserError(f'The field {name} has a value that is not finite.')
            return value

        counts = [*map(numbers, self.counts)]
        for name, values in zip(self.counts, counts, strict=True):
            if (values < 0).any():
                raise errors.UserError(f'The field {name}, a count, has a negative value.')
        columns = [*map(np.log1p, counts), *map(numbers, self.numbers)]
        self._check_sizes(columns)
        return np.stack(columns, -1)

    def _check_sizes(self, columns: Sequence[np.ndarray]) -> None:
        if len({column.size for column in columns}) > 1:
            names = ', '.join((*self.categories, *self.counts, *self.numbers, self.rating))
            raise errors.UserError(f'The fields {names} must have one value each.')

    def postprocess(self, prediction: np.ndarray) -> dict[str, float]:
        """A probability -> {'probability'}."""
        return {'probability': float(prediction)}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record."""
        return Examples(source, self)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'], batch['categories'])

    def _logits(self, params, batch, rng=None, train: bool = False) -> jax.Array:
        inputs = batch['inputs'], batch['categories']
        rngs = {'dropout': rng} if train else {}
        return self.model.apply({'params': params}, *inputs, train=train, rngs=rngs)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats, and accuracy."""
        logits = self._logits(params, batch, rng, train)
        loss = losses.binary_cross_entropy(logits, batch['targets'])
        pairs = {
            'loss': metrics.pair(loss, batch['weights']),
            'accuracy': metrics.pair((logits > 0) == (batch['targets'] > 0), batch['weights']),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B]."""
        return jax.nn.sigmoid(self._logits(params, batch))

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """Logits and targets, [B]."""
        return {'logits': self._logits(params, batch), 'targets': batch['targets']}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The area under the ROC curve."""
        return {'auc': roc_auc(outcomes['targets'] > 0, outcomes['logits'])}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        sizes = ', '.join(
            f'{len(ids.names):,} of {name}' for name, ids in self.encoding.ids.items()
        )
        return {'model': f'{type(self.model).__name__}, ids: {sizes}'}
