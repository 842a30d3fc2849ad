"""The encoder-decoder Transformer (Vaswani et al. 2017), of the blocks that `transformer` has.

The encoder sees a whole source; the decoder sees its own tokens so far and, by cross-attention,
what the encoder made of the source. Both share one table of embeddings; of sources that are sound
(Whisper: Radford et al. 2022) only the decoder has one.

Axes: B batch, S source length, L target length, D embed, V vocab, M mel bands.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding, trees
from bigmodels.models import transformer
from bigmodels.models.parts import activations, blocks, layers
from bigmodels.models.parts.blocks import Cache, Context
from bigmodels.models.parts.settings import Settings, scaled_normal, settings_of

Array = jax.Array

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    *blocks.SHARDING_RULES,
    (r'^embed/embedding$', ('tensor', 'fsdp')),  # [V, D]
    (r'/position_embed/embedding$', (None, 'fsdp')),  # [S, D] or [L, D]
    (r'/relative_bias/embedding$', ()),  # [buckets, H]
    (r'^frame_embed/conv\d/kernel$', (None, 'fsdp')),  # [3*M, D], [3*D, D]
    (r'^unembed$', ('fsdp', 'tensor')),  # [D, V]
    (r'(scale|bias)$', ()),
)
# Settings that have no meaning here, or nobody to add what they sow to the loss.
FIXED = {'causal': True, 'sliding_window': None, 'moe': None}


class Stack(nn.Module):
    """Embedded tokens [B, L, D] -> (normalised states [B, L, D], cache)."""

    settings: Settings

    @nn.compact
    def __call__(self, x, positions, segment_ids, train, cache=None, context=None):
        c = self.settings
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        if c.positions == 'learned':
            embed = transformer.table(c, 'position_embed', c.max_length)
            x += embed(positions)
        x = nn.Dropout(c.dropout_rate, deterministic=not train)(x.astype(c.dtype))
        x = sharding.constrain_activations(x)
        x, cache = blocks.run(c, x, positions, segment_ids, cache, train, context)
        norm = layers.Norm(c.norm, c.norm_epsilon, c.use_bias, c.norm_offset, name='final_norm')
        return norm(x), cache


class FrameEmbed(nn.Module):
    """Log-mel features [B, 2 * S, M] -> [B, S, embed_dim] (Radford et al. 2022, section 2.2).

    Two convolutions of three taps, the second of stride 2, each a product with neighbouring frames
    side by side, and followed by GELU.
    """

    embed_dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name, stride in (('conv1', 1), ('conv2', 2)):
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            taps = [padded[:, tap : tap + x.shape[1] : stride] for tap in range(3)]
            x = layers.Linear(self.embed_dim, name=name)(jnp.concatenate(taps, axis=-1))
            x = activations.ACTIVATIONS['gelu_exact'](x)
        return x


class EncoderDecoder(nn.Module, Settings):
    """Two stacks of blocks between embeddings and logits.

    Fields:
      num_encoder_layers: those of the encoder, by default `num_layers`, which the decoder has.
      num_mels: M, where sources are log-mel features of sound, see `FrameEmbed`; 0 for tokens.
      max_source_length: the size of the encoder's learned positions; by default `max_length`, which
        tokens always have.
      scale_logits: the decoder's states are divided by sqrt(embed_dim) before they become logits
        (T5, where these are tied).

    The others are those of `settings.Settings`, but for FIXED. The mesh axes `sequence` and `stage`
    are not used by it.

    Raises:
      UserError: for another value of what is FIXED, and a max_source_length of tokens.
    """

    num_encoder_layers: int | None = None
    num_mels: int = 0
    max_source_length: int | None = None
    scale_logits: bool = False

    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        Settings.__post_init__(self)
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise errors.UserError(
                    f'model.{name} = {getattr(self, name)} is not for an encoder-decoder: leave '
                    f'it at {value}.'
                )
        if self.max_source_length and not self.num_mels:
            raise errors.UserError('model.max_source_length is for sound: set num_mels as well.')
        super().__post_init__()

    def setup(self):
        settings = settings_of(self)
        self.embed = transformer.table(self, None, self.vocab_rows)
        if self.num_mels:
            self.frame_embed = FrameEmbed(self.embed_dim)
        encoder = dataclasses.replace(
            settings,
            causal=False,
            num_layers=self.num_encoder_layers or self.num_layers,
            max_length=self.max_source_length or self.max_length,
        )
        self.encoder = Stack(encoder)
        self.decoder = Stack(settings)
        if not self.tie_embeddings:
            shape = self.embed_dim, self.vocab_rows
            init = scaled_normal(1 / self.embed_dim)
            self.unembed = layers.kernel_of(self, 'unembed', init, shape)

    def __call__(
        self,
        inputs: Array,
        decoder_inputs: Array,
        *,
        input_positions: Array | None = None,
        input_segment_ids: Array | None = None,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Logits of the next target token at every position, all tokens of the targets given.

        Args:
          inputs: int [B, S], the sources, or of sound float [B, 2 * S, num_mels].
          decoder_inputs: int [B, L], the targets one token later, behind a first token.
          input_positions, positions: int [B, S] and [B, L], default 0, 1, 2, ...
          input_segment_ids: int [B, S]; tokens attend within their own segment, by default all are
            in segment 1. Padding is a segment of its own, 0.
          segment_ids: int [B, L], likewise, of the targets.

        Returns:
          [B, L, V] in `logits_dtype`, with V = `vocab_rows`.
        """
        context = self.encode(
            inputs, positions=input_positions, segment_ids=input_segment_ids, train=train
        )
        logits, _ = self.decode(
            decoder_inputs, context, positions=positions, segment_ids=segment_ids, train=train
        )
        return logits

    def encode(
        self,
        inputs: Array,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        train: bool = False,
    ) -> Context:
        """The sources as the decoder sees them; arguments as in `__call__`."""
        for axis in ('sequence', 'stage'):
            if sharding.axis_size(axis) > 1:
                raise errors.UserError(
                    f'config.mesh.{axis} = {sharding.axis_size(axis)} is not for an '
                    f'encoder-decoder: leave it at 1.'
                )
        sound = self.num_mels > 0
        x = self.frame_embed(inputs.astype(self.dtype)) if sound else self._embedded(inputs)
        if segment_ids is None:
            segment_ids = jnp.ones(x.shape[:2], jnp.int32)
        states, _ = self.encoder(x, positions, segment_ids, train)
        return Context(states, segment_ids)

    def decode(
        self,
        decoder_inputs: Array,
        context: Context,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Array, Cache | None]:
        """The next tokens' logits, and the cache with these tokens written.

        Args:
          decoder_inputs: int [B, L]; B may be a multiple of the context's rows, as it is where
            several hypotheses of one source follow one another.
          context: of `encode`; once a cache has its keys and values, its states may be None.
          positions: int [B, L], with a cache also the slots that are written.
          segment_ids: int [B, L], see `__call__`.
          cache: of `init_cache` or an earlier call; needs scan_layers = False.

        Returns:
          ([B, L, V] in `logits_dtype`, cache).
        """
        hidden, cache = self.decoder(
            self._embedded(decoder_inputs), positions, segment_ids, train, cache, context
        )
        if self.scale_logits:
            hidden *= self.embed_dim**-0.5
        tied = self.tie_embeddings
        kernel = transformer.as_kernel(self.embed.embedding) if tied else self.unembed
        return transformer.logits_of(self, hidden, kernel), cache

    def _embedded(self, tokens: Array) -> Array:
        x = self.embed(tokens, 'tensor')
        return x * math.sqrt(self.embed_dim) if self.scale_embeddings else x

    def init_cache(self, batch_size: int, length: int) -> Cache:
        """Empty slots for the decoder's own keys and values, see `transformer.empty_cache`."""
        return transformer.empty_cache(self, batch_size, length)

    def describe(self) -> str:
        """What the start screen says of it."""
        return (
            f'EncoderDecoder, {self.num_encoder_layers or self.num_layers} and {self.num_layers} '
            f'layers, embed {self.embed_dim}, {self.num_heads} heads of {self.dim_per_head}, '
            f'vocabulary {self.vocab_size}'
        )

    def flops_per_row(self, params: Mapping, source_length: int, target_length: int) -> float:
        """Training FLOPs of a source and its target: 6 for each parameter and token it multiplies.

        Attention adds 12 * H * K for each layer, query and key that it may see, of which there are
        half as many in the decoder's own. (As in `Transformer.flops_per_token`.)
        """
        of_context = trees.count(
            {
                name: leaf
                for name, leaf in trees.flatten_named(params).items()
                if 'cross_attention/key' in name or 'cross_attention/value' in name
            }
        )
        of_sources = trees.count(params['encoder']) + of_context
        if self.num_mels:
            first, second = (
                trees.count(params['frame_embed'][name]) for name in ('conv1', 'conv2')
            )
            of_sources += 2 * first + second  # the first one's frames are twice as many
        of_targets = trees.count(params['decoder']) - of_context + self.vocab_size * self.embed_dim
        encoder_layers = self.num_encoder_layers or self.num_layers
        seen = encoder_layers * source_length**2 + self.num_layers * target_length * (
            source_length + target_length / 2
        )
        multiplied = of_sources * source_length + of_targets * target_length
        return 6 * multiplied + 12 * self.num_heads * self.dim_per_head * seen


def unscanned(model: EncoderDecoder, params: Mapping) -> tuple[EncoderDecoder, Mapping]:
    """The same model with unrolled layers, which decode, and its params."""
    if not model.scan_layers:
        return model, params
    stacks = {name: transformer.unstack_layers(params[name]) for name in ('encoder', 'decoder')}
    return model.clone(scan_layers=False), {**params, **stacks}
