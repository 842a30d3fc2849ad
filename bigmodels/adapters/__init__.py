"""Low-rank adapters of frozen kernels: LoRA (Hu et al. 2021), and QLoRA (Dettmers et al. 2023).

A transformation of the params. What is trained, the adapters, is a run's `params`; the rest is its
`frozen`, which has neither gradient nor optimiser state. `joined` makes of both what a model takes
in the place of its own params, so that no model and no task knows of adapters.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp

from bigmodels import errors, trees
from bigmodels.compress import quantize
from bigmodels.models.parts.kernels import Adapted, Kernel, widened


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.adapter.

    Fields:
      rank: of every adapter; 0 for none: then all parameters are trained.
      alpha: an adapter's product is multiplied by alpha / rank.
      targets: a regex of the kernels that get an adapter, matrices [D, F] of any model.
      trained: regexes of other parameters that are trained whole, such as a new head's.
      weights: how the kernels with an adapter are kept: in a type of floats, or quantised.
      group_size: so many neighbouring inputs share a scale where they are; 0 for all of an output.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = r'(attention|mlp)/\w+/kernel$'
    trained: Sequence[str] = ()
    weights: Literal['float32', 'bfloat16', 'int8', 'int4', 'fp8'] = 'float32'
    group_size: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


NONE = Settings()


def split(settings: Settings, params: Mapping, rng: jax.Array) -> tuple[Any, Any]:
    """(trained, frozen) of a model's params; (params, None) without adapters.

    An adapter is {'down' [..., D, R], 'up' [..., R, F]} at the name of its kernel, [...] of scanned
    layers; `up` is zero, so that the model is what it was.

    Raises:
      UserError: if `targets` or one of `trained` matches nothing.
    """
    if not settings.rank:
        return params, None
    names = targets(settings, params)
    trained, frozen = {}, {}
    for number, (name, leaf) in enumerate(trees.flatten_named(params).items()):
        if name in names:
            key = jax.random.fold_in(rng, number)
            trained |= _adapter(name, leaf.shape, settings.rank, key)
            frozen[name] = _kept(settings, leaf)
        elif trees.found(settings.trained, name, 'config.adapter.trained'):
            trained[name] = leaf
        else:
            frozen[name] = leaf
    return tuple(flax.traverse_util.unflatten_dict(tree, '/') for tree in (trained, frozen))


def targets(settings: Settings, params: Mapping) -> list[str]:
    """The names of the kernels that get an adapter; experts' are none, nor are convolutions'."""
    leaves = trees.flatten_named(params)
    matrices = [
        name
        for name, leaf in leaves.items()
        if re.search('(^|/)kernel$|^unembed$', name)
        and leaf.ndim - trees.is_scanned(name) == 2
        and 'shared' not in name.split('/')  # experts that all tokens go through
    ]
    wanted = [settings.targets]
    found = [name for name in matrices if trees.found(wanted, name, 'config.adapter.targets')]
    if not found:
        raise errors.unknown('kernels config.adapter.targets =', settings.targets, matrices)
    for pattern in settings.trained:
        if not any(trees.found([pattern], name, 'config.adapter.trained') for name in leaves):
            raise errors.unknown('parameters config.adapter.trained has', pattern, leaves)
    return found


def _adapter(name: str, shape: tuple[int, ...], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    *stacked, inputs, outputs = shape
    down = jax.random.normal(key, (*stacked, inputs, rank)) / inputs**0.5
    return {f'{name}/down': down, f'{name}/up': jnp.zeros((*stacked, rank, outputs))}


def _kept(settings: Settings, leaf: jax.Array) -> jax.Array | Kernel:
    if settings.weights not in quantize.FORMATS:
        return leaf.astype(settings.weights)
    form = quantize.Format(settings.weights, settings.group_size or None)
    quantized = lambda matrix: quantize.quantize(matrix.T, form)
    return jax.vmap(quantized)(leaf) if leaf.ndim == 3 else quantized(leaf)


def joined(settings: Settings, params: Mapping, frozen: Mapping | None) -> Mapping:
    """The params that the model takes: an `Adapted` where a kernel has an adapter."""
    if frozen is None:
        return params
    whole = dict(frozen)
    for key, part in params.items():
        if key not in whole:
            whole[key] = part
        elif isinstance(whole[key], Mapping):
            whole[key] = joined(settings, part, whole[key])
        else:
            whole[key] = Adapted(whole[key], **part, scale=settings.scale)
    return whole


def together(several: Sequence[Mapping]) -> Mapping:
    """Joined params that differ in their adapters alone, as one from which `by_row` chooses."""

    def stack(*leaves):
        if not _is_adapted(leaves[0]):
            return leaves[0]
        down, up = (
            jnp.stack([getattr(leaf, name) for leaf in leaves], -3) for name in ('down', 'up')
        )
        return leaves[0].replace(down=down, up=up)

    return jax.tree.map(stack, *several, is_leaf=_is_adapted)


def by_row(params: Mapping, rows: jax.Array) -> Mapping:
    """The params that give each row of a batch its own of the adapters of `together`.

    They are for `model.apply` alone, as no kernel has all of them added. Others are as they were.

    Args:
      rows: int [B], which of them each row of the batch has.
    """

    def take(leaf):
        if not _is_adapted(leaf):
            return leaf
        return leaf.replace(down=jnp.take(leaf.down, rows, -3), up=jnp.take(leaf.up, rows, -3))

    return jax.tree.map(take, params, is_leaf=_is_adapted)


def count(params: Mapping) -> int:
    """How many adapters `by_row` chooses from; 1 where there is no choice."""
    leaves = filter(_is_adapted, jax.tree.leaves(params, is_leaf=_is_adapted))
    return next((leaf.down.shape[-3] for leaf in leaves), 1)


def trained(settings: Settings, params: Mapping) -> dict:
    """What is trained of joined params: the inverse of `joined`."""
    leaves = flax.traverse_util.flatten_dict(params, sep='/')
    adapted = {name: {'down': leaf.down, 'up': leaf.up}
               for name, leaf in leaves.items() if _is_adapted(leaf)}  # fmt: skip
    whole = {name: leaf for name, leaf in leaves.items() if name not in adapted
             and trees.found(settings.trained, name, 'config.adapter.trained')}  # fmt: skip
    return flax.traverse_util.unflatten_dict(adapted | whole, '/')


def _is_adapted(leaf: Any) -> bool:
    return isinstance(leaf, Adapted)


def without(params: Mapping) -> Mapping:
    """Joined params with every adapter taken off: those of the frozen base.

    Raises:
      UserError: if there is none, as where they were merged.
    """
    if not any(map(_is_adapted, jax.tree.leaves(params, is_leaf=_is_adapted))):
        raise errors.UserError(
            'These params have no adapters, so that their base is not known. If the run was '
            'merged, take the one that it was made from.'
        )
    return jax.tree.map(lambda leaf: leaf.kernel if _is_adapted(leaf) else leaf, params,
                        is_leaf=_is_adapted)  # fmt: skip


def merged(params: Mapping) -> Mapping:
    """Joined params as plain arrays: float32 [..., D, F] for every adapted kernel."""

    def merge(leaf):
        if not _is_adapted(leaf):
            return leaf
        kernel = leaf.kernel
        if isinstance(kernel, Kernel):
            kernel = jax.vmap(widened)(kernel) if kernel.values.ndim == 3 else widened(kernel)
        return kernel.astype(jnp.float32) + leaf.scale * (leaf.down @ leaf.up)

    return jax.tree.map(merge, params, is_leaf=_is_adapted)


def sharding_rules(
    settings: Settings, rules: Sequence[tuple[str, tuple]], params: Mapping
) -> Sequence[tuple[str, tuple]]:
    """A model's rules, and before them those of what `split` makes of its params (as shapes).

    An adapter is split as its kernel is; no axis splits the rank.
    """
    if not settings.rank or not rules:
        return rules
    own = []
    for name in targets(settings, params):
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
        inputs, outputs = (None, None, *axes)[-2:]
        own += [
            (f'^{re.escape(name)}/{part}$', of_part)
            for part, of_part in {
                'down': (inputs, None),
                'up': (None, outputs),
                'values': (outputs, inputs),
                'scales': (outputs, None),
            }.items()
        ]
    return (*own, *rules)
