"""Distillation: a model learns what another one, its teacher, answers to the same inputs.

A transformation of the loss. The teacher is asked what the task asks the model of the run, in the
same step: augmented images, left-out tokens and packed texts are the same to both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bigmodels import errors, losses, metrics

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.distill.

    The loss is (1 - weight) * the task's + weight * temperature^2 * the divergence of the model's
    answers from the teacher's, see `losses.divergence` (Hinton et al. 2015, section 2): of an
    example or, in language models, of each token.

    Fields:
      teacher: another run, of any model that answers the same task; '' for none.
      step: a saved step of it, or 'last', or 'best' by its config.checkpoint.best_metric.
      fingerprint: of what it is at that step, which a run writes out: it goes on under no other.
      weight: the teacher's share of the loss, from 0 to 1.
      temperature: above 1 it is of more weight what the teacher takes for the second and third.
    """

    teacher: str = ''
    step: int | Literal['last', 'best'] = 'last'
    fingerprint: str = ''
    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise errors.UserError(
                f'config.distill.weight = {self.weight} must be from 0 to 1: it is a share.'
            )
        if self.temperature <= 0:
            raise errors.UserError(
                f'config.distill.temperature = {self.temperature} must be above 0.'
            )

    def describe(self) -> str:
        """For the start screen."""
        return (
            f'{self.weight:g} of the loss is what {self.teacher} at step {self.step} answers, at '
            f'temperature {self.temperature:g}, see config.distill'
        )


NONE = Settings()


class _Heard:
    """A model that keeps what it is asked and what it answers; all else is the model's."""

    def __init__(self, model: Any):
        self._model = model
        self.calls = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def apply(
        self,
        variables: Mapping,
        *inputs: Any,
        train: bool = False,
        rngs: Any = None,
        mutable: Any = False,
        **given: Any,
    ) -> Any:
        """As the model's."""
        answer = self._model.apply(
            variables, *inputs, train=train, rngs=rngs, mutable=mutable, **given
        )
        self.calls.append((inputs, given, answer if mutable is False else answer[0]))
        return answer


def loss_fn(
    params: Mapping,
    model_state: Mapping,
    batch: Mapping[str, Array],
    rng: Array,
    taught: Mapping,
    *,
    task: Any,
    teacher: Any,
    settings: Settings,
    train: bool,
) -> tuple[Array, tuple[dict, Any]]:
    """A task's loss with the teacher's; its metrics are also 'task_loss' and 'divergence'.

    Args:
      taught: the teacher's variables, in which there is no gradient.
      task: that is trained, see `tasks` for what it must have.
      teacher: a Linen module, in inference.

    Raises:
      UserError: for a teacher of other classes.
    """
    heard = _Heard(task.model)
    of_task = dataclasses.replace(task, model=heard)
    _, (pairs, model_state) = of_task.loss_fn(params, model_state, batch, rng, train)
    [(inputs, given, answer)] = heard.calls
    other = teacher.apply(taught, *inputs, **given)
    if given.get('return_hidden'):
        between = _between_hidden(task, params, teacher, taught['params'], settings)
        apart = between(answer, other, batch['targets'])
    else:
        apart = _between(answer, other, settings)
    weights = batch['weights']
    total, count = pairs['loss']
    added = settings.temperature**2 * (apart * weights).sum()
    loss = (1 - settings.weight) * total + settings.weight * added, count
    pairs = {
        **pairs,
        'loss': loss,
        'task_loss': (total, count),
        'divergence': metrics.pair(apart, weights),
    }
    return metrics.mean(loss), (pairs, model_state)


def _between(logits: Array, other: Array, settings: Settings) -> Array:
    """Logits [..., V] -> [...]."""
    if logits.shape != other.shape:
        raise errors.UserError(
            f'The teacher {settings.teacher} answers with {list(other.shape[1:])} numbers, and the '
            f'model of this config with {list(logits.shape[1:])}: both need the same classes, or '
            'the same vocabulary.'
        )
    return losses.divergence(logits, other, settings.temperature)


def _between_hidden(
    task: Any, params: Mapping, teacher: Any, taught: Mapping, settings: Settings
) -> Callable[[Array, Array, Array], Array]:
    """(hidden [B, L, D], the teacher's [B, L, D'], targets [B, L]) -> [B, L].

    Logits are held for `task.loss_chunk` tokens at a time, as in the task's own loss.
    """

    def between(hidden: Array, other: Array, targets: Array) -> Array:
        width = hidden.shape[-1]
        kinds = hidden.dtype, other.dtype

        def of_both(both: Array, _: Array) -> Array:
            own, others = (x.astype(kind) for x, kind in
                           zip(jnp.split(both, [width], axis=-1), kinds, strict=True))  # fmt: skip
            return _between(
                task.model.logits(params, own), teacher.logits(taught, others), settings
            )

        both = jnp.concatenate([hidden, other], axis=-1)
        if not task.loss_chunk:
            return of_both(both, targets)
        return losses.chunked_over_tokens(of_both, both, targets, task.loss_chunk)

    return between
