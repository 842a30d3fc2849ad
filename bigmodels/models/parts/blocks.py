"""The blocks of a Transformer, made by `settings`.

Axes: B batch, L length, S cache slots, D embed, H heads, N key/value heads, K head_dim, F mlp.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models.parts import activations, layers, relative
from bigmodels.models.parts import moe as moe_lib
from bigmodels.models.parts.attention import ATTENDED, attend, keeps
from bigmodels.models.parts.attention.scores import heads_first
from bigmodels.models.parts.settings import Settings, scaled_normal

Array = jax.Array
# Per layer: key and value, [B, N, S, K], and where they are of int8 key_scale and value_scale,
# [B, N, S, 1]; with cross-attention also 'context', key and value of what it sees.
Cache = tuple[dict[str, Any], ...]


class Context(NamedTuple):
    """What cross-attention sees. Its rows B' divide B: B / B' rows after one another share one.

    Fields:
      states: [B', S, D]; None where a cache holds their keys and values already.
      segment_ids: int [B', S]: a token sees the states of its own segment, by default 1.
    """

    states: Array | None
    segment_ids: Array


# What the backward pass of a block keeps instead of computing it again.
REMAT_POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': keeps(layers.PRODUCT, ATTENDED),
    'attention': keeps(ATTENDED),
}

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),  # [D, H*K], [D, F]
    (r'(query|key|value|gate|up)/bias$', ('tensor',)),
    (r'(out|down)/kernel$', ('tensor', 'fsdp')),  # [H*K, D], [F, D]
)


class Attention(nn.Module):
    """Self-attention of x [B, L, D]; with a cache, over all slots written so far.

    `slots`, int [B, L], are the last ones that causal attention sees, by default a token's own;
    `bias` is that of `attention.attend`.
    """

    settings: Settings

    @nn.compact
    def __call__(self, x, positions, segment_ids, cache, slots=None, bias=None):
        c = self.settings
        query = _heads(c, x, c.num_heads, 'query')
        key, value = (_heads(c, x, c.kv_heads, name) for name in ('key', 'value'))
        if c.positions == 'rotary':
            turns = layers.rotary_frequencies(c.dim_per_head, c.rotary_theta, c.rotary_scaling)
            query = layers.rotate(query, positions, *turns)
            key = layers.rotate(key, positions, *turns)
        if cache is not None:
            slots = positions if slots is None else slots
            kept = _kept(cache, key=key, value=value)
            cache = {name: _write(cache[name], new, positions) for name, new in kept.items()}
            # Else XLA writes them again for what reads them below, into a copy.
            cache = jax.lax.optimization_barrier(cache)
            key, value = (heads_first(_read(cache, name, x.dtype)) for name in ('key', 'value'))
        attended = attend(
            query,
            key,
            value,
            causal=c.causal,
            window=c.sliding_window,
            segment_ids=segment_ids,
            softcap=c.attention_softcap,
            query_slots=slots,
            bias=bias,
            implementation=c.attention,
        )
        return _attention_output(c, attended, x.shape), cache


class CrossAttention(nn.Module):
    """Attention of x [B, L, D] to a `Context`, or to a cache of its keys and values.

    Returns its output, and these keys and values as a cache for the next tokens.
    """

    settings: Settings

    @nn.compact
    def __call__(self, x, segment_ids, context: Context, cache):
        c = self.settings
        query = _heads(c, x, c.num_heads, 'query')
        if cache is None:
            key, value = (_heads(c, context.states, c.kv_heads, name) for name in ('key', 'value'))
        else:
            key, value = (heads_first(cache[name]) for name in ('key', 'value'))
        if segment_ids is None:
            segment_ids = jnp.ones(x.shape[:2], jnp.int32)
        # The rows that share a context are one row to its keys, which are read once and not copied.
        rows = len(key)
        attended = attend(
            query.reshape(rows, -1, *query.shape[2:]),
            key,
            value,
            causal=False,
            segment_ids=segment_ids.reshape(rows, -1),
            key_segment_ids=context.segment_ids,
            softcap=c.attention_softcap,
            implementation=c.attention,
        )
        cache = {'key': heads_first(key), 'value': heads_first(value)}
        return _attention_output(c, attended, x.shape), cache


def _heads(settings: Settings, x: Array, count: int, name: str) -> Array:
    """x [B, L, D] -> [B, L, count, K], by the projection `name` of the module that calls."""
    some = settings.use_bias or settings.qkv_bias or settings.attention_bias
    linear = layers.Linear(
        count * settings.dim_per_head,
        use_bias=some and (settings.key_bias or name != 'key'),
        kernel_init=scaled_normal(1 / x.shape[-1]),
        name=name,
    )
    heads = sharding.constrain_activations(
        linear(x).reshape(*x.shape[:2], count, settings.dim_per_head), 'tensor'
    )
    if settings.qk_norm and name != 'value':
        norm = layers.Norm(
            'rms_norm', settings.norm_epsilon, offset=settings.norm_offset, name=f'{name}_norm'
        )
        heads = norm(heads)
    if settings.query_scalar is not None and name == 'query':  # `attend` divides by sqrt(K)
        heads *= math.sqrt(settings.dim_per_head / settings.query_scalar)
    return heads


def _attention_output(settings: Settings, attended: Array, shape: tuple[int, int, int]) -> Array:
    """attended [.., H, K] -> `shape` [B, L, D], the projection `out` of the module that calls."""
    width = settings.num_heads * settings.dim_per_head
    out = layers.Linear(
        shape[-1],
        use_bias=settings.use_bias or settings.attention_bias,
        name='out',
        kernel_init=settings.residual_init(width),
    )(attended.reshape(*shape[:2], width))
    return sharding.constrain_activations(out)


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) for gated activations."""

    settings: Settings

    @nn.compact
    def __call__(self, x):
        c = self.settings
        d, f = x.shape[-1], c.mlp_dim or 4 * x.shape[-1]
        project = functools.partial(
            layers.Linear, f, use_bias=c.use_bias, kernel_init=scaled_normal(1 / d)
        )
        hidden = project(name='up')(x)
        if c.activation in activations.GATED_ACTIVATIONS:
            hidden = activations.GATED_ACTIVATIONS[c.activation](project(name='gate')(x), hidden)
        else:
            hidden = activations.ACTIVATIONS[c.activation](hidden)
        hidden = sharding.constrain_activations(hidden, 'tensor')
        return sharding.constrain_activations(
            layers.Linear(d, use_bias=c.use_bias, kernel_init=c.residual_init(f), name='down')(
                hidden
            )
        )


class Block(nn.Module):
    """Attention and feed-forward, each added to its input; x [B, L, D] -> (x, cache).

    With a context, cross-attention comes between the two.
    """

    settings: Settings
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x,
        positions,
        segment_ids,
        cache,
        context: Context | None = None,
        slots=None,
        bias=None,
    ):
        c = self.settings
        norm = functools.partial(layers.Norm, c.norm, c.norm_epsilon, c.use_bias, c.norm_offset)
        dropout = nn.Dropout(c.dropout_rate, deterministic=not self.train)

        def before(name, x):
            return x if c.norm_placement == 'post' else norm(name=f'{name}_norm')(x)

        def added(name, x, y):
            y = dropout(y)
            if c.norm_placement == 'post':
                return norm(name=f'{name}_post_norm')(x + y)
            return x + (norm(name=f'{name}_post_norm')(y) if c.norm_placement == 'both' else y)

        y, new_cache = Attention(c, name='attention')(
            before('attention', x), positions, segment_ids, cache, slots, bias
        )
        x = added('attention', x, y)
        if context is not None:
            y, seen = CrossAttention(c, name='cross_attention')(
                before('cross_attention', x),
                segment_ids,
                context,
                None if cache is None else cache.get('context'),
            )
            x = added('cross_attention', x, y)
            new_cache = None if cache is None else new_cache | {'context': seen}
        y = before('mlp', x)
        if c.moe is None:
            y = FeedForward(c, name='mlp')(y)
        else:
            y = moe_lib.MixtureOfExperts(
                c.experts, c.mlp_dim, c.activation, c.use_bias, c.residual_init, name='mlp'
            )(y, dropless=cache is not None)
        return sharding.constrain_activations(added('mlp', x, y)), new_cache


def run(
    settings: Settings,
    x: Array,
    positions: Array | None = None,
    segment_ids: Array | None = None,
    cache: Cache | None = None,
    train: bool = False,
    context: Context | None = None,
    slots: Array | None = None,
) -> tuple[Array, Cache | None]:
    """x [B, L, D] through every block, scanned or unrolled; for use in a compact `__call__`.

    Args:
      positions: int [B, L] or [1, L]; needed by rotary and relative positions and by a cache.
      context: gives every block cross-attention.
      slots: see `Attention`.

    Raises:
      UserError: for a cache with scanned layers.
    """
    block, bias = Block, None
    if settings.positions == 'relative':
        keys = positions if cache is None else jnp.arange(cache[0]['key'].shape[2])[None]
        bias = relative.RelativeBias(settings, name='relative_bias')(positions, keys)
    if settings.remat != 'none':
        # Unrolled, the compiler would merge the recomputation with the first computation.
        block = nn.remat(
            Block, policy=REMAT_POLICIES[settings.remat], prevent_cse=not settings.scan_layers
        )
    if settings.scan_layers:
        if cache is not None:
            raise errors.UserError('Decoding needs unrolled layers: use `unscanned`.')
        scanned = nn.scan(
            block,
            # The last two are those of `interpret.activations`.
            variable_axes=dict.fromkeys(
                ('params', 'losses', 'metrics', 'intermediates', 'edits'), 0
            ),
            split_rngs={'params': True, 'dropout': True},
            in_axes=nn.broadcast,
            length=settings.num_layers,
        )
        return scanned(settings, train, name='layers')(
            x, positions, segment_ids, None, context, slots, bias
        )
    caches = []
    for i in range(settings.num_layers):
        x, layer_cache = block(settings.of_layer(i), train, name=f'layers_{i}')(
            x, positions, segment_ids, None if cache is None else cache[i], context, slots, bias
        )
        caches.append(layer_cache)
    return x, None if cache is None else tuple(caches)


def _kept(cache: Mapping[str, Array], **new: Array) -> dict[str, Array]:
    """New keys and values [B, L, N, K] as a layer's cache keeps them."""
    if 'key_scale' not in cache:
        return new
    kept = {}
    for name, x in new.items():
        wide = x.astype(jnp.float32)
        largest = jnp.abs(wide).max(-1, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1) / 127
        kept |= {name: jnp.round(wide / scale), f'{name}_scale': scale}
    return kept


def _read(cache: Mapping[str, Array], name: str, dtype: Any) -> Array:
    """A layer's keys or values, [B, N, S, K]; those of int8 in the type of the computation."""
    scale = cache.get(f'{name}_scale')
    return cache[name] if scale is None else (cache[name] * scale).astype(dtype)


def _write(cache: Array, new: Array, positions: Array) -> Array:
    """Writes new [B, L, N, K] into cache [B, N, S, K] from slot positions[:, 0] on."""

    def write_row(row, update, start):
        return jax.lax.dynamic_update_slice(row, update, (0, start, 0))

    starts = jnp.broadcast_to(positions[:, 0], len(cache))
    return jax.vmap(write_row)(cache, new.transpose(0, 2, 1, 3).astype(cache.dtype), starts)
