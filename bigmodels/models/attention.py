"""Softmax attention behind one function, with a choice of implementations.

Axes: B batch, L query length, S key length, H query heads, N key/value heads, G = H / N,
K head_dim.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models import layers

Array = jax.Array
Implementation = Literal['auto', 'xla', 'blockwise', 'cudnn']
# From this many keys on, the score matrix costs more memory traffic than recomputing it.
BLOCKWISE_FROM = 4096
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a fully masked row gives no NaN


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Array | None = None,
    query_slots: Array | None = None,
    softcap: float | None = None,
    implementation: Implementation = 'auto',
) -> Array:
    """softmax(query key^T / sqrt(K) + mask) value, softmax in float32.

    Args:
      query: [B, L, H, K].
      key, value: [B, S, N, K]; H must be a multiple of N (grouped heads).
      causal: a query sees the key slots up to its own.
      window: a query sees only this many latest key slots, its own included.
      segment_ids: [B, L] with L = S: a query sees keys of its own segment only.
      query_slots: [B, L] key slot of each query; default 0..L-1. Used with a cache.
      softcap: bounds the scores by `layers.soft_cap`.
      implementation: an explicit one that cannot run raises UserError.

    Returns:
      [B, L, H, K] in query's dtype.
    """
    chosen, _ = choose_implementation(
        implementation,
        query.dtype,
        query.shape[-1],
        key.shape[1],
        softcap,
        cached=query_slots is not None,
    )
    mask = functools.partial(
        visible, causal=causal, window=window, segment_ids=segment_ids, query_slots=query_slots
    )
    if chosen == 'cudnn':
        full = mask(jnp.arange(query.shape[1]), jnp.arange(key.shape[1]))
        plain_causal = causal and window is None and segment_ids is None
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=plain_causal,
            implementation='cudnn',
            mask=None if plain_causal or full is None else full[:, None],
        )
    function = _blockwise if chosen == 'blockwise' else _plain
    folded = function(
        _fold_query(query, key.shape[2]), _heads_first(key), _heads_first(value), mask, softcap
    )
    return _unfold(folded, query.shape)


def choose_implementation(
    requested: Implementation,
    dtype,
    head_dim: int,
    length: int,
    softcap: float | None = None,
    cached: bool = False,
    platform: str | None = None,
) -> tuple[str, str]:
    """The implementation that will run and, in words, why.

    Raises:
      UserError: if an explicit request cannot run here.
    """
    platform = platform or jax.default_backend()
    obstacle = None
    if platform not in ('gpu', 'cuda'):
        obstacle = f'it needs an NVIDIA GPU and this is {platform}'
    elif jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        obstacle = f'it computes in bfloat16 or float16, not {jnp.dtype(dtype).name}'
    elif head_dim > 128 or head_dim % 8:
        obstacle = f'it takes head dimensions up to 128 in steps of 8, not {head_dim}'
    elif softcap is not None:
        obstacle = 'it has no soft cap'
    elif cached:
        obstacle = 'decoding with a cache does not use it'
    if requested == 'cudnn':
        if obstacle and not cached:
            raise errors.UserError(f'attention = "cudnn" cannot run: {obstacle}. Use "auto".')
        return ('xla', obstacle) if obstacle else ('cudnn', 'asked for')
    if requested != 'auto':
        return requested, 'asked for'
    if obstacle is None:
        return 'cudnn', 'auto: fused kernel, this GPU, dtype and head size have one'
    if length >= BLOCKWISE_FROM and not cached:
        return (
            'blockwise',
            f'auto: {length} keys need memory linear in length; no cudnn: {obstacle}',
        )
    return 'xla', f'auto: {length} keys fit a full score matrix; no cudnn: {obstacle}'


def visible(
    rows: Array,
    columns: Array,
    *,
    causal: bool,
    window: int | None,
    segment_ids: Array | None,
    query_slots: Array | None,
) -> Array | None:
    """Which key slots `columns` [S'] the queries `rows` [L'] see: bool [B or 1, L', S'] or None."""
    slots = rows[None, :, None] if query_slots is None else query_slots[:, rows, None]
    masks = []
    if causal:
        masks.append(columns <= slots)
    if window is not None:
        masks.append(columns > slots - window)
    if segment_ids is not None:
        masks.append(segment_ids[:, rows, None] == segment_ids[:, None, columns])
    return functools.reduce(jnp.logical_and, masks) if masks else None


def _fold_query(query: Array, num_kv_heads: int) -> Array:
    """[B, L, H, K] -> [B, N, G, L, K], scaled by 1/sqrt(K)."""
    b, l, h, k = query.shape
    grouped = query.reshape(b, l, num_kv_heads, h // num_kv_heads, k).transpose(0, 2, 3, 1, 4)
    return grouped * jnp.asarray(1 / math.sqrt(k), query.dtype)


def _heads_first(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3)  # [B, S, N, K] -> [B, N, S, K]


def _unfold(folded: Array, shape: tuple[int, ...]) -> Array:
    return folded.transpose(0, 3, 1, 2, 4).reshape(shape)  # [B, N, G, L, K] -> [B, L, H, K]


def _scores(query: Array, key: Array, mask: Array | None, softcap: float | None) -> Array:
    """query [B, N, G, L, K], key [B, N, S, K] -> masked float32 scores [B, N, G, L, S]."""
    b, n, g, l, k = query.shape
    # Groups are folded into the rows: keys are read once and never repeated.
    scores = jnp.einsum(
        'bnlk,bnsk->bnls', query.reshape(b, n, g * l, k), key, preferred_element_type=jnp.float32
    ).reshape(b, n, g, l, -1)
    scores = layers.soft_cap(scores, softcap)
    return scores if mask is None else jnp.where(mask[:, None, None], scores, _MASKED)


def _weighted_values(weights: Array, value: Array) -> Array:
    """weights [B, N, G, L, S], value [B, N, S, K] -> float32 [B, N, G, L, K]."""
    b, n, g, l, s = weights.shape
    out = jnp.einsum(
        'bnls,bnsk->bnlk',
        weights.reshape(b, n, g * l, s).astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(b, n, g, l, -1)


def _plain(query: Array, key: Array, value: Array, mask, softcap: float | None) -> Array:
    """The whole score matrix at once; its backward pass reuses the saved softmax."""
    full = mask(jnp.arange(query.shape[3]), jnp.arange(key.shape[2]))
    weights = jax.nn.softmax(_scores(query, key, full, softcap), axis=-1)
    return _weighted_values(weights, value).astype(query.dtype)


def _blockwise(
    query: Array, key: Array, value: Array, mask, softcap: float | None, block: int = 512
) -> Array:
    """Memory linear in L and S: online softmax over key blocks (Rabe and Staats 2021).

    Each block of queries is recomputed in the backward pass.
    """
    b, n, g, length, k = query.shape
    num_keys = key.shape[2]
    rows, columns = min(block, length), min(block, num_keys)
    query = _pad(query, 3, rows)
    key, value = _pad(key, 2, columns), _pad(value, 2, columns)

    @jax.checkpoint
    def query_block(start: Array) -> Array:
        q = jax.lax.dynamic_slice_in_dim(query, start, rows, axis=3)
        row_ids = jnp.minimum(start + jnp.arange(rows), length - 1)

        def key_block(carry, column):
            total, peak, out = carry
            column_ids = column + jnp.arange(columns)
            seen = mask(row_ids, jnp.minimum(column_ids, num_keys - 1))
            real = jnp.broadcast_to(column_ids < num_keys, (1, rows, columns))
            scores = _scores(
                q,
                jax.lax.dynamic_slice_in_dim(key, column, columns, axis=2),
                real if seen is None else seen & real,
                softcap,
            )
            new_peak = jnp.maximum(peak, scores.max(-1))
            weights = jnp.exp(scores - new_peak[..., None])
            shrink = jnp.exp(peak - new_peak)
            block_out = _weighted_values(
                weights, jax.lax.dynamic_slice_in_dim(value, column, columns, axis=2)
            )
            return (
                total * shrink + weights.sum(-1),
                new_peak,
                out * shrink[..., None] + block_out,
            ), None

        start_carry = (
            jnp.zeros((b, n, g, rows)),
            jnp.full((b, n, g, rows), _MASKED),
            jnp.zeros((b, n, g, rows, k)),
        )
        (total, _, out), _ = jax.lax.scan(
            key_block, start_carry, jnp.arange(0, key.shape[2], columns)
        )
        return (out / total[..., None]).astype(query.dtype)

    blocks = jax.lax.map(query_block, jnp.arange(0, query.shape[3], rows))  # [X, B, N, G, R, K]
    return jnp.moveaxis(blocks, 0, 3).reshape(b, n, g, -1, k)[:, :, :, :length]


def _pad(x: Array, axis: int, multiple: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)
