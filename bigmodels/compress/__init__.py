"""Smaller models: weights and inputs in few bits, and pruning.

Each is a transformation of a part of the fold, none has a loop: rounding wraps the params here,
`prune` the optimiser's update. A finished run is made smaller by `python -m bigmodels.compress`.

Rounding has two sides, which compute the same. In training, `joined` rounds the params that a step
takes (Jacob et al. 2018, section 3). In a run that the command made they are kept as `kept` makes
them, narrow: a `Kernel` in the place of a kernel.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp

from bigmodels import errors, trees
from bigmodels.compress import quantize
from bigmodels.models.parts.kernels import Kernel, Rounded, straight_through, widened

# What may be kept in few bits: kernels of any model, and tables of embeddings that are read by
# `layers.Embed`. Experts are read in groups, by products of their own.
KERNELS = r'(^|/)(kernel|unembed)$'
KEPT = rf'{KERNELS}|(^|/)embed/embedding$'
EXPERTS = {'experts', 'shared', 'router'}


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.compress.

    Fields:
      weights: of the kernels that `targets` finds, rounded to this format.
      group_size: so many neighbouring inputs share a scale; 0 for all of an output.
      activations: what these kernels are multiplied with, rounded too: 'int8' by the largest of
        each row, 'int8_static' by a scale that was measured, of runs of the command alone.
      targets: a regex.
      packed: whether the params are kept in the format, as the command does it; else they are
        trained in float32, and rounded in every step.
    """

    weights: Literal['float32', 'int8', 'int4', 'fp8'] = 'float32'
    group_size: int = 0
    activations: Literal['float32', 'int8', 'int8_static'] = 'float32'
    targets: str = KEPT
    packed: bool = False

    def __post_init__(self):
        if self.activations == 'int8_static' and not self.packed:
            raise errors.UserError(
                'config.compress.activations = "int8_static" needs scales that were measured: '
                'train with "int8", and make a run of the result by python -m bigmodels.compress.'
            )

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded."""
        return (self.weights, self.activations) != ('float32', 'float32')


NONE = Settings()


def check_trained(settings: Settings) -> None:
    """Raises UserError for what only runs of the command are, not those that are trained."""
    if settings.packed:
        raise errors.UserError(
            'config.compress.packed is of runs that python -m bigmodels.compress makes: train '
            'without it.'
        )


def found(
    params: Mapping, targets: str, allowed: str, key: str = 'config.compress.targets'
) -> list[str]:
    """The names of the parameters, of those `allowed` by a regex, that the regex `targets` finds.

    Raises:
      UserError: if it finds none.
    """
    possible = [
        name
        for name, leaf in trees.flatten_named(params).items()
        if re.search(allowed, name) and leaf.ndim > 1 and not EXPERTS & {*name.split('/')}
    ]
    names = [name for name in possible if trees.found([targets], name, key)]
    if not names:
        raise errors.unknown(f'kernels {key} =', targets, possible)
    return names


def kept(settings: Settings, params: Mapping) -> Mapping:
    """A model's params as a packed run keeps them; of others as they are.

    Raises:
      UserError: if `targets` finds nothing, or groups do not divide a kernel.
    """
    if not (settings.packed and settings.rounds):
        return params
    return _mapped(settings, params, lambda name, leaf: _narrowed(settings, name, leaf))


def joined(settings: Settings, params: Mapping) -> Mapping:
    """The params that the model takes: rounded ones of float32, with gradients straight through.

    Raises:
      UserError: as `kept`.
    """
    if settings.packed or not settings.rounds:
        return params

    def rounded(name: str, leaf: jax.Array) -> Any:
        narrow = _narrowed(settings, name, leaf)
        array = straight_through(leaf, _wide(name, narrow))
        return Rounded(array) if isinstance(narrow, Rounded) else array

    return _mapped(settings, params, rounded)


def plain(params: Mapping) -> Mapping:
    """Params as they are trained: a float32 array in the place of everything that was narrowed."""
    leaves = flax.traverse_util.flatten_dict(params, sep='/')
    wide = {name: _wide(name, leaf) for name, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(wide, sep='/')


def from_saved(tree: Any) -> Any:
    """What a checkpoint read without its model has as dicts, as the `Kernel`s that were saved."""
    if not isinstance(tree, Mapping):
        return tree
    tree = {key: from_saved(value) for key, value in tree.items()}
    for kind, required in ((Kernel, {'values', 'scales'}), (Rounded, {'multiplied'})):
        if required <= tree.keys():
            return kind(**tree)
    return tree


def sharding_rules(
    settings: Settings, rules: Sequence[tuple[str, tuple]], params: Mapping
) -> Sequence[tuple[str, tuple]]:
    """A model's rules, and before them those of what `kept` makes of its params (as shapes)."""
    if not (settings.packed and settings.rounds and rules):
        return rules
    own = []
    for name in found(params, settings.targets, KEPT):
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
        size = len(trees.flatten_named(params)[name].shape) - trees.is_scanned(name)
        axes = (None,) * (size - len(axes)) + tuple(axes)
        outputs = axes if _is_table(name) else (axes[-1], *axes[:-1])
        own += [
            (rf'^{re.escape(name)}/(multiplied/)?values$', outputs),
            (rf'^{re.escape(name)}/(multiplied/)?scales$', (outputs[0], None)),
            (rf'^{re.escape(name)}/multiplied$', axes),
            (rf'^{re.escape(name)}/scale$', ()),
        ]
    return (*own, *rules)


def _mapped(settings: Settings, params: Mapping, one: Callable) -> Mapping:
    names = {*found(params, settings.targets, KEPT)}
    return trees.map_named(lambda name, leaf: one(name, leaf) if name in names else leaf, params)


def _narrowed(settings: Settings, name: str, leaf: jax.Array) -> jax.Array | Kernel | Rounded:
    """A parameter in the format; of inputs that are to be measured the scale is 1."""
    kernel, scanned = leaf, trees.is_scanned(name)
    if settings.weights != 'float32':
        form = quantize.Format(settings.weights, settings.group_size or None)
        as_rows = (lambda x: x) if _is_table(name) else (lambda x: jnp.moveaxis(x, -1, 0))
        narrow = lambda x: quantize.quantize(as_rows(x), form)
        kernel = jax.vmap(narrow)(leaf) if scanned else narrow(leaf)
    if settings.activations == 'float32' or not name.endswith('kernel'):
        return kernel
    if settings.activations == 'int8':
        return Rounded(kernel)
    return Rounded(kernel, jnp.ones(leaf.shape[:scanned], jnp.float32))


def _wide(name: str, leaf: Any) -> jax.Array:
    leaf = leaf.multiplied if isinstance(leaf, Rounded) else leaf
    if not isinstance(leaf, Kernel):
        return leaf
    wide = jax.vmap(widened)(leaf) if trees.is_scanned(name) else widened(leaf)
    return wide.T if _is_table(name) else wide


def _is_table(name: str) -> bool:
    """Whether it is read by rows, and lies as it is used."""
    return name.endswith('embedding')
