"""The states of a sequence, of which some are padding, as one vector or as they are.

Axes: B batch, L length, D features.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
Pool = Literal['mean', 'max', 'last', 'none']


def within(lengths: Array, count: int) -> Array:
    """Which of `count` places lie before each length of int [B]: bool [B, count]."""
    return jnp.arange(count) < lengths[:, None]


def mean(x: Array, real: Array) -> Array:
    """The mean of x [B, L, D] over the positions where real [B, L] is true; 0 where none is."""
    total = jnp.where(real[..., None], x.astype(jnp.float32), 0).sum(1)
    return (total / jnp.maximum(real.sum(1, keepdims=True), 1)).astype(x.dtype)


def maximum(x: Array, real: Array) -> Array:
    """The largest value of each feature of x [B, L, D] where real [B, L]; 0 where none is."""
    largest = jnp.where(real[..., None], x, -jnp.inf).max(1)
    return jnp.where(real.any(1, keepdims=True), largest, 0).astype(x.dtype)


def last(x: Array, real: Array) -> Array:
    """x [B, L, D] at the last position where real [B, L]; at the first where none is."""
    place = jnp.where(real, jnp.arange(real.shape[1]), 0).max(1)
    return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]


def none(x: Array, real: Array) -> Array:
    """x [B, L, D] itself: each token is classified."""
    return x


POOLS: dict[str, Callable[[Array, Array], Array]] = {
    'mean': mean,
    'max': maximum,
    'last': last,
    'none': none,
}
