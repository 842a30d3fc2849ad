"""The Conformer (Gulati et al. 2020) on the pieces of a Transformer's blocks.

It differs from the paper in two places. Positions are rotary, which need no table of relative
ones. And the convolution's normalisation is over channels, not over the batch: the statistics of a
batch would count its padding.

Axes: B batch, L frames, M mel bands, D embed, K taps, C channels.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models.parts import activations, blocks, layers, pooling
from bigmodels.models.parts.attention import Implementation
from bigmodels.models.parts.convolution import Conv, depthwise
from bigmodels.models.parts.settings import Remat, Settings, scaled_normal, settings_of

Array = jax.Array

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    *blocks.SHARDING_RULES,
    (r'subsample_\d+/kernel$', (None, 'fsdp')),  # [3, 3, C, C]
    (r'^frame_embed/kernel$', (None, 'fsdp')),  # [M*C, D]
    (r'pointwise/kernel$', ('fsdp', 'tensor')),  # [D, D]
    (r'depthwise$', (None, 'tensor')),  # [K, D]
    (r'^head/kernel$', ('fsdp', 'tensor')),
    (r'(scale|bias)$', ()),
)


class Conformer(nn.Module):
    """Features of sound [B, L, M] of different lengths -> logits in float32.

    Frames from a sequence's length on are padding: no answer depends on their number or content.

    Fields:
      num_classes: of a recording, or of a frame.
      pool: 'mean' over frames gives [B, num_classes]; 'none' gives [B, L / subsampling,
        num_classes].
      subsampling: frames to one state, by convolutions of stride 2; a power of 2.
      subsampling_channels: of these convolutions.
      taps: of the depthwise convolutions, odd.
      num_heads, head_dim, mlp_dim, attention, remat: see `settings.Settings`.
      dtype: of the computation; parameters, norms, softmax and logits are float32.
    """

    num_classes: int
    num_layers: int
    embed_dim: int
    num_heads: int
    pool: Literal['mean', 'none'] = 'mean'
    head_dim: int | None = None
    mlp_dim: int | None = None
    taps: int = 31
    subsampling: int = 4
    subsampling_channels: int = 32
    dropout_rate: float = 0.1
    attention: Implementation = 'auto'
    remat: Remat = 'none'
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        if self.subsampling < 1 or self.subsampling & (self.subsampling - 1):
            raise errors.UserError(f'model.subsampling = {self.subsampling} must be a power of 2.')
        if self.taps < 1 or self.taps % 2 == 0:
            raise errors.UserError(f'model.taps = {self.taps} must be odd.')
        _ = self.settings  # building them checks them
        super().__post_init__()

    @property
    def settings(self) -> Settings:
        """Of attention and feed-forward layers: every frame sees all."""
        return settings_of(self, vocab_size=self.num_classes, causal=False, activation='silu')

    def output_lengths(self, lengths):
        """The number of states that so many frames become, an int or an array of them."""
        return -(-lengths // self.subsampling)

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array, *, train: bool = False) -> Array:
        """Logits of features float [B, L, M], of which lengths int [B] frames are real."""
        x = self._subsampled(inputs.astype(self.dtype), lengths)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        real = pooling.within(self.output_lengths(lengths), x.shape[1])
        block = Block
        if self.remat != 'none':
            block = nn.remat(Block, policy=blocks.REMAT_POLICIES[self.remat])
        x = sharding.constrain_activations(x)
        for i in range(self.num_layers):
            x = block(self.settings, self.taps, train, name=f'layers_{i}')(x, real)
        if self.pool == 'mean':
            x = pooling.mean(x.astype(jnp.float32), real)
        return layers.Linear(self.num_classes, name='head')(x.astype(jnp.float32))

    def _subsampled(self, x: Array, lengths: Array) -> Array:
        """[B, L, M] -> [B, L / subsampling, D]; called inside the compact `__call__`."""
        x = x[..., None]
        for i in range(self.subsampling.bit_length() - 1):
            # What a convolution sees behind the end is as the zeros that surround all.
            x = jnp.where(pooling.within(lengths, x.shape[1])[..., None, None], x, 0)
            x = Conv(self.subsampling_channels, 3, 2, use_bias=True, name=f'subsample_{i}')(x)
            x = activations.ACTIVATIONS['silu'](x)
            lengths = -(-lengths // 2)
        x = x.reshape(*x.shape[:2], -1)
        return layers.Linear(self.embed_dim, name='frame_embed')(x)


class Block(nn.Module):
    """Half a feed-forward layer, attention, convolution, the other half; x [B, L, D] -> the same.

    Gulati et al. 2020, section 2.4. `real` is bool [B, L], false for padding.
    """

    settings: Settings
    taps: int
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, real: Array) -> Array:
        c = self.settings
        dropout = nn.Dropout(c.dropout_rate, deterministic=not self.train)

        def norm(name, x):
            return layers.Norm(c.norm, c.norm_epsilon, name=f'{name}_norm')(x)

        x += 0.5 * dropout(blocks.FeedForward(c, name='first_mlp')(norm('first_mlp', x)))
        positions = jnp.arange(x.shape[1])[None]
        attended, _ = blocks.Attention(c, name='attention')(
            norm('attention', x), positions, real.astype(jnp.int32), None
        )
        x += dropout(attended)
        convolved = Convolution(c, self.taps, name='convolution')(norm('convolution', x), real)
        x += dropout(convolved)
        x += 0.5 * dropout(blocks.FeedForward(c, name='last_mlp')(norm('last_mlp', x)))
        return sharding.constrain_activations(norm('final', x))


class Convolution(nn.Module):
    """The convolution module (section 2.2) without its first norm; x [B, L, D] -> the same."""

    settings: Settings
    taps: int

    @nn.compact
    def __call__(self, x: Array, real: Array) -> Array:
        c, d = self.settings, x.shape[-1]
        init = scaled_normal(1 / d)
        gate = layers.Linear(d, kernel_init=init, name='gate_pointwise')(x)
        x = layers.Linear(d, kernel_init=init, name='value_pointwise')(x) * nn.sigmoid(gate)
        x = jnp.where(real[..., None], x, 0)
        kernel = self.param('depthwise', scaled_normal(1 / self.taps), (self.taps, d))
        x = layers.Norm(c.norm, c.norm_epsilon, name='norm')(depthwise.convolve(x, kernel))
        x = activations.ACTIVATIONS['silu'](x)
        return layers.Linear(d, kernel_init=c.residual_init(d), name='out_pointwise')(x)
