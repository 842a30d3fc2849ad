"""Softmax attention behind one function, with a choice of implementations.

Axes: B batch, L query length, S key length, H query heads, N key/value heads, G = H / N,
K head_dim.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models import balanced, ring
from bigmodels.models.plain import plain_attend
from bigmodels.models.scores import (
    bounded,
    empty_sums,
    fold,
    fold_in,
    heads_first,
    products,
    scaled,
    unfold,
    visible,
)

Array = jax.Array
Implementation = Literal['auto', 'xla', 'blockwise', 'cudnn', 'ring']
# From this many keys on, the score matrix costs more memory traffic than recomputing it.
BLOCKWISE_FROM = 4096


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

    On a mesh that splits the sequence, without a cache, all arrays of length L are in the layout
    of `balanced`; see `ring.ring_attend`.

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
    options = dict(causal=causal, window=window, segment_ids=segment_ids)
    if chosen == 'ring':
        return ring.ring_attend(query, key, value, **options, softcap=softcap)
    mask = functools.partial(visible, **options, query_slots=query_slots)
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
    folded = scaled(fold(query, key.shape[2])), heads_first(key), heads_first(value)
    if chosen == 'blockwise':
        return unfold(_blockwise(*folded, mask, softcap))
    band = (None, None)
    if query_slots is None:
        band = (None if window is None else window - 1, 0 if causal else None)
    return unfold(plain_attend(*folded, mask, softcap, band))


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

    It depends on the mesh that is set: see `jax.set_mesh`.

    Raises:
      UserError: if an explicit request cannot run here, or the length does not divide.
    """
    num_parts = 1 if cached else sharding.axis_size('sequence')
    if num_parts > 1:
        return _choose_ring(requested, length, num_parts)
    if requested == 'ring':
        if not cached and not jax.sharding.get_abstract_mesh().empty:
            raise errors.UserError(
                'attention = "ring" needs a sequence that is split over devices: set '
                'config.mesh.sequence to more than 1, or use "auto".'
            )
        requested = 'auto'  # the same model decodes, and is initialised, without a mesh
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


def _choose_ring(requested: Implementation, length: int, num_parts: int) -> tuple[str, str]:
    """The ring, which alone computes attention over a split sequence; raises as above."""
    if requested not in ('auto', 'ring'):
        raise errors.UserError(
            f'attention = "{requested}" needs whole sequences, but the mesh axis sequence splits '
            f'them over {num_parts} devices: use "auto", or set config.mesh.sequence to 1.'
        )
    balanced.check_length(length, num_parts)
    asked = 'asked for' if requested == 'ring' else 'auto'
    return 'ring', f'{asked}: the sequence is split over {num_parts} devices'


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

        def key_block(sums, column):
            column_ids = column + jnp.arange(columns)
            seen = mask(row_ids, jnp.minimum(column_ids, num_keys - 1))
            real = jnp.broadcast_to(column_ids < num_keys, (1, rows, columns))
            k, v = (jax.lax.dynamic_slice_in_dim(x, column, columns, axis=2) for x in (key, value))
            scores = bounded(products(q, k), real if seen is None else seen & real, softcap)
            return fold_in(sums, scores, v), None

        (total, _, out), _ = jax.lax.scan(
            key_block, empty_sums(q), jnp.arange(0, key.shape[2], columns)
        )
        return (out / total[..., None]).astype(query.dtype)

    blocks = jax.lax.map(query_block, jnp.arange(0, query.shape[3], rows))  # [X, B, N, G, R, K]
    return jnp.moveaxis(blocks, 0, 3).reshape(b, n, g, -1, k)[:, :, :, :length]


def _pad(x: Array, axis: int, multiple: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)
