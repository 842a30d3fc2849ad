"""The Vision Transformer (Dosovitskiy et al. 2021) on the blocks of a Transformer.

Axes: B batch, H height, W width, C channels, L patches, P patch size, D embed.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models.parts import blocks, layers
from bigmodels.models.parts.attention import Implementation
from bigmodels.models.parts.settings import Remat, Settings, settings_of

Array = jax.Array

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    *blocks.SHARDING_RULES,
    (r'^patch_embed/kernel$', (None, 'fsdp')),  # [P*P*C, D]
    (r'^(class_token|position_embed)$', (None, 'fsdp')),  # [1, D], [L, D]
    (r'^pool/probe$', (None, 'fsdp')),  # [1, D]
    (r'^head/kernel$', ('fsdp', 'tensor')),
    (r'(scale|bias)$', ()),
)


class ViT(nn.Module):
    """inputs [B, H, W, C] -> logits [B, num_classes] in float32, or [B, L, num_classes].

    With num_classes = 0 there is no head: what is pooled is returned.

    ViT-Ti/16 is `num_layers=12, embed_dim=192, num_heads=3`, ViT-B/16 has 12, 768 and 12.

    Fields:
      patch_size: the sides of a patch; H and W must be multiples of it. The number of patches
        at initialisation is the number of learned positions.
      pool: what is classified: the state of an extra 'token', the 'mean' over patches, what an
        `AttentionPool` makes of them, or with 'none' each patch.
      embed_norm: a norm of the embedded patches (CLIP).
      patch_bias, head_bias: of the embedding of patches and of the head.
      num_heads and the rest: see `settings.Settings`.
    """

    num_classes: int
    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int | None = None
    mlp_dim: int | None = None
    patch_size: int = 16
    pool: Literal['token', 'mean', 'attention', 'none'] = 'token'
    embed_norm: bool = False
    patch_bias: bool = True
    head_bias: bool = True
    norm_epsilon: float = 1e-6
    activation: Literal['gelu', 'gelu_exact', 'quick_gelu', 'swiglu', 'geglu'] = 'gelu'
    dropout_rate: float = 0.0
    attention: Implementation = 'auto'
    scan_layers: bool = False
    remat: Remat = 'none'
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    @property
    def settings(self) -> Settings:
        """Of the blocks: no token sees less than all, positions are added once."""
        return settings_of(self, vocab_size=1, causal=False, positions='none')

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        normal = nn.initializers.normal(0.02)
        x = patches(inputs.astype(self.dtype), self.patch_size)
        x = layers.Linear(self.embed_dim, self.patch_bias, name='patch_embed')(x)
        if self.pool == 'token':
            token = self.param('class_token', nn.initializers.zeros, (1, self.embed_dim))
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.embed_dim))
            x = jnp.concatenate([token, x], axis=1)
        x += self.param('position_embed', normal, x.shape[1:]).astype(x.dtype)
        if self.embed_norm:
            x = layers.Norm('layer_norm', self.norm_epsilon, name='embed_norm')(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x, _ = blocks.run(self.settings, sharding.constrain_activations(x), train=train)
        x = layers.Norm('layer_norm', self.norm_epsilon, name='final_norm')(x)
        if self.pool == 'attention':
            x = AttentionPool(self.settings, name='pool')(x)
        elif self.pool != 'none':
            x = x[:, 0] if self.pool == 'token' else x.mean(1)
        if self.num_classes:
            x = layers.Linear(self.num_classes, self.head_bias, name='head')(x)
        return x.astype(jnp.float32)


class AttentionPool(nn.Module):
    """x [B, L, D] -> [B, D]: what a learned query sees of it, and a feed-forward layer of that.

    (Zhai et al. 2022, Scaling Vision Transformers, section 3.2; used by SigLIP.)
    """

    settings: Settings

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.settings
        probe = self.param('probe', nn.initializers.xavier_uniform(), (1, c.embed_dim))
        query = jnp.broadcast_to(probe.astype(x.dtype), (len(x), 1, c.embed_dim))
        context = blocks.Context(x, jnp.ones(x.shape[:2], jnp.int32))
        y, _ = blocks.CrossAttention(c, name='attention')(query, None, context, None)
        normal = layers.Norm('layer_norm', c.norm_epsilon, name='norm')(y)
        return (y + blocks.FeedForward(c, name='mlp')(normal))[:, 0]


def patches(images: Array, size: int) -> Array:
    """images [B, H, W, C] -> [B, L, size*size*C], rows of patches one after the other.

    Raises:
      UserError: if a patch does not divide the images.
    """
    b, h, w, c = images.shape
    if h % size or w % size:
        raise errors.UserError(
            f'model.patch_size = {size} does not divide images of {h} x {w} pixels.'
        )
    x = images.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)
