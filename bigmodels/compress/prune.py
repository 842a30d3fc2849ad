"""Pruning: which weights are 0, once and for all or more of them step by step.

In training it is an optax transformation around the optimiser's, whose state holds the masks: so
they are saved, restored and placed like moments, and a weight that is pruned is exactly 0 after
every step.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigmodels import compress, errors, trees

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.prune.

    Fields:
      sparsity: the share of the weights that is 0 at the end; 0 for no pruning.
      score: what keeps a weight: its 'magnitude', or its 'movement' away from 0 as the gradients of
        training so far have it, not its decay (Sanh et al. 2020, equation 3, without a way back: a
        weight that is 0 stays so).
      scope: weights are compared within their 'layer', or with all others, 'global'.
      pattern: which weights may be 0: 'any', or '2:4', which keeps two of any four neighbouring
        inputs of an output, so that GPUs multiply in half the time; sparsity is then 0.5, from the
        step `begin` on.
      begin, end, every: from step `begin` to `end` the share grows as 1 - (1 - t)^3 of the time t
        that has passed (Zhu and Gupta 2017, equation 1), at each `every`-th step.
      targets: a regex of the kernels that are pruned.
    """

    sparsity: float = 0.0
    score: Literal['magnitude', 'movement'] = 'magnitude'
    scope: Literal['layer', 'global'] = 'layer'
    pattern: Literal['any', '2:4'] = 'any'
    begin: int = 0
    end: int = 0
    every: int = 100
    targets: str = compress.KERNELS

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise errors.UserError(
                f'config.prune.sparsity = {self.sparsity} must be from 0 to under 1: of a model '
                'without all of its weights nothing is left.'
            )
        if self.pattern == '2:4' and self.sparsity != 0.5:
            raise errors.UserError(
                f'config.prune.pattern = "2:4" has a sparsity of 0.5, not {self.sparsity}.'
            )
        if not 0 <= self.begin <= self.end or self.every < 1:
            raise errors.UserError(
                f'config.prune: begin = {self.begin} must not be negative nor after end = '
                f'{self.end}, and every = {self.every} at least 1.'
            )


NONE = Settings()


class State(NamedTuple):
    """What pruning remembers.

    Fields:
      count: int32, of the updates made.
      masks: by the name of the parameter, bool, false where it is 0.
      movement: likewise, float32, of the score 'movement'; else {}.
    """

    count: Array
    masks: Mapping[str, Array]
    movement: Mapping[str, Array]


def pruned(settings: Settings, params: Mapping) -> Mapping:
    """Params with the share `sparsity` of the weights of least magnitude set to 0.

    Raises:
      UserError: as `names`.
    """
    leaves = _chosen(names(settings, params), params)
    kept = masks({name: jnp.abs(leaf) for name, leaf in leaves.items()}, settings,
                 settings.sparsity)  # fmt: skip
    return trees.map_named(
        lambda name, leaf: jnp.where(kept[name], leaf, 0) if name in kept else leaf, params
    )


def names(settings: Settings, params: Mapping) -> list[str]:
    """Which of the params (arrays or shapes) are pruned.

    Raises:
      UserError: if `targets` finds none, or four inputs do not divide one of '2:4'.
    """
    found = compress.found(params, settings.targets, compress.KERNELS, 'config.prune.targets')
    if settings.pattern == '2:4':
        for name, leaf in _chosen(found, params).items():
            if leaf.shape[-2] % 4:
                raise errors.UserError(
                    f'{name} has {leaf.shape[-2]} inputs, which are no fours: leave it out of '
                    'the targets of 2:4.'
                )
    return found


def masks(scores: Mapping[str, Array], settings: Settings, share: Any) -> dict[str, Array]:
    """False for the share of the weights that has the lowest scores, of equal ones the first."""
    if settings.pattern == '2:4':
        return {name: _two_of_four(score) for name, score in scores.items()}
    if settings.scope == 'layer':

        def of_layer(score):
            return _highest(score.reshape(-1), share).reshape(score.shape)

        return {name: jax.vmap(of_layer)(score) if trees.is_scanned(name) else of_layer(score)
                for name, score in scores.items()}  # fmt: skip
    whole = _highest(jnp.concatenate([score.reshape(-1) for score in scores.values()]), share)
    ends = itertools.accumulate(score.size for score in scores.values())
    parts = jnp.split(whole, list(ends)[:-1])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _highest(scores: Array, share: Any) -> Array:
    """scores [n] -> bool [n], false for round(share * n) of them."""
    cut = jnp.round(share * len(scores)).astype(jnp.int32)
    order = jnp.argsort(scores)
    return jnp.zeros(len(scores), bool).at[order].set(jnp.arange(len(scores)) >= cut)


def _two_of_four(score: Array) -> Array:
    """score [..., D, F] -> true for the two highest of every four along D."""
    fours = score.reshape(*score.shape[:-2], -1, 4, score.shape[-1])
    ranks = jnp.argsort(jnp.argsort(fours, axis=-2), axis=-2)
    return (ranks >= 2).reshape(score.shape)


def gradually(
    tx: optax.GradientTransformation, settings: Settings, params: Mapping
) -> optax.GradientTransformation:
    """An optimiser after whose updates what is pruned is 0.

    Args:
      tx: makes the updates.
      params: arrays or shapes.

    Raises:
      UserError: as `names`.
    """
    chosen = names(settings, params)

    def init(params: Mapping) -> tuple[Any, State]:
        leaves = _chosen(chosen, params)
        movement = leaves if settings.score == 'movement' else {}
        return tx.init(params), State(
            jnp.zeros((), jnp.int32),
            {name: jnp.ones(leaf.shape, bool) for name, leaf in leaves.items()},
            {name: jnp.zeros(leaf.shape) for name, leaf in movement.items()},
        )

    def update(gradients: Any, states: tuple[Any, State], params: Mapping):
        inner, state = states
        updates, inner = tx.update(gradients, inner, params)
        old, change = _chosen(chosen, params), _chosen(chosen, updates)
        slopes = _chosen(chosen, gradients)
        movement = {name: moved - old[name] * slopes[name]
                    for name, moved in state.movement.items()}  # fmt: skip
        count = state.count + 1
        # What is 0 already goes first, so that it stays 0.
        scores = movement or {name: jnp.abs(old[name] + change[name]) for name in chosen}
        scores = {name: jnp.where(state.masks[name] & (old[name] != 0), score, -jnp.inf)
                  for name, score in scores.items()}  # fmt: skip
        kept = jax.lax.cond(
            _due(settings, count),
            lambda: masks(scores, settings, share(settings, count)),
            lambda: dict(state.masks),
        )
        updates = trees.map_named(
            lambda name, u, p: jnp.where(kept[name], u, -p) if name in kept else u, updates, params
        )
        return updates, (inner, State(count, kept, movement))

    return optax.GradientTransformation(init, update)


def share(settings: Settings, step: Array | int) -> Array:
    """The share that is to be 0 after so many updates, from `begin` on."""
    passed = (step - settings.begin) / max(settings.end - settings.begin, 1)
    passed = jnp.where(step >= settings.end, 1.0, jnp.clip(passed, 0.0, 1.0))
    return settings.sparsity * (1 - (1 - passed) ** 3)


def _due(settings: Settings, step: Array) -> Array:
    """Whether the masks change with this update: the last time at `end`, or at the first."""
    last = max(settings.end, 1)
    regular = (step >= settings.begin) & ((step - settings.begin) % settings.every == 0)
    return (regular & (step < last)) | (step == last)


def _chosen(chosen: list[str], tree: Mapping) -> dict[str, Any]:
    leaves = trees.flatten_named(tree)
    return {name: leaves[name] for name in chosen}
