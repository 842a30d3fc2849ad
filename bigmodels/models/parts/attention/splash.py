"""Splash attention: JAX's own kernel for TPUs behind the arguments of `attention.attend`.

Axes: B batch, L length, H query heads, N key/value heads, K head_dim.
"""

import functools

import jax
from jax.sharding import PartitionSpec

from bigmodels.models.parts.attention import balanced
from bigmodels.models.parts.attention.scores import heads_first, scaled

Array = jax.Array
TILE = 128  # lengths are multiples of a TPU's vector lanes
BLOCK = 512  # queries and keys held at a time, MaxText's choice for every TPU (configs/base.yml)


def splash_attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Array | None = None,
    softcap: float | None = None,
    residual_name: str | None = None,
    block: int = BLOCK,
    interpret: bool = False,
) -> Array:
    """`attention.attend` of bfloat16 or float32 arrays whose length is a multiple of TILE.

    Blocks of keys that no query of a block sees are left out. On a mesh each device computes its
    rows and heads; where B or N does not divide by the axes that split them, it computes all.

    Args:
      query: [B, L, H, K].
      key, value: [B, L, N, K]; H must be a multiple of N.
      causal, window, segment_ids, softcap: as in `attention.attend`.
      residual_name: of what the backward pass needs, the output and the log of the softmax's sum,
        for the policies of `jax.checkpoint`.
      block: the most queries and keys that are held at a time.
      interpret: computes without a TPU, slowly.

    Returns:
      [B, L, H, K] in query's dtype.
    """
    local = functools.partial(
        _on_device,
        causal=causal,
        window=window,
        softcap=softcap,
        residual_name=residual_name,
        block=next(size for size in range(block, 0, -TILE) if query.shape[1] % size == 0),
        interpret=interpret,
    )
    if not jax.sharding.get_abstract_mesh().empty:
        rows, heads = balanced.row_axes(len(query)), balanced.head_axis(key.shape[2])
        placed = PartitionSpec(rows, heads)
        local = balanced.on_devices(local, (placed, placed, placed, PartitionSpec(rows)), placed)
    out = local(*map(heads_first, (scaled(query), key, value)), segment_ids)
    return heads_first(out)


def _on_device(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    residual_name: str | None,
    block: int,
    interpret: bool,
) -> Array:
    """query [B, H, L, K], key and value [B, N, L, K], segment_ids [B, L] -> [B, H, L, K]."""
    # Pallas takes long to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    shape = (query.shape[2], key.shape[2])
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0 if causal else None), offset=0)
    else:
        mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * query.shape[1]),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=residual_name,
        interpret=interpret,
    )
    segments = None if segment_ids is None else kernels.SegmentIds(segment_ids, segment_ids)
    return jax.vmap(kernel)(query, key, value, segments)
