"""The decoder Transformer: GPT-2, Llama, Qwen, Gemma and their kin are settings of its fields.

Axes: B batch, L length, S cache slots, D embed, H heads, N key/value heads, K head_dim, F mlp,
V vocab.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding, trees
from bigmodels.models.parts import activations, blocks, kernels, layers, pipeline
from bigmodels.models.parts import moe as moe_lib
from bigmodels.models.parts.attention import balanced
from bigmodels.models.parts.blocks import Block, Cache
from bigmodels.models.parts.settings import Settings, scaled_normal, settings_of

Array = jax.Array

# What layers say beside their output: [B] arrays, see `moe.MixtureOfExperts`.
SOWN = ('losses', 'metrics')
# Field -> its only value where nobody takes the logits, and why; see `settings.check_fixed`.
FIXED_WITHOUT_LOGITS = {
    'tie_embeddings': (True, 'there are no logits of tokens to train another matrix'),
    'moe': (None, 'nobody adds the losses that balance experts'),
}
# Parameter name -> mesh axes of its trailing dimensions: of embeddings and dense blocks.
STATE_RULES = (
    *blocks.SHARDING_RULES,
    (r'^embed/embedding$', ('tensor', 'fsdp')),  # [V, D]
    (r'^(position|type)_embed/embedding$', (None, 'fsdp')),  # [S, D], [T, D]
)
SHARDING_RULES = (
    *moe_lib.SHARDING_RULES,
    *STATE_RULES,
    (r'^unembed$', ('fsdp', 'tensor')),  # [D, V]
    (r'^logits_transform/dense/kernel$', ('fsdp', None)),  # [D, D]
    (r'(scale|bias)$', ()),  # small vectors: replicated
)


class Prefix(NamedTuple):
    """What comes before the tokens, and how much of them it goes on in.

    All of it sees all of it, as in the prefix language model of T5 (Raffel et al. 2020, section
    3.2.1); the tokens after it are causal.

    Fields:
      states: [B, P, D], in the place of embeddings.
      lengths: int [B], so many tokens at the beginning of each row belong to it.
    """

    states: Array
    lengths: Array


class Transformer(nn.Module, Settings):
    """A stack of blocks between an embedding and logits.

    Fields beside those of `Settings`:
      embed_norm: a norm of the embeddings (BERT).
      final_norm: one of the last states; with norm_placement = 'post' they have one already.
      token_types: T, rows of a table of the kinds of tokens, such as the two texts of a pair
        (BERT); 0 for none.
      position_offset: row of the first learned position (RoBERTa: 2).
      logits_transform: states go through a dense layer, the activation and a norm before they
        become logits, and these have a bias (BERT).
    """

    embed_norm: bool = False
    final_norm: bool = True
    token_types: int = 0
    position_offset: int = 0
    logits_transform: bool = False

    sharding_rules: ClassVar = SHARDING_RULES
    sections: ClassVar = {'moe': moe_lib.Settings}

    def __post_init__(self):
        Settings.__post_init__(self)
        if self.positions == 'relative':
            raise errors.UserError("model.positions = 'relative' is for an encoder-decoder.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        token_types: Array | None = None,
        cache: Cache | None = None,
        prefix: Prefix | None = None,
        train: bool = False,
        return_hidden: bool = False,
    ) -> Array | tuple[Array, Cache]:
        """Logits of the next token at every position.

        Args:
          inputs: int [B, L].
          positions: int [B, L], default 0..L-1. With a cache also the slots that are written,
            which must be consecutive in each row.
          segment_ids: int [B, L]; tokens attend within their own segment.
          token_types: int [B, L], default 0; where the model has types.
          cache: of `init_cache`; needs scan_layers = False.
          prefix: comes before the inputs, which then have the positions P..P+L-1, in one segment;
            nothing is returned of its states.
          return_hidden: the final normalised states [B, L, D] instead; `logits` finishes them.

        Returns:
          [B, L, V] in `logits_dtype`, with V = `vocab_rows`; with a cache, that and the cache with
          these tokens written.
        """
        before = 0 if prefix is None else prefix.states.shape[1]
        if positions is None:
            positions = jnp.arange(before + inputs.shape[1])[None]
        split = cache is None and sharding.axis_size('sequence') > 1
        if split and train and self.dropout_rate:
            raise errors.UserError(
                'config.mesh.sequence does not go with model.dropout_rate: the order of positions '
                'that it computes in would drop other units.'
            )
        if split:  # nothing but attention sees the order, and that sees `balanced.slots`
            inputs, positions, segment_ids, token_types = jax.tree.map(
                balanced.to_balanced, (inputs, positions, segment_ids, token_types)
            )
        embed = table(self, 'embed', self.vocab_rows)
        x = self._embedded(embed, inputs, positions, token_types, prefix)
        slots = None
        if prefix is not None:
            _check_prefix(self)
            slots = jnp.maximum(positions, before + prefix.lengths[:, None] - 1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x.astype(self.dtype))
        x, cache = self._run_blocks(
            sharding.constrain_activations(x), positions, segment_ids, cache, train, slots
        )
        x = x if prefix is None else x[:, before:]
        if self.final_norm:
            x = self._norm('final_norm')(x)
        if split:
            x = balanced.from_balanced(x)
        bias = None
        if self.logits_transform and not return_hidden:
            x = LogitsTransform(settings_of(self), name='logits_transform')(x)
            bias = self.param('unembed_bias', nn.initializers.zeros, (self.vocab_rows,))
        if self.tie_embeddings:
            kernel = as_kernel(embed.embedding)
        else:
            kernel = layers.kernel_of(
                self,
                'unembed',
                scaled_normal(1 / self.embed_dim),
                (self.embed_dim, self.vocab_rows),
            )
        out = x if return_hidden else logits_of(self, x, kernel, bias)
        return out if cache is None else (out, cache)

    def _norm(self, name: str) -> layers.Norm:
        return layers.Norm(self.norm, self.norm_epsilon, self.use_bias, self.norm_offset, name=name)

    def _embedded(self, embed, inputs, positions, token_types, prefix) -> Array:
        """float32 [B, L, D]; called inside the compact `__call__`."""
        x = embed(inputs, 'tensor')
        if self.scale_embeddings:
            x *= math.sqrt(self.embed_dim)
        if prefix is not None:
            x = jnp.concatenate([prefix.states, x], axis=1)
        if self.positions == 'learned':
            learned = table(self, 'position_embed', self.max_length + self.position_offset)
            x += learned(positions + self.position_offset)
        if self.token_types:
            types = jnp.zeros_like(inputs) if token_types is None else token_types
            x += table(self, 'type_embed', self.token_types)(types)
        return self._norm('embed_norm')(x) if self.embed_norm else x

    def _run_blocks(self, x, positions, segment_ids, cache, train, slots):
        """Applies every block, scanned or unrolled; called inside the compact `__call__`."""
        settings = settings_of(self)
        if sharding.axis_size('stage') > 1:
            return self._run_stages(settings, x, positions, segment_ids, train), None
        return blocks.run(settings, x, positions, segment_ids, cache, train, slots=slots)

    def _run_stages(self, settings, x, positions, segment_ids, train):
        """The scanned layers on the devices of the mesh axis `stage`."""
        if not self.scan_layers:
            raise errors.UserError('config.mesh.stage needs model.scan_layers = True.')
        if train and self.dropout_rate:
            raise errors.UserError(
                'config.mesh.stage does not go with model.dropout_rate: a microbatch would drop '
                'other units than the whole batch does.'
            )

        block = Block(settings, train, parent=None)

        def layer(params, carried, constant):
            x, so_far = carried
            (x, _), sown = block.apply({'params': params}, x, *constant, None, mutable=SOWN)
            return x, jax.tree.map(jnp.add, so_far, dict(sown))

        params = self.variables['params']['layers']
        constant = jnp.broadcast_to(positions, x.shape[:2]), segment_ids
        first = jax.tree.map(lambda leaf: leaf[0], params)
        _, sown = jax.eval_shape(
            lambda p, x: block.apply({'params': p}, x, *constant, None, mutable=SOWN), first, x
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(sown))
        x, sums = pipeline.pipelined(
            layer,
            params,
            (x, zeros),
            constant,
            microbatches=pipeline.num_microbatches(self.microbatches, len(x)),
            rounds=self.pipeline_rounds,
            policy=blocks.REMAT_POLICIES.get(self.remat, pipeline.KEEP_ALL),
        )
        for collection, total in sums.items():  # losses add up over layers, metrics are means
            share = self.num_layers if collection == 'metrics' else 1
            self.sow(collection, 'layers', jax.tree.map(lambda leaf, n=share: leaf / n, total))
        # What follows is shared out among the stages, not done by each of them.
        return sharding.constrain_activations(x, rows=(*sharding.BATCH_AXES, 'stage'))

    def logits(self, params: Mapping, hidden: Array) -> Array:
        """hidden [..., D], as from `return_hidden`, -> logits [..., V]."""
        tied = self.tie_embeddings
        embedding = params['embed']['embedding']
        if self.logits_transform:
            transform = LogitsTransform(settings_of(self), parent=None)
            hidden = transform.apply({'params': params['logits_transform']}, hidden)
        kernel = as_kernel(embedding) if tied else params['unembed']
        return logits_of(self, hidden, kernel, params.get('unembed_bias'))

    def init_cache(self, batch_size: int, length: int) -> Cache:
        """Empty key and value slots for every layer, see `empty_cache`."""
        return empty_cache(self, batch_size, length)

    def flops_per_token(self, params: Mapping, length: int) -> float:
        """Training FLOPs of one token, causal convention: 6 N + 6 * layers * H * K * length.

        N leaves out embeddings that are only looked up, padding of the vocabulary, and experts that
        a token does not go to.
        (PaLM, appendix B, halved for the mask.)
        """
        tables = ('position_embed', 'type_embed')
        looked_up = [params[name] for name in tables if name in params]
        if not self.tie_embeddings:
            looked_up.append(params['embed'])
        padding = (self.vocab_rows - self.vocab_size) * self.embed_dim
        multiplied = trees.count(params) - trees.count(looked_up) - padding
        if self.moe is not None:
            multiplied -= moe_lib.num_idle(params, self.experts)
        settings = settings_of(self)
        windows = (settings.of_layer(i).sliding_window for i in range(self.num_layers))
        attended = sum(min(length, 2 * (window or length)) for window in windows)
        return 6 * multiplied + 6 * self.num_heads * self.dim_per_head * attended


class LogitsTransform(nn.Module):
    """norm(activation(dense(x))), [..., D] -> [..., D] (Devlin et al. 2019, their own code)."""

    settings: Settings

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.settings
        x = activations.ACTIVATIONS[c.activation](layers.Linear(c.embed_dim, name='dense')(x))
        return layers.Norm(c.norm, c.norm_epsilon, c.use_bias, c.norm_offset, name='norm')(x)


def _check_prefix(settings: Settings) -> None:
    """Raises UserError where attention does not see a prefix as it should."""
    for axis in ('sequence', 'stage'):
        if sharding.axis_size(axis) > 1:
            raise errors.UserError(
                f'config.mesh.{axis} = {sharding.axis_size(axis)} does not go with a prefix: leave '
                'it at 1.'
            )
    if not settings.causal or settings.sliding_window or settings.token_types:
        raise errors.UserError(
            'A prefix needs model.causal = True, and no model.sliding_window nor token_types.'
        )


def table(settings: Settings, name: str, rows: int) -> layers.Embed:
    """A table of embeddings [rows, D] in the module that calls."""
    return layers.Embed(rows, settings.embed_dim, embedding_init=scaled_normal(0.02**2), name=name)


def logits_of(
    settings: Settings, hidden: Array, kernel: Array | kernels.Kernel, bias: Array | None = None
) -> Array:
    """hidden [..., D], kernel [D, V], bias [V] -> [..., V], -inf where the vocabulary is padded."""
    logits = layers.matmul(hidden, kernel, settings.logits_dtype)
    logits = logits if bias is None else layers.add_bias(logits, bias)
    logits = layers.soft_cap(logits, settings.logit_softcap)
    if settings.vocab_rows == settings.vocab_size:
        return logits
    # Not a slice: where V is split over devices, it would move the parts' borders.
    return jnp.where(jnp.arange(settings.vocab_rows) < settings.vocab_size, logits, -jnp.inf)


def empty_cache(settings: Settings, batch_size: int, length: int) -> Cache:
    """Key and value slots of zeros for every layer: [B, N, S, K] in the compute dtype.

    On a CPU in float32, to which XLA would widen all of it at every token, and back. Those of int8
    have their scales beside them.
    """
    shape = (batch_size, settings.kv_heads, length, settings.dim_per_head)
    dtype = 'float32' if jax.default_backend() == 'cpu' else settings.dtype
    kinds = {'key': (shape, dtype), 'value': (shape, dtype)}
    if settings.kv_cache == 'int8':
        scales = (*shape[:-1], 1), 'float32'
        kinds = dict.fromkeys(kinds, (shape, 'int8')) | dict(key_scale=scales, value_scale=scales)
    return tuple(
        {name: jnp.zeros(*kind) for name, kind in kinds.items()} for _ in range(settings.num_layers)
    )


def as_kernel(embedding: Array | kernels.Kernel) -> Array | kernels.Kernel:
    """An embedding [V, D] as the kernel [D, V] of logits."""
    return embedding if isinstance(embedding, kernels.Kernel) else embedding.T


def unscanned(model: Transformer, params: Mapping) -> tuple[Transformer, Mapping]:
    """The same model with unrolled layers, and its params; as they are if already unrolled."""
    if not model.scan_layers:
        return model, params
    return model.clone(scan_layers=False), unstack_layers(params)


def unstack_layers(params: Mapping) -> dict:
    """Params of a scanned model -> params of the unrolled one."""
    rest = {key: value for key, value in params.items() if key != 'layers'}
    num_layers = len(jax.tree.leaves(params['layers'])[0])
    return rest | {
        f'layers_{i}': jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'])
        for i in range(num_layers)
    }


def stack_layers(params: Mapping) -> dict:
    """Params of an unrolled model -> params of the scanned one."""
    names = sorted(
        (key for key in params if key.startswith('layers_')),
        key=lambda key: int(key.removeprefix('layers_')),
    )
    rest = {key: value for key, value in params.items() if key not in names}
    return rest | {
        'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    }
