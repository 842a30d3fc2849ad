"""Softmax attention behind one function, with a choice of implementations.

Axes: B batch, L query length, S key length, H query heads, N key/value heads, G = H / N,
K head_dim.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigmodels import errors, sharding
from bigmodels.models.parts.attention import balanced, ring, splash
from bigmodels.models.parts.attention.plain import plain_attend
from bigmodels.models.parts.attention.scores import (
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
Implementation = Literal['auto', 'xla', 'blockwise', 'cudnn', 'splash', 'ring']
# What remat may keep of attention, see `jax.checkpoint_policies.save_only_these_names`.
ATTENDED = 'attended'
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
    key_segment_ids: Array | None = None,
    query_slots: Array | None = None,
    softcap: float | None = None,
    bias: Array | None = None,
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
      segment_ids: [B, L]: a query sees keys of its own segment only.
      key_segment_ids: [B, S] of the keys, where these are of another sequence than the queries;
        by default L = S and they are the queries' own.
      query_slots: [B, L] key slot of each query, or the last one that it sees; default 0..L-1.
        Used with a cache, and where a prefix is seen whole by itself.
      softcap: bounds the scores by `layers.soft_cap`.
      bias: float32 [B or 1, H, L, S], added to the scores before that.
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
        cross=key_segment_ids is not None,
        biased=bias is not None,
        query_length=query.shape[1],
    )
    options = dict(causal=causal, window=window, segment_ids=segment_ids)
    # Of these remat keeps more than their output, which their backward pass needs as well.
    if chosen == 'splash':
        return splash.splash_attend(
            query, key, value, **options, softcap=softcap, residual_name=ATTENDED
        )
    if chosen == 'cudnn':  # known to `keeps` without a name
        return _cudnn(query, key, value, **options, key_segment_ids=key_segment_ids)
    if chosen == 'ring':
        out = ring.ring_attend(query, key, value, **options, softcap=softcap)
    else:
        mask = functools.partial(
            visible, **options, key_segment_ids=key_segment_ids, query_slots=query_slots
        )
        folded = scaled(fold(query, key.shape[2])), heads_first(key), heads_first(value)
        if chosen == 'blockwise':
            out = unfold(_blockwise(*folded, mask, softcap))
        else:
            band = (None, None)
            if query_slots is None:
                band = (None if window is None else window - 1, 0 if causal else None)
            out = unfold(plain_attend(*folded, mask, softcap, band, bias))
    return checkpoint_name(out, ATTENDED)


def keeps(*names: str) -> Callable[..., bool]:
    """A policy of `jax.checkpoint`: keeps these names, with ATTENDED all results of its kernel.

    cuDNN's kernel names nothing, and would run again for the sums of its softmax.
    """
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive, *arguments, **parameters):
        fused = ATTENDED in names and primitive.name == 'dot_product_attention_fwd_wrapper'
        return fused or named(primitive, *arguments, **parameters)

    return policy


def choose_implementation(
    requested: Implementation,
    dtype,
    head_dim: int,
    length: int,
    softcap: float | None = None,
    cached: bool = False,
    cross: bool = False,
    platform: str | None = None,
    biased: bool = False,
    query_length: int | None = None,
) -> tuple[str, str]:
    """The implementation that will run and, in words, why.

    It depends on the mesh that is set, see `jax.set_mesh`, and on its devices' platform. `length`
    is of the keys, `query_length` of queries that are not as many.

    Raises:
      UserError: if an explicit request cannot run here, or the length does not divide.
    """
    if biased:
        return _choose_biased(requested)
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
    platform = platform or sharding.platform()
    obstacles = {
        'cudnn': _cudnn_obstacle(platform, dtype, head_dim, softcap, query_length, length),
        'splash': _splash_obstacle(platform, dtype, length),
    }
    if cached:
        obstacles = dict.fromkeys(obstacles, 'decoding with a cache does not use it')
    elif cross:
        obstacles['splash'] = 'it takes queries and keys of one sequence'
    if requested in obstacles:
        obstacle = obstacles[requested]
        if obstacle and not (cached or cross):
            raise errors.UserError(f'attention = "{requested}" cannot run: {obstacle}. Use "auto".')
        return ('xla', obstacle) if obstacle else (requested, 'asked for')
    if requested != 'auto':
        return requested, 'asked for'
    fused = 'splash' if platform == 'tpu' else 'cudnn'
    obstacle = obstacles[fused]
    if obstacle is None:
        return fused, 'auto: fused kernel, these devices, dtype and sizes have one'
    if length >= BLOCKWISE_FROM and not cached:
        return (
            'blockwise',
            f'auto: {length} keys need memory linear in length; no {fused}: {obstacle}',
        )
    return 'xla', f'auto: {length} keys fit a full score matrix; no {fused}: {obstacle}'


def _cudnn_obstacle(
    platform: str, dtype, head_dim: int, softcap: float | None, *lengths: int | None
) -> str | None:
    """Why cuDNN's kernel cannot run, or None."""
    if platform not in sharding.GPU:
        return f'it needs an NVIDIA GPU and this is {platform}'
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f'it computes in bfloat16 or float16, not {jnp.dtype(dtype).name}'
    if head_dim > 128 or head_dim % 8:
        return f'it takes head dimensions up to 128 in steps of 8, not {head_dim}'
    if odd := [size for size in lengths if _is_odd(size)]:  # JAX 0.10 takes it for masked always
        return f'its gradient takes even lengths, not {odd[0]}'
    return None if softcap is None else 'it has no soft cap'


def _is_odd(length: int | None) -> bool:
    return length is not None and not jax.export.is_symbolic_dim(length) and length % 2 == 1


def _splash_obstacle(platform: str, dtype, length: int) -> str | None:
    """Why the TPU's kernel cannot run, or None."""
    if platform != 'tpu':
        return f'it needs a TPU and this is {platform}'
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f'it computes in bfloat16 or float32, not {jnp.dtype(dtype).name}'
    if length % splash.TILE:
        return f'it takes lengths that are multiples of {splash.TILE}, not {length}'
    return None


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


def _choose_biased(requested: Implementation) -> tuple[str, str]:
    """Where numbers are added to the scores; raises as above."""
    if requested not in ('auto', 'xla'):
        raise errors.UserError(
            f'attention = "{requested}" adds nothing to scores, as relative positions do: use '
            f'"auto".'
        )
    return 'xla', 'what is added to scores needs a full matrix of them'


def _cudnn(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    window: int | None,
    segment_ids: Array | None,
    key_segment_ids: Array | None,
) -> Array:
    """cuDNN's fused kernel, by JAX: arguments and result as in `attend`."""
    fused = functools.partial(jax.nn.dot_product_attention, implementation='cudnn')
    if segment_ids is None and (causal or window is None):
        reach = None if window is None else (window - 1, 0)
        return fused(query, key, value, is_causal=causal, local_window_size=reach)
    # The kernel knows no segments: it reads their mask, [B, L, S], from memory.
    mask = visible(
        jnp.arange(query.shape[1]),
        jnp.arange(key.shape[1]),
        causal=causal,
        window=window,
        segment_ids=segment_ids,
        key_segment_ids=key_segment_ids,
        query_slots=None,
    )
    return fused(query, key, value, mask=mask[:, None])


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
