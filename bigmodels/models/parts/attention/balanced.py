"""The layout in which causal attention over a split sequence is the same work for each device.

Of the 2n half-chunks of a sequence over n devices along the mesh axis `sequence`, device i holds
halves i and 2n - 1 - i (Llama 3, section 3.3.2). In natural order it holds 2i and 2i + 1.

Axes: B batch, L length; inside a device also R = L / 2n, the length of a half.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigmodels import errors, sharding

Array = jax.Array


@jax.custom_vjp
def to_balanced(x: Array) -> Array:
    """x [B, L, ...] in natural order -> in the balanced layout, L split over `sequence`.

    Each device sends its two halves directly to where they belong. The inverse is
    `from_balanced`, and so is the gradient.

    Raises:
      UserError: if L does not divide by twice the devices along `sequence`.
    """
    return _exchange(x, lambda halves, odd: _swapped(_permuted(halves, _routes()), odd))


@jax.custom_vjp
def from_balanced(x: Array) -> Array:
    """x [B, L, ...] in the balanced layout -> in natural order; see `to_balanced`."""
    back = [[(target, source) for source, target in route] for route in _routes()]
    return _exchange(x, lambda halves, odd: _permuted(_swapped(halves, odd), back))


to_balanced.defvjp(lambda x: (to_balanced(x), None), lambda _, g: (from_balanced(g),))
from_balanced.defvjp(lambda x: (from_balanced(x), None), lambda _, g: (to_balanced(g),))


def check_length(length: int, num_devices: int) -> None:
    """Raises UserError if a sequence does not split into two halves for each device."""
    if length % (2 * num_devices):
        raise errors.UserError(
            f'A sequence of {length} tokens does not split into two equal parts for each of the '
            f'{num_devices} devices of the mesh axis sequence: its length must be a multiple of '
            f'{2 * num_devices}.'
        )


def _exchange(x: Array, local: Callable) -> Array:
    """local([2, B, R, ...], whether the device's index is odd) on each device's halves."""
    size = sharding.axis_size('sequence')
    check_length(x.shape[1], size)
    if size == 1:
        return x

    def on_device(x):
        return joined(local(cut(x, 1, 2), jax.lax.axis_index('sequence') % 2 == 1), 1)

    placed = PartitionSpec(row_axes(len(x)), 'sequence')
    return on_devices(on_device, placed, placed)(x)


def _routes() -> list[list[tuple[int, int]]]:
    """Where each device's even and odd half go.

    In natural order device d holds halves 2d and 2d + 1, in the balanced layout one of either
    kind too: so two permutations of the devices move everything.
    """
    size = sharding.axis_size('sequence')
    owner = lambda half: min(half, 2 * size - 1 - half)
    return [[(d, owner(2 * d + parity)) for d in range(size)] for parity in (0, 1)]


def _permuted(halves: Array, routes: list[list[tuple[int, int]]]) -> Array:
    return jnp.stack(
        [
            jax.lax.ppermute(half, 'sequence', route)
            for half, route in zip(halves, routes, strict=True)
        ]
    )


def _swapped(halves: Array, odd: Array) -> Array:
    """(even half, odd half) <-> (earlier, later): device i's earlier half is half i."""
    return jnp.where(odd, halves[::-1], halves)


def slots(back: Array | int, length: int) -> Array:
    """Positions [2, R] in natural order of the `length` held by the device `back` before this."""
    size = sharding.axis_size('sequence')
    index = (jax.lax.axis_index('sequence') - back) % size
    halves = jnp.stack([index, 2 * size - 1 - index])
    return halves[:, None] * (length // 2) + jnp.arange(length // 2)


def on_devices(local: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """local, on each device's part of its arguments; needs `jax.set_mesh`.

    What varies over which axis is not checked: inside a pipeline's vmap over `stage` constants do
    not, and JAX does not cast them. The callers' gradients are their own, so none relies on it.
    """
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def row_axes(num_rows: int) -> tuple[str, ...] | None:
    """The axes over which a leading dimension is split: none where it does not divide."""
    return None if num_rows % sharding.num_batch_shards() else sharding.BATCH_AXES


def head_axis(num_kv_heads: int) -> str | None:
    """The axis over which heads are split: none where those of keys and values do not divide."""
    return None if num_kv_heads % sharding.axis_size('tensor') else 'tensor'


def cut(x: Array, axis: int, count: int) -> Array:
    """Cuts an axis into `count` equal parts, stacked along a new first axis."""
    shape = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def joined(parts: Array, axis: int) -> Array:
    """The inverse of `cut`."""
    x = jnp.moveaxis(parts, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
