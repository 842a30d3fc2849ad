"""Relative positions as numbers added to scores of attention (Raffel et al. 2020, section 2.1).

Axes: B batch, L length, S key length, H heads.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels.models.parts.settings import Settings, scaled_normal

Array = jax.Array


class RelativeBias(nn.Module):
    """Positions int [B or 1, L], of keys [B or 1, S] -> float32 [B or 1, H, L, S].

    Each head has a number for each bucket of distances; the layers of a stack share them.
    """

    settings: Settings

    @nn.compact
    def __call__(self, positions: Array, key_positions: Array) -> Array:
        c = self.settings
        shape = c.relative_buckets, c.num_heads
        table = self.param('embedding', scaled_normal(1 / c.embed_dim), shape, jnp.float32)
        buckets = buckets_of(
            key_positions[:, None] - positions[..., None],
            c.relative_buckets,
            c.relative_distance,
            both_ways=not c.causal,
        )
        return jnp.moveaxis(jnp.take(table, buckets, axis=0), -1, 1)


def buckets_of(steps: Array, count: int, farthest: int, both_ways: bool) -> Array:
    """The bucket int32 of each number of steps from a query to a key, from 0 to count - 1.

    Half of the buckets are of one distance each, the others widen with its logarithm, and the last
    one has all from `farthest` on. With `both_ways` half of them all are of keys after the query;
    without, such keys are in the first.
    """
    if both_ways:
        count //= 2
    exact = count // 2
    distances = np.arange(farthest + 1, dtype=np.float32)
    # In float32, as published: some borders lie on whole numbers.
    wide = np.log(np.maximum(distances, 1) / exact) / math.log(farthest / exact) * (count - exact)
    of_distance = np.where(distances < exact, distances, exact + wide.astype(np.int32))
    of_distance = jnp.asarray(np.minimum(of_distance, count - 1), jnp.int32)
    backward = jnp.clip(-steps, 0, farthest)
    if not both_ways:
        return of_distance[backward]
    forward = jnp.clip(steps, 0, farthest)
    return of_distance[jnp.maximum(backward, forward)] + jnp.where(steps > 0, count, 0)
