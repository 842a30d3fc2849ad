"""Which of all items a user wants, by the product of two vectors."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import losses, metrics
from bigmodels.data.ids import Ids
from bigmodels.tasks.recommendation import HeldOut, Recommendation

USERS = 'users.json'


@dataclasses.dataclass(frozen=True)
class Retrieval(Recommendation):
    """Users and their histories -> items, against the other items of a batch.

    Fields:
      model: a `TwoTower`.
      loss: 'softmax' over the items of the batch, corrected for how often each is drawn (see
        `losses.in_batch_softmax`), or 'bpr', against each of them.
      min_user_count: users with fewer training interactions share row 0, as unknown ones do.
      user_ids: those of the training data, see `fit`.
    """

    loss: Literal['softmax', 'bpr'] = 'softmax'
    min_user_count: int = 10
    user_ids: Ids | None = None

    record_fields: ClassVar = {'items': 'ids', 'user': 'value'}
    vocab_key = 'num_items'
    compares_examples = True

    def fit(self, source: Sequence) -> 'Retrieval':
        """Learns the items and users there are, of training records."""
        records = self.records_of(source)
        counts = [len(record['items']) for record in records]
        # As objects, for integers below and above 2**63 together would become floats.
        users = np.repeat(np.array([record['user'] for record in records], object), counts)
        return super().fit(source)._with_users(Ids.fit(users, self.min_user_count))

    def save(self, directory: Path) -> None:
        """Writes the items, their titles and the users."""
        super().save(directory)
        self.user_ids.save(directory / USERS)

    def restored(self, directory: Path) -> 'Retrieval':
        """With what `save` wrote."""
        return super().restored(directory)._with_users(Ids.restore(directory / USERS))

    def _with_users(self, users: Ids) -> 'Retrieval':
        users.check_rows('model.num_users', self.model.num_users)
        return dataclasses.replace(self, user_ids=users)

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{'items': see `history_rows`, 'user' if any} -> {'inputs' int32 [L], 'users' int32}.

        No user, or an unknown one, is row 0. The inputs are the history, the latest first, and 0
        behind its end.
        """
        rows = self.history_rows(raw['items'])[::-1]
        history = np.zeros(self.history_length, np.int32)
        history[: len(rows)] = rows
        [user] = self.user_ids.rows([raw.get('user', '')])
        return {'inputs': history, 'users': user}

    def held_out(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`preprocess` of all items but the last, with that one as 'targets' int32."""
        *before, last = record['items']
        example = self.preprocess({'items': before, 'user': record['user']})
        return example | {'targets': self.item_ids.rows([last])[0]}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """In training each item of each history after those before it; else the last ones."""
        if not train:
            return HeldOut(source, self)
        records = self.records_of(source)
        users = self.user_ids.rows([record['user'] for record in records])
        histories = [self.item_ids.rows(record['items']) for record in records]
        return _Pairs.of(users, histories, self.history_length)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['users'], batch['inputs'], batch['targets'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """In training against the batch; in evaluation cross-entropy over all items, in nats.

        A held-out item that was not in the training data has no probability and does not count.
        """
        targets, weights = batch['targets'], batch['weights']
        if train:
            queries, items = self.model.apply(
                {'params': params}, batch['users'], batch['inputs'], targets,
                train=True, rngs={'dropout': rng},
            )  # fmt: skip
            loss = self._against_batch(queries @ items.T, targets, weights)
        else:
            products = self._products(params, batch)
            logits = jnp.where(self.is_item(products.shape[1]), products, -jnp.inf)
            loss = losses.softmax_cross_entropy(logits, jnp.maximum(targets, 1))
            weights = weights * (targets > 0)
        pairs = {'loss': metrics.pair(loss, weights)}
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def _against_batch(self, scores, targets, weights) -> jax.Array:
        """The loss [B] of scores [B, B]."""
        if self.loss == 'softmax':
            frequency = np.concatenate([[1], self.item_ids.counts]) / self.item_ids.counts.sum()
            log_frequency = jnp.asarray(np.log(frequency), jnp.float32)[targets]
            return losses.in_batch_softmax(scores, targets, log_frequency, weights)
        others = (targets[:, None] != targets) * weights
        each = losses.bpr(jnp.diagonal(scores)[:, None], scores)
        return (each * others).sum(1) / jnp.maximum(others.sum(1), 1)

    def _products(self, params, batch) -> jax.Array:
        """Queries [B, D] times all items, [B, V]."""
        variables = {'params': params}
        queries = self.model.apply(
            variables, batch['users'], batch['inputs'], method=self.model.queries
        )
        rows = jnp.arange(self.model.num_items)
        items = self.model.apply(variables, rows, method=self.model.items)
        return jnp.matmul(queries, items.T, precision='highest')  # which orders near ties

    def scores_of_items(self, params, batch) -> jax.Array:
        """The products of each query and all items, [B, V]; -inf for those seen."""
        return self.recommendable(self._products(params, batch), batch['inputs'])

    def targets_of(self, batch) -> jax.Array:
        """The rows of the held-out items, int [B]."""
        return batch['targets']

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {
            'model': f'two towers of {self.model.embed_dim}, {len(self.item_ids.names):,} items, '
            f'{len(self.user_ids.names):,} users'
        }


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Each item of each history, with those before it.

    Fields:
      rows: of all histories, one after the other, int32 [n].
      starts: where the history of each of them begins, int64 [n].
      users: of each of them, int32 [n].
      length: of a history in an example.
    """

    rows: np.ndarray
    starts: np.ndarray
    users: np.ndarray
    length: int

    @classmethod
    def of(cls, users: np.ndarray, histories: Sequence[np.ndarray], length: int) -> '_Pairs':
        sizes = np.array([len(rows) for rows in histories])
        starts = np.cumsum(sizes) - sizes
        rows = np.concatenate(histories)
        return cls(rows, np.repeat(starts, sizes), np.repeat(users, sizes), length)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, stacked."""
        before = indices[:, None] - 1 - np.arange(self.length)
        there = before >= self.starts[indices][:, None]
        return {
            'users': self.users[indices],
            'inputs': np.where(there, self.rows[np.maximum(before, 0)], 0),
            'targets': self.rows[indices],
        }
