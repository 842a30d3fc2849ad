"""The blocks of a Transformer and the settings that they are made by.

Axes: B batch, L length, S cache slots, D embed, H heads, N key/value heads, K head_dim, F mlp.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import config, errors, sharding
from bigmodels.models.parts import layers
from bigmodels.models.parts import moe as moe_lib
from bigmodels.models.parts.attention import ATTENDED, Implementation, attend, keeps
from bigmodels.models.parts.attention.scores import heads_first

Array = jax.Array
# Per layer: key and value, [B, N, S, K]; with cross-attention also 'context', the same two.
Cache = tuple[dict[str, Any], ...]


class Context(NamedTuple):
    """What cross-attention sees. Its rows B' divide B: B / B' rows after one another share one.

    Fields:
      states: [B', S, D]; None where a cache holds their keys and values already.
      segment_ids: int [B', S]: a token sees the states of its own segment, by default 1.
    """

    states: Array | None
    segment_ids: Array


Remat = Literal['none', 'full', 'dots', 'attention']
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


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Settings:
    """What a Transformer is made of; the fields of `Transformer` and the keys of `config.model`.

    Fields:
      vocab_multiple: the tables have rows up to a multiple of this, as tensor cores are fastest on
        multiples of 128; logits of these rows are -inf, and parameters, counted, are never trained.
      num_kv_heads: fewer than num_heads is grouped-query, one is multi-query attention.
      head_dim: default embed_dim / num_heads.
      mlp_dim: default 4 * embed_dim.
      moe: makes the feed-forward layers mixtures of experts, see `moe.Settings`.
      causal: a token sees none after it.
      max_length: the longest context; the size of learned positions.
      positions: 'learned' (GPT-2), 'rotary' (Llama) or 'none'.
      rotary_scaling: see `layers.rotary_frequencies`.
      local_rotary_theta: of layers that have the window where others do not, in place of
        rotary_theta and rotary_scaling (Gemma 3).
      norm_placement: before each branch, after the sum ('post', as in BERT), or before and after
        each branch ('both', as in Gemma 2).
      norm_offset: see `layers.Norm`; 1 in Gemma.
      use_bias: in projections and norms; `qkv_bias` in query, key and value only (Qwen 2),
        `attention_bias` in these and in attention's output.
      sliding_window: a token sees this many latest tokens, itself included.
      global_layers: numbers of the layers without the window, from 0; they are not scanned.
      query_scalar: scores are divided by its square root; default head_dim (Gemma has others).
      dropout_rate: on the embeddings and on the output of each branch.
      scale_embeddings: multiply embeddings by sqrt(embed_dim) (Gemma).
      attention: see `attention.attend`.
      scan_layers: one compiled block scanned over stacked parameters: compiles large models in
        constant time. `stack_layers` and `unstack_layers` convert.
      remat: 'none' or a key of REMAT_POLICIES; 'dots' keeps the results of all projections,
        experts' included.
      microbatches, pipeline_rounds: see `pipeline`; used where the mesh has stages.
      logits_dtype: of the logits in training and evaluation: 'bfloat16' halves what a large
        vocabulary costs there, as PyTorch's autocast does; generation has float32.
      dtype: of the computation; parameters, norms and softmax are float32.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    vocab_multiple: int = 1
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    moe: Mapping[str, Any] | None = None
    causal: bool = True
    max_length: int = 1024
    positions: Literal['learned', 'rotary', 'none'] = 'rotary'
    rotary_theta: float = 10_000.0
    rotary_scaling: Mapping[str, Any] | None = None
    local_rotary_theta: float | None = None
    norm: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
    norm_placement: Literal['pre', 'post', 'both'] = 'pre'
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    qk_norm: bool = False
    activation: Literal['relu', 'relu_squared', 'gelu', 'gelu_exact', 'silu', 'swiglu', 'geglu'] = (
        'gelu'
    )
    use_bias: bool = True
    qkv_bias: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    dropout_rate: float = 0.0
    sliding_window: int | None = None
    global_layers: Sequence[int] = ()
    query_scalar: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logits_dtype: layers.Dtype = 'float32'
    attention: Implementation = 'auto'
    scan_layers: bool = False
    remat: Remat = 'none'
    microbatches: int = 0
    pipeline_rounds: int = 1
    dtype: layers.Dtype = 'float32'

    def __post_init__(self):
        if self.rotary_scaling is not None:
            self.rotary_scaling = nn.FrozenDict(self.rotary_scaling)  # a model is hashable
        if self.moe is not None:
            self.moe = nn.FrozenDict(self.moe)
            _ = self.experts  # building them checks them
        sizes = self.num_layers, self.embed_dim, self.num_heads, self.vocab_size
        if min(*sizes, self.vocab_multiple) < 1:
            raise errors.UserError('The sizes of a Transformer must be at least 1.')
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise errors.UserError(
                f'embed_dim = {self.embed_dim} is not divisible by num_heads = {self.num_heads}: '
                f'choose others or set head_dim.'
            )
        if self.num_heads % self.kv_heads:
            raise errors.UserError(
                f'num_heads = {self.num_heads} must be a multiple of num_kv_heads = '
                f'{self.kv_heads}.'
            )
        if self.positions == 'rotary':
            if self.dim_per_head % 2:
                raise errors.UserError(
                    f'Rotary positions need an even head_dim, not {self.dim_per_head}.'
                )
            layers.rotary_frequencies(self.dim_per_head, self.rotary_theta, self.rotary_scaling)
        self._check_layers_that_differ()

    def _check_layers_that_differ(self) -> None:
        self.global_layers = tuple(self.global_layers)
        if not self.global_layers:
            if self.local_rotary_theta is not None:
                raise errors.UserError('local_rotary_theta is for a model with global_layers.')
            return
        if self.sliding_window is None:
            raise errors.UserError('global_layers have no window that others have: set it.')
        if not all(0 <= i < self.num_layers for i in self.global_layers):
            raise errors.UserError(
                f'global_layers = {self.global_layers} must be from 0 to {self.num_layers - 1}.'
            )
        if self.scan_layers:
            raise errors.UserError(
                'Layers that differ are not scanned: set scan_layers to False, or leave out '
                'global_layers.'
            )

    def of_layer(self, i: int) -> 'Settings':
        """The settings of layer i, alike in all where there are no `global_layers`."""
        if not self.global_layers:
            return self
        alike = dataclasses.replace(self, global_layers=(), local_rotary_theta=None)
        if i in self.global_layers:
            return dataclasses.replace(alike, sliding_window=None)
        if self.local_rotary_theta is None:
            return alike
        return dataclasses.replace(alike, rotary_theta=self.local_rotary_theta, rotary_scaling=None)

    @property
    def vocab_rows(self) -> int:
        """Rows of the tables: the vocabulary and its padding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def dim_per_head(self) -> int:
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def experts(self) -> moe_lib.Settings | None:
        return None if self.moe is None else config.build(moe_lib.Settings, self.moe, 'model.moe')

    def residual_init(self, fan_in: int):
        """Kernels that write to the residual stream shrink with depth (GPT-2, section 2.3)."""
        return scaled_normal(1 / (2 * self.num_layers * fan_in))


def settings_of(module: nn.Module, **given) -> Settings:
    """The settings that a module has as fields of the same names, and those that are given."""
    own, settings = (
        {field.name for field in dataclasses.fields(owner)} for owner in (module, Settings)
    )
    return Settings(**{name: getattr(module, name) for name in own & settings} | given)


class Attention(nn.Module):
    """Self-attention of x [B, L, D]; with a cache, over all slots written so far.

    `slots`, int [B, L], are the last ones that causal attention sees, by default a token's own.
    """

    settings: Settings

    @nn.compact
    def __call__(self, x, positions, segment_ids, cache, slots=None):
        c = self.settings
        query = _heads(c, x, c.num_heads, 'query')
        key, value = (_heads(c, x, c.kv_heads, name) for name in ('key', 'value'))
        if c.positions == 'rotary':
            turns = layers.rotary_frequencies(c.dim_per_head, c.rotary_theta, c.rotary_scaling)
            query = layers.rotate(query, positions, *turns)
            key = layers.rotate(key, positions, *turns)
        if cache is not None:
            slots = positions if slots is None else slots
            cache = {
                'key': _write(cache['key'], key, positions),
                'value': _write(cache['value'], value, positions),
            }
            # Else XLA writes them again for what reads them below, into a copy.
            cache = jax.lax.optimization_barrier(cache)
            key, value = (cache[name].transpose(0, 2, 1, 3) for name in ('key', 'value'))
        attended = attend(
            query,
            key,
            value,
            causal=c.causal,
            window=c.sliding_window,
            segment_ids=segment_ids,
            softcap=c.attention_softcap,
            query_slots=slots,
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
    linear = layers.Linear(
        count * settings.dim_per_head,
        use_bias=settings.use_bias or settings.qkv_bias or settings.attention_bias,
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
        if c.activation in layers.GATED_ACTIVATIONS:
            hidden = layers.GATED_ACTIVATIONS[c.activation](project(name='gate')(x), hidden)
        else:
            hidden = layers.ACTIVATIONS[c.activation](hidden)
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
        self, x, positions, segment_ids, cache, context: Context | None = None, slots=None
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
            before('attention', x), positions, segment_ids, cache, slots
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
      positions: int [B, L] or [1, L]; needed by rotary positions and by a cache.
      context: gives every block cross-attention.
      slots: see `Attention`.

    Raises:
      UserError: for a cache with scanned layers.
    """
    block = Block
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
            x, positions, segment_ids, None, context, slots
        )
    caches = []
    for i in range(settings.num_layers):
        x, layer_cache = block(settings.of_layer(i), train, name=f'layers_{i}')(
            x, positions, segment_ids, None if cache is None else cache[i], context, slots
        )
        caches.append(layer_cache)
    return x, None if cache is None else tuple(caches)


def scaled_normal(variance: float):
    """An initialiser of normal values of this variance."""
    return nn.initializers.normal(math.sqrt(variance))


def _write(cache: Array, new: Array, positions: Array) -> Array:
    """Writes new [B, L, N, K] into cache [B, N, S, K] from slot positions[:, 0] on."""

    def write_row(row, update, start):
        return jax.lax.dynamic_update_slice(row, update, (0, start, 0))

    starts = jnp.broadcast_to(positions[:, 0], len(cache))
    return jax.vmap(write_row)(cache, new.transpose(0, 2, 1, 3).astype(cache.dtype), starts)
