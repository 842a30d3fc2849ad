"""Metrics as (sum, count) pairs, which add up exactly over batches, devices and hosts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[jax.Array, jax.Array]


def pair(values: jax.Array, weights: jax.Array) -> Pair:
    """The weighted sum of values and the sum of weights, both float32 scalars."""
    weights = weights.astype(jnp.float32)
    return (values * weights).sum(), weights.sum()


def mean(metric: Pair) -> jax.Array:
    """sum / count; 0 where nothing was counted."""
    total, count = metric
    return total / jnp.maximum(count, 1e-9)


def add(one: Any, other: Any) -> Any:
    """The pairs of the union of two sets of examples; trees of pairs, such as one or a mapping."""
    return jax.tree.map(jnp.add, one, other)


def means_of_all(pairs: Sequence[Mapping[str, Pair]]) -> dict[str, float]:
    """The means over many batches, added up on the host in float64; NaN where nothing counted."""
    means = {}
    for name in pairs[0]:
        total, count = np.sum([batch[name] for batch in pairs], axis=0, dtype=np.float64)
        means[name] = float(total / count) if count else math.nan
    return means


def plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON has them: None for one that is no finite number."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
