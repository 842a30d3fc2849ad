"""The Diffusion Transformer (Peebles and Xie 2023) with adaLN-Zero on the blocks of a Transformer.

Axes: B batch, H height, W width, C channels, L patches, P patch size, D embed.
"""

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import sharding
from bigmodels.models.parts import blocks, layers
from bigmodels.models.parts.attention import Implementation
from bigmodels.models.parts.settings import Settings, settings_of
from bigmodels.models.vit import patches

Array = jax.Array

TIME_WAVES = 256  # sines and cosines that a time is told by
TIME_SCALE = 1000  # times from 0 to 1, in the steps that the longest of them were made for

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    *blocks.SHARDING_RULES,
    (r'^patch_embed/kernel$', (None, 'fsdp')),  # [P*P*C, D]
    (r'^position_embed$', (None, 'fsdp')),  # [L, D]
    (r'^label_embed/embedding$', (None, 'fsdp')),
    (r'^time_\d/kernel$', ('fsdp', 'tensor')),
    (r'modulation/kernel$', ('fsdp', 'tensor')),  # [D, 6D]
    (r'^head/kernel$', ('fsdp', None)),
    (r'bias$', ()),
)


class DiT(nn.Module):
    """Noisy images [B, H, W, C] or [B, H, W], their times and labels -> float32 of their shape.

    DiT-S/4 is `num_layers=12, embed_dim=384, num_heads=6, patch_size=4`.

    Fields:
      num_classes: label `num_classes` stands for none.
      patch_size: the sides of a patch; H and W must be multiples of it.
      num_heads and the rest: see `settings.Settings`.
    """

    num_classes: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int | None = None
    patch_size: int = 4
    norm_epsilon: float = 1e-6
    activation: Literal['gelu', 'gelu_exact', 'swiglu', 'geglu'] = 'gelu'
    attention: Implementation = 'auto'
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    @property
    def settings(self) -> Settings:
        """Of the blocks: no token sees less than all, positions are added once."""
        return settings_of(self, vocab_size=self.num_classes, causal=False, positions='none')

    @nn.compact
    def __call__(self, inputs: Array, times: Array, labels: Array, *, train: bool = False) -> Array:
        """Times are float [B] from 0 to 1, labels int [B] up to `num_classes`."""
        images = inputs if inputs.ndim == 4 else inputs[..., None]
        x = patches(images.astype(self.dtype), self.patch_size)
        pixels = x.shape[-1]
        x = layers.Linear(self.embed_dim, name='patch_embed')(x)
        normal = nn.initializers.normal(0.02)
        x += self.param('position_embed', normal, x.shape[1:]).astype(x.dtype)
        x = sharding.constrain_activations(x)
        condition = jax.nn.silu(self._condition(times, labels)).astype(x.dtype)
        for i in range(self.num_layers):
            x = ModulatedBlock(self.settings, name=f'layers_{i}')(x, condition)
        shift, scale = _modulation(condition, 2, self.embed_dim)
        x = _modulated(x, shift, scale, self.norm_epsilon)
        x = layers.Linear(pixels, kernel_init=nn.initializers.zeros, name='head')(x)
        return from_patches(x.astype(jnp.float32), self.patch_size, images.shape).reshape(
            inputs.shape
        )

    def _condition(self, times: Array, labels: Array) -> Array:
        """float32 [B, D]."""
        x = waves(TIME_SCALE * times, TIME_WAVES)
        x = jax.nn.silu(layers.Linear(self.embed_dim, name='time_0')(x))
        x = layers.Linear(self.embed_dim, name='time_1')(x)
        init = nn.initializers.normal(0.02)
        table = nn.Embed(
            self.num_classes + 1, self.embed_dim, embedding_init=init, name='label_embed'
        )
        return x + table(labels)


class ModulatedBlock(nn.Module):
    """A block whose norms and branches are scaled by a condition; it begins as the identity."""

    settings: Settings

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        c = self.settings
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _modulation(condition, 6, x.shape[-1])
        y = _modulated(x, shift, scale, c.norm_epsilon)
        y, _ = blocks.Attention(c, name='attention')(y, None, None, None)
        x += gate * y
        y = _modulated(x, mlp_shift, mlp_scale, c.norm_epsilon)
        y = blocks.FeedForward(c, name='mlp')(y)
        return sharding.constrain_activations(x + mlp_gate * y)


def _modulation(condition: Array, count: int, width: int) -> list[Array]:
    """`count` arrays [B, 1, D] of a condition [B, D], zero at first; in a compact `__call__`."""
    linear = layers.Linear(count * width, kernel_init=nn.initializers.zeros, name='modulation')
    return jnp.split(linear(condition)[:, None], count, axis=-1)


def _modulated(x: Array, shift: Array, scale: Array, epsilon: float) -> Array:
    """x [B, L, D] normalised, scaled by 1 + scale and shifted."""
    normal = layers.layer_norm(x, jnp.ones(x.shape[-1]), None, epsilon)
    return normal * (1 + scale) + shift


def waves(values: Array, count: int, longest: float = 10_000) -> Array:
    """Cosines and sines of values [B] at `count / 2` frequencies, from 1 down to 1 / longest."""
    half = count // 2
    frequencies = jnp.exp(-math.log(longest) * jnp.arange(half) / half)
    angles = values[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def from_patches(x: Array, size: int, shape: tuple[int, ...]) -> Array:
    """The inverse of `vit.patches`: x [B, L, size*size*C] -> images of `shape` [B, H, W, C]."""
    b, h, w, c = shape
    x = x.reshape(b, h // size, w // size, size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)
