"""Scores, masks and weighted values: what every implementation of attention computes.

Axes: B batch, L query length, S key length, N key/value heads, G query heads of each of them,
K head_dim. Heads are folded and come before the length: queries [B, N, G, L, K], keys and values
[B, N, S, K].
"""

import functools
import math

import jax
import jax.numpy as jnp

from bigmodels.models.parts import layers

Array = jax.Array
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a fully masked row gives no NaN


def visible(
    rows: Array,
    columns: Array,
    *,
    causal: bool,
    window: int | None,
    segment_ids: Array | None,
    query_slots: Array | None,
    key_segment_ids: Array | None = None,
) -> Array | None:
    """Which key slots `columns` [S'] the queries `rows` [L'] see: bool [B or 1, L', S'] or None."""
    slots = rows[None, :, None] if query_slots is None else query_slots[:, rows, None]
    masks = []
    if causal:
        masks.append(columns <= slots)
    if window is not None:
        masks.append(columns > slots - window)
    if segment_ids is not None:
        of_keys = segment_ids if key_segment_ids is None else key_segment_ids
        masks.append(segment_ids[:, rows, None] == of_keys[:, None, columns])
    return functools.reduce(jnp.logical_and, masks) if masks else None


def scaled(query: Array) -> Array:
    """query [..., K] / sqrt(K), in its dtype."""
    return query * jnp.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)


def fold(x: Array, num_kv_heads: int) -> Array:
    """[B, L, H, K] -> [B, N, G, L, K]."""
    b, l, h, k = x.shape
    return x.reshape(b, l, num_kv_heads, h // num_kv_heads, k).transpose(0, 2, 3, 1, 4)


def heads_first(x: Array) -> Array:
    """[B, S, N, K] -> [B, N, S, K], and back."""
    return x.transpose(0, 2, 1, 3)


def unfold(folded: Array) -> Array:
    """[B, N, G, L, K] -> [B, L, H, K]."""
    b, n, g, l, k = folded.shape
    return folded.transpose(0, 3, 1, 2, 4).reshape(b, l, n * g, k)


def products(query: Array, key: Array) -> Array:
    """query [B, N, G, L, K], key [B, N, S, K] -> float32 [B, N, G, L, S]."""
    b, n, g, l, k = query.shape
    # Groups are folded into the rows: keys are read once and never repeated.
    return jnp.einsum(
        'bnlk,bnsk->bnls', query.reshape(b, n, g * l, k), key, preferred_element_type=jnp.float32
    ).reshape(b, n, g, l, -1)


def bounded(raw: Array, mask: Array | None, softcap: float | None) -> Array:
    """raw [B, N, G, L, S], of `products`: soft-capped, then masked by mask [B or 1, L, S]."""
    scores = layers.soft_cap(raw, softcap)
    return scores if mask is None else jnp.where(mask[:, None, None], scores, MASKED)


def weighted_values(weights: Array, value: Array) -> Array:
    """weights [B, N, G, L, S], value [B, N, S, K] -> float32 [B, N, G, L, K]."""
    b, n, g, l, s = weights.shape
    out = jnp.einsum(
        'bnls,bnsk->bnlk',
        weights.reshape(b, n, g * l, s).astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(b, n, g, l, -1)


def empty_sums(query: Array) -> tuple[Array, Array, Array]:
    """What `fold_in` starts from for query [B, N, G, L, K]."""
    rows = query.shape[:-1]
    start = jnp.zeros(rows), jnp.full(rows, MASKED), jnp.zeros(query.shape)
    return jax.tree.map(lambda x: varying_as(x, query), start)


def varying_as(constant: Array, x: Array) -> Array:
    """`constant` typed as x for `jax.shard_map`: a loop's first value must be typed as its last."""
    return jax.lax.pcast(constant, tuple(jax.typeof(x).manual_axis_type.varying), to='varying')


def fold_in(
    sums: tuple[Array, Array, Array], scores: Array, value: Array
) -> tuple[Array, Array, Array]:
    """One more block of keys in an online softmax (Milakov and Gimelshein 2018).

    Args:
      sums: total [B, N, G, L] and out [B, N, G, L, K] are sums of exp(score) and of exp(score)
        value, both relative to exp(peak), the largest so far: (total, peak, out), float32.
      scores: [B, N, G, L, S].
      value: [B, N, S, K].
    """
    total, peak, out = sums
    new_peak = jnp.maximum(peak, scores.max(-1))
    weights = jnp.exp(scores - new_peak[..., None])
    shrink = jnp.exp(peak - new_peak)
    return (
        total * shrink + weights.sum(-1),
        new_peak,
        out * shrink[..., None] + weighted_values(weights, value),
    )


def weighted_rows(weights: Array, rows: Array) -> Array:
    """weights [B, N, G, L, S], rows [B, N, G, L, K] -> float32 [B, N, S, K]."""
    b, n, g, l, s = weights.shape
    return jnp.einsum(
        'bnls,bnlk->bnsk',
        weights.reshape(b, n, g * l, s).astype(rows.dtype),
        rows.reshape(b, n, g * l, -1),
        preferred_element_type=jnp.float32,
    )
