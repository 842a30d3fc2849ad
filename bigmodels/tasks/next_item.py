"""The next item, from those before it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import text
from bigmodels.models.parts.settings import check_fixed
from bigmodels.tasks.recommendation import HeldOut, Recommendation

# Fields of the model, see `settings.check_fixed`.
FIXED = {
    'causal': (True, 'else each item would be told by the next place'),
    'moe': (None, 'nobody adds the losses that balance experts'),
}


@dataclasses.dataclass(frozen=True)
class NextItem(Recommendation):
    """Sequences of items -> a decoder's next-item loss (SASRec, Kang and McAuley 2018).

    The loss is over all items, in place of the paper's one sampled negative: that makes the model
    as good as later ones (Klenitskiy and Vasilev 2023). Row 0 stands before the first item, so that
    users without a history have an answer too.

    Fields:
      model: a causal `Transformer` over the items, whose vocabulary they are.
      loss_chunk: logits are computed for this many items at a time; 0 for all at once.
    """

    loss_chunk: int = 0

    vocab_key = 'vocab_size'

    def __post_init__(self):
        super().__post_init__()
        check_fixed(self.model, FIXED, 'model')
        if self.history_length > self.model.max_length:
            raise errors.UserError(
                f'config.task.history_length = {self.history_length} is longer than '
                f'config.model.max_length = {self.model.max_length}.'
            )

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{'items': see `history_rows`} -> {'inputs' int32 [L], 'weights' float32 [L]}.

        L is `history_length`; the weight of the last item is 1, all others are 0.
        """
        rows = np.concatenate([[0], self.history_rows(raw['items'])])[-self.history_length :]
        inputs = np.zeros(self.history_length, np.int32)
        inputs[: len(rows)] = rows
        weights = np.zeros(self.history_length, np.float32)
        weights[len(rows) - 1] = 1
        return {'inputs': inputs, 'weights': weights}

    def held_out(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`preprocess` of all items but the last, with that one as 'targets' int32 [L]."""
        *before, last = record['items']
        example = self.preprocess({'items': before})
        [target] = self.item_ids.rows([last])
        return example | {'targets': np.int32(example['weights']) * target}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """In training histories side by side in rows of `history_length`; else one of each."""
        if not train:
            return HeldOut(source, self)
        rows = [self.item_ids.rows(record['items']) for record in self.records_of(source)]
        return text.Packed(_Documents.of(rows), self.history_length)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one training example, which do not depend on the data."""
        shape = (self.history_length,)
        names = ('inputs', 'targets', 'positions', 'segment_ids')
        return {name: jax.ShapeDtypeStruct(shape, 'int32') for name in names} | {
            'weights': jax.ShapeDtypeStruct(shape, 'float32')
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy over all items in nats per item; in evaluation of the held-out ones.

        A held-out item that was not in the training data has no probability and does not count.
        """
        hidden = self._hidden(params, batch, rng, train)
        targets, weights = batch['targets'], batch['weights']
        if not train:
            hidden, targets, weights = (_at_last(x, batch) for x in (hidden, targets, weights))

        def of_hidden(hidden, targets):
            return losses.softmax_cross_entropy(self._logits(params, hidden), targets)

        known = weights * (targets > 0)
        targets = jnp.maximum(targets, 1)
        if self.loss_chunk and train:  # else there is one for each row
            loss = losses.chunked_over_tokens(of_hidden, hidden, targets, self.loss_chunk)
        else:
            loss = of_hidden(hidden, targets)
        pairs = {'loss': metrics.pair(loss, known)}
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def _hidden(self, params, batch, rng=None, train: bool = False) -> jax.Array:
        """The model's states [B, L, D]."""
        return self.model.apply(
            {'params': params},
            batch['inputs'],
            positions=batch.get('positions'),
            segment_ids=batch.get('segment_ids'),
            train=train,
            return_hidden=True,
            rngs={'dropout': rng} if train else {},
        )

    def _logits(self, params, hidden: jax.Array) -> jax.Array:
        """[..., V], -inf where there is no item."""
        logits = self.model.logits(params, hidden)
        return jnp.where(self.is_item(logits.shape[-1]), logits, -jnp.inf)

    def scores_of_items(self, params, batch) -> jax.Array:
        """The logarithm of each item's probability to be next, [B, V]; -inf for those seen."""
        logits = self._logits(params, _at_last(self._hidden(params, batch), batch))
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        return self.recommendable(log_p, batch['inputs'])

    def targets_of(self, batch) -> jax.Array:
        """The rows of the held-out items, int [B]."""
        return _at_last(batch['targets'], batch)

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of items in a batch, and their unit."""
        return math.prod(shapes['inputs'].shape), 'items'

    def flops_per_step(self, params, shapes) -> float:
        """Model FLOPs of one training step, causal convention."""
        count, _ = self.items(shapes)
        return count * self.model.flops_per_token(params, self.history_length)

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        m = self.model
        return {
            'model': f'Transformer, {m.num_layers} layers, embed {m.embed_dim}, {m.num_heads} '
            f'heads, {len(self.item_ids.names):,} items'
        }


def _at_last(x: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """x [B, L, ...] at the last item of each history, [B, ...]."""
    return x[jnp.arange(len(x)), batch['weights'].argmax(1)]


@dataclasses.dataclass(frozen=True)
class _Documents:
    """Histories one after the other, row 0 before each, as `text.Packed` takes them."""

    tokens: np.ndarray
    offsets: np.ndarray
    learnt: None = None  # all are

    @classmethod
    def of(cls, histories: Sequence[np.ndarray]) -> '_Documents':
        sizes = [len(rows) + 1 for rows in histories]
        tokens = np.concatenate([part for rows in histories for part in (np.int32([0]), rows)])
        return cls(tokens, np.concatenate([[0], np.cumsum(sizes)]))
