"""Answers that are preferred to others: direct preference optimisation."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from bigmodels import adapters, errors, losses, metrics
from bigmodels.data import chat
from bigmodels.tasks.base import Examples
from bigmodels.tasks.chat import Chat, shifted


@dataclasses.dataclass(frozen=True)
class Preference(Chat):
    """Pairs of `sources.chat_sources.Preferences` -> DPO's loss (Rafailov et al. 2023, eq. 7).

    The reference is the frozen base: the same params without their adapters, in the same step. So
    it needs `config.adapter`, no second model, and no probabilities computed ahead. What experts
    add to other losses is left out. Fields beside those of `Chat`:
      beta: how far the model may move from the reference; larger is less.
    """

    label_smoothing: ClassVar = 0.0
    z_loss: ClassVar = 0.0
    score_names: ClassVar = ()
    scored: ClassVar = 0
    answer_tokens: ClassVar = 0
    compares_with_base: ClassVar = True
    alike_in_teacher: ClassVar = None

    beta: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.beta <= 0:
            raise errors.UserError(f'task.beta = {self.beta} must be positive.')

    def _texts(self, record: Mapping[str, Any]) -> Sequence[str]:
        return [piece for name in ('chosen', 'rejected') for piece, _ in chat.pieces(record[name])]

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs', 'targets' int32 [2, L], 'weights' float32 [2, L]}, chosen first.

        Weights are 1 for the tokens of the last answer.
        """
        both = []
        for name in ('chosen', 'rejected'):
            ids, learnt = self.encoded(raw[name])
            last = np.arange(len(ids)) > np.flatnonzero(~learnt)[-1]
            if not last.any():
                raise errors.UserError(
                    f'The {name} answer to {raw[name][0]["content"][:40]!r}... is cut off: raise '
                    f'task.sequence_length = {self.sequence_length}.'
                )
            both.append(shifted(ids, last, self.sequence_length))
        return {key: np.stack([one[key] for one in both]) for key in both[0]}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One pair an example."""
        return Examples(source, self, stacked=False)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        shape = (2, self.sequence_length)
        return {
            'inputs': jax.ShapeDtypeStruct(shape, 'int32'),
            'targets': jax.ShapeDtypeStruct(shape, 'int32'),
            'weights': jax.ShapeDtypeStruct(shape, 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1, 0])

    def log_probabilities(self, params, batch, rng, train: bool) -> jax.Array:
        """Of both answers of each pair, summed over their tokens: float32 [B, 2]."""
        rows = {key: value.reshape(-1, value.shape[-1]) for key, value in batch.items()}
        loss, _ = self.token_losses(params, rows, rng, train)
        return -(loss * rows['weights']).sum(-1).reshape(-1, 2)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """DPO's loss, how often the chosen answer is the likelier one, and the rewards' means."""
        base = adapters.without(params)
        ours = self.log_probabilities(params, batch, rng, train)
        reference = self.log_probabilities(base, batch, rng, train=False)
        rewards = self.beta * (ours - jax.lax.stop_gradient(reference))
        margin = rewards[:, 0] - rewards[:, 1]
        real = batch['weights'].any((1, 2))
        pairs = {
            'loss': metrics.pair(losses.preference(margin), real),
            'accuracy': metrics.pair(margin > 0, real),
            'margin': metrics.pair(margin, real),
            'chosen_reward': metrics.pair(rewards[:, 0], real),
            'rejected_reward': metrics.pair(rewards[:, 1], real),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def most_counts(self, weights: jax.Array) -> int:
        """The loss counts pairs."""
        return 1

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(values)
