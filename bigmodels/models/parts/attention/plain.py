"""Attention by whole score matrices, a few blocks of queries at a time.

Each block sees no more keys than its mask may leave, so that what is causal does little over half
of the work. The backward pass is written out: it keeps exponentials that are not yet normalised,
in the compute dtype, and normalises arrays [.., L, K] instead of [.., L, S], as FlashAttention does
(Dao et al. 2022, appendix B.4); on CPUs forward and backward take about half of the time of what
differentiation of softmax gives.

Axes: B batch, L query length, S key length, N key/value heads, G query heads of each of them,
K head_dim.
"""

import functools
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp

from bigmodels.models.parts.attention.scores import (
    bounded,
    products,
    weighted_rows,
    weighted_values,
)

Array = jax.Array
MOST_BLOCKS, LEAST_ROWS = 4, 64  # more and smaller ones cost more than they skip


def plain_attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Callable[[Array, Array], Array | None],
    softcap: float | None,
    band: tuple[int | None, int | None],
    bias: Array | None = None,
) -> Array:
    """softmax(query key^T + bias + mask) value.

    Args:
      query: [B, N, G, L, K], scaled.
      key, value: [B, N, S, K].
      mask: (rows [L'], columns [S']) -> bool [B or 1, L', S'], or None where all is seen.
      softcap: see `scores.bounded`.
      band: (before, after): how many keys before and after its own slot a query sees at most, where
        rows and columns are numbered alike; None for no bound.
      bias: [B or 1, N * G, L, S], or None.

    Returns:
      [B, N, G, L, K] in query's dtype.
    """
    length, num_keys = query.shape[3], key.shape[2]
    before, after = band
    if bias is not None:
        bias = bias.reshape(len(bias), *query.shape[1:4], num_keys)
    if before is after is None or jax.export.is_symbolic_dim(length):  # no blocks of any length
        seen = mask(jnp.arange(length), jnp.arange(num_keys))
        return _attend(query, key, value, seen, bias, softcap)
    size = max(LEAST_ROWS, -(-length // MOST_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        rows = range(start, min(start + size, length))
        first = 0 if before is None else max(rows[0] - before, 0)
        last = num_keys if after is None else min(rows[-1] + after + 1, num_keys)
        seen = mask(jnp.arange(rows[0], rows[-1] + 1), jnp.arange(first, last))
        blocks.append(
            _attend(
                query[:, :, :, rows[0] : rows[-1] + 1],
                key[:, :, first:last],
                value[:, :, first:last],
                seen,
                None if bias is None else bias[..., rows[0] : rows[-1] + 1, first:last],
                softcap,
            )
        )
    return jnp.concatenate(blocks, axis=3) if len(blocks) > 1 else blocks[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query, key, value, mask, bias, softcap):
    return _forward(query, key, value, mask, bias, softcap)[0]


def _forward(query, key, value, mask, bias, softcap):
    scores = bounded(_scores(query, key, bias), mask, softcap)
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True))
    share = 1 / exponentials.sum(-1, keepdims=True)
    exponentials = exponentials.astype(query.dtype)
    out = (weighted_values(exponentials, value) * share).astype(query.dtype)
    return out, (query, key, value, bias, exponentials, share, out)


def _scores(query, key, bias):
    scores = products(query, key)
    return scores if bias is None else scores + bias


def _backward(softcap, residuals, g):
    query, key, value, bias, exponentials, share, out = residuals
    wide = g.astype(jnp.float32) * share
    narrow = wide.astype(query.dtype)
    dvalue = weighted_rows(exponentials, narrow)
    # The part of each row's gradient that keeps its weights' sum at 1.
    common = (wide * out.astype(jnp.float32)).sum(-1, keepdims=True)
    dscores = exponentials * (products(narrow, value) - common)
    if softcap is not None:
        dscores *= 1 - jnp.square(jnp.tanh(_scores(query, key, bias) / softcap))
    dbias = None
    if bias is not None:
        dbias = dscores if len(bias) > 1 else dscores.sum(0, keepdims=True)
        dbias = dbias.astype(bias.dtype)
    dscores = dscores.astype(query.dtype)
    dquery = weighted_values(dscores, key)
    dkey = weighted_rows(dscores, query)
    given = dquery.astype(query.dtype), dkey.astype(key.dtype), dvalue.astype(value.dtype)
    return *given, None, dbias


_attend.defvjp(_forward, _backward)
