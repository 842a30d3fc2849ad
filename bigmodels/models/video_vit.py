"""The Video Vision Transformer with a factorised encoder (Arnab et al. 2021, arXiv:2103.15691).

Axes: B batch, T frames, H height, W width, C channels, N tubelets along time, L patches of a frame,
P patch size, F frames of a tubelet, D embed.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models import vit
from bigmodels.models.parts import blocks, layers
from bigmodels.models.parts.attention import Implementation
from bigmodels.models.parts.settings import Remat, Settings, settings_of

Array = jax.Array
Pool = Literal['token', 'mean']

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    *blocks.SHARDING_RULES,
    (r'^tubelet_embed/kernel$', (None, 'fsdp')),  # [P*P*F*C, D]
    (r'(class_token|position_embed)$', (None, 'fsdp')),  # [1, D], [L or N, D]
    (r'^head/kernel$', ('fsdp', 'tensor')),
    (r'(scale|bias)$', ()),
)


class VideoViT(nn.Module):
    """inputs [B, T, H, W, C] -> logits [B, num_classes] in float32.

    Model 2 of the paper (section 3.3): a spatial encoder sees the patches of each time alone and
    makes one state of them, a temporal encoder sees these states. Tokens are tubelets, linear
    functions of P x P pixels in F frames (section 3.2). Positions are learned, of the patches of a
    frame and of times. ViViT-B/16x2 is `num_layers=12, embed_dim=768, num_heads=12`.

    Fields:
      num_layers, num_temporal_layers: of the spatial and of the temporal encoder.
      patch_size: the sides of a patch, P; H and W must be multiples of it.
      tubelet_frames: F; T must be a multiple of it. The numbers of patches and of tubelets along
        time at initialisation are those of learned positions.
      pool: what is the state of an encoder: that of an extra 'token', or the 'mean' of all.
      num_heads and the rest: see `settings.Settings`; they are the same in both encoders.
    """

    num_classes: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_temporal_layers: int = 4
    mlp_dim: int | None = None
    patch_size: int = 16
    tubelet_frames: int = 2
    pool: Pool = 'token'
    norm_epsilon: float = 1e-6
    activation: Literal['gelu', 'gelu_exact', 'swiglu', 'geglu'] = 'gelu'
    dropout_rate: float = 0.0
    attention: Implementation = 'auto'
    scan_layers: bool = False
    remat: Remat = 'none'
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    @property
    def settings(self) -> Settings:
        """Of the spatial blocks: no token sees less than all, positions are added once."""
        return settings_of(self, vocab_size=self.num_classes, causal=False, positions='none')

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        spatial = self.settings
        temporal = dataclasses.replace(spatial, num_layers=self.num_temporal_layers)
        x = tubelets(inputs.astype(self.dtype), self.tubelet_frames, self.patch_size)
        b, n = x.shape[:2]
        x = x.reshape(b * n, *x.shape[2:])  # each time is a row of its own
        x = layers.Linear(self.embed_dim, name='tubelet_embed')(x)
        x = Encoder(spatial, self.pool, train, name='spatial')(x)
        x = Encoder(temporal, self.pool, train, name='temporal')(x.reshape(b, n, -1))
        return layers.Linear(self.num_classes, name='head')(x).astype(jnp.float32)


class Encoder(nn.Module):
    """x [B, L, D] -> one state of each row, [B, D]: positions, blocks, a norm and the `pool`."""

    settings: Settings
    pool: Pool
    train: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.settings
        if self.pool == 'token':
            token = self.param('class_token', nn.initializers.zeros, (1, c.embed_dim))
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, c.embed_dim))
            x = jnp.concatenate([token, x], axis=1)
        normal = nn.initializers.normal(0.02)
        x += self.param('position_embed', normal, x.shape[1:]).astype(x.dtype)
        x = nn.Dropout(c.dropout_rate, deterministic=not self.train)(x)
        x, _ = blocks.run(c, sharding.constrain_activations(x), train=self.train)
        x = layers.Norm('layer_norm', c.norm_epsilon, name='final_norm')(x)
        return x[:, 0] if self.pool == 'token' else x.mean(1)


def tubelets(videos: Array, frames: int, size: int) -> Array:
    """videos [B, T, H, W, C] -> [B, N, L, size*size*frames*C], each time's as in `vit.patches`.

    Raises:
      UserError: if a tubelet does not divide the videos, or they are none.
    """
    if videos.ndim != 5:
        raise errors.UserError(
            f'Videos are [B, T, H, W, C], but the inputs are {list(videos.shape)}.'
        )
    b, t, h, w, c = videos.shape
    if t % frames:
        raise errors.UserError(
            f'model.tubelet_frames = {frames} does not divide videos of {t} frames.'
        )
    x = videos.reshape(b, t // frames, frames, h, w, c).transpose(0, 1, 3, 4, 2, 5)
    x = vit.patches(x.reshape(b * t // frames, h, w, frames * c), size)
    return x.reshape(b, t // frames, *x.shape[1:])
