"""Distillation: a model learns what another one, its teacher, answers to the same inputs.

A transformation of the loss. The teacher is asked what the task asks the model of the run, in the
same step: augmented images, left-out tokens and packed texts are the same to both.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bigmodels import errors, losses, metrics, trees
from bigmodels.interpret import activations

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.distill.

    The loss is (1 - weight) * the task's + weight * the teacher's, which is of an example or, in
    language models, of each token. Of `kind`

    logits: temperature^2 * the divergence of the model's answers from the teacher's, see
      `losses.divergence` (Hinton et al. 2015, section 2);
    features: the distance of what modules give, see `distance`.

    Fields:
      teacher: another run, of any model that answers the same task; '' for none.
      step: a saved step of it, or 'last', or 'best' by its config.checkpoint.best_metric.
      trust: packages whose code the teacher's config may name, as in 'my_models.Wide'.
      fingerprint: of what it is at that step, which a run writes out: it goes on under no other.
      weight: the teacher's share of the loss, from 0 to 1.
      temperature: above 1 it is of more weight what the teacher takes for the second and third.
      layers: for features, pairs of paths of modules: of the model, and of the teacher. A path is
        that of `interpret.activations`.
    """

    teacher: str = ''
    step: int | Literal['last', 'best'] = 'last'
    trust: Sequence[str] = ()
    fingerprint: str = ''
    kind: Literal['logits', 'features'] = 'logits'
    weight: float = 0.5
    temperature: float = 2.0
    layers: Sequence[tuple[str, str]] = ()

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise errors.UserError(
                f'config.distill.weight = {self.weight} must be from 0 to 1: it is a share.'
            )
        if self.temperature <= 0:
            raise errors.UserError(
                f'config.distill.temperature = {self.temperature} must be above 0.'
            )
        if bool(self.layers) != (self.kind == 'features'):
            raise errors.UserError(
                f'config.distill.layers = {tuple(self.layers)} does not go with kind = '
                f'{self.kind!r}: features need pairs of paths, and logits have none.'
            )

    def describe(self) -> str:
        """For the start screen."""
        return (
            f'{self.weight:g} of the loss is by the {self.kind} of {self.teacher} at step '
            f'{self.step}, see config.distill'
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
    """A task's loss with the teacher's; its metrics are also 'task_loss' and 'teacher_loss'.

    Args:
      taught: the teacher's variables, in which there is no gradient.
      task: that is trained, see `tasks` for what it must have.
      teacher: a Linen module, in inference.

    Raises:
      UserError: for a teacher of other classes, a path that no module has, and as `distance`.
    """
    own, theirs = zip(*settings.layers, strict=True) if settings.layers else ((), ())
    heard = _Heard(activations.Watched(task.model, {}, [re.escape(path) for path in own]))
    of_task = dataclasses.replace(task, model=heard)
    _, (pairs, model_state) = of_task.loss_fn(params, model_state, batch, rng, train)
    [(inputs, given, answer)] = heard.calls
    seen = activations.Watched(teacher, {}, [re.escape(path) for path in theirs])
    other = seen.apply(taught, *inputs, **given)
    weights = batch['weights']
    if settings.kind == 'features':
        here, there = heard.captured(), seen.captured()
        apart = sum(distance(_features(here, one), _features(there, another), weights.ndim)
                    for one, another in settings.layers) / len(settings.layers)  # fmt: skip
    elif given.get('return_hidden'):
        apart = _of_hidden(task, params, answer, teacher, taught['params'], other, settings)
    else:
        apart = _of_logits(answer, other, settings)
    total, count = pairs['loss']
    added, _ = from_teacher = metrics.pair(apart, weights)
    loss = (1 - settings.weight) * total + settings.weight * added, count
    pairs = {**pairs, 'loss': loss, 'task_loss': (total, count), 'teacher_loss': from_teacher}
    return metrics.mean(loss), (pairs, model_state)


def distance(features: Array, other: Array, ndim: int) -> Array:
    """How far apart two models' features are, float32 of `ndim` dimensions.

    Of the same width it is the mean of their squared difference (Romero et al. 2015, equation 3;
    Jiao et al. 2020, equation 8). Of different ones that of the cosines between positions (Liu et
    al. 2019, section 3.1), for which there is nothing to learn that the model does not keep.

    Args:
      features, other: [B, ..., D] and [B, ..., D'].

    Raises:
      UserError: for different positions, or one alone with different widths.
    """
    if features.shape[:-1] != other.shape[:-1]:
        raise errors.UserError(
            f"config.distill.layers: features of {list(features.shape[1:])} and the teacher's of "
            f'{list(other.shape[1:])} have different positions: choose layers of the same.'
        )
    if features.shape[-1] != other.shape[-1]:
        if features.ndim < 3:
            raise errors.UserError(
                f"config.distill.layers: features of {features.shape[-1]} and the teacher's of "
                f'{other.shape[-1]} numbers have no positions to compare: choose earlier layers.'
            )
        features, other = _cosines(features), _cosines(other)
    squares = jnp.square(features.astype(jnp.float32) - other.astype(jnp.float32))
    return squares.mean(tuple(range(ndim, squares.ndim)))


def _cosines(features: Array) -> Array:
    """[B, ..., D] -> float32 [B, P, P], between all P positions of an example."""
    rows = features.reshape(len(features), -1, features.shape[-1]).astype(jnp.float32)
    rows /= jnp.sqrt(jnp.square(rows).sum(-1, keepdims=True) + 1e-12)
    return jnp.einsum('bpd,bqd->bpq', rows, rows)


def _features(found: Mapping[str, Array], path: str) -> Array:
    """[B, ..., D]; of scanned layers [B, ..., layers * D]."""
    if not trees.is_scanned(path):
        return found[path]
    behind = jnp.moveaxis(found[path], 0, -2)
    return behind.reshape(*behind.shape[:-2], -1)


def _of_logits(logits: Array, other: Array, settings: Settings) -> Array:
    """Logits [..., V] -> the teacher's loss [...]."""
    if logits.shape != other.shape:
        raise errors.UserError(
            f'The teacher {settings.teacher} answers with {list(other.shape[1:])} numbers, and the '
            f'model of this config with {list(logits.shape[1:])}: both need the same classes, or '
            'the same vocabulary.'
        )
    return settings.temperature**2 * losses.divergence(logits, other, settings.temperature)


def _of_hidden(
    task: Any,
    params: Mapping,
    hidden: Array,
    teacher: Any,
    taught: Mapping,
    other: Array,
    settings: Settings,
) -> Array:
    """The same of hidden states [B, L, D] and the teacher's [B, L, D'] -> [B, L].

    Logits are held for `task.loss_chunk` tokens at a time, as in the task's own loss.
    """
    kinds = hidden.dtype, other.dtype

    def of_both(both: Array, _: Array) -> Array:
        split = jnp.split(both, [hidden.shape[-1]], axis=-1)
        own, others = (x.astype(kind) for x, kind in zip(split, kinds, strict=True))
        return _of_logits(task.model.logits(params, own), teacher.logits(taught, others), settings)

    both = jnp.concatenate([hidden, other], axis=-1)
    places = jnp.zeros(both.shape[:-1], jnp.int32)  # in the place of targets
    if not task.loss_chunk:
        return of_both(both, places)
    return losses.chunked_over_tokens(of_both, both, places, task.loss_chunk)
