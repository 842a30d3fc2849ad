"""Images and texts as vectors of one space (CLIP, Radford et al. 2021; SigLIP, Zhai et al. 2023).

Axes: B images, T texts, H height, W width, C channels, L length, E features of the space.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import config, errors
from bigmodels.models.parts import blocks, layers, pooling
from bigmodels.models.parts.settings import check_fixed
from bigmodels.models.transformer import FIXED_WITHOUT_LOGITS, Transformer
from bigmodels.models.vit import ViT

Array = jax.Array


class CLIP(nn.Module):
    """A `ViT` for images and a `Transformer` for texts, each projected to a unit vector.

    The ViT's head is its projection; a text is told by the state of its last token, the end of
    text.

    Fields:
      image: the fields of the `ViT`, without num_classes.
      text: the fields of the `Transformer`; FIXED_WITHOUT_LOGITS have no other value here.
      embed_dim: E.
      project_images: otherwise what the ViT pools is the image's vector, of E = image.embed_dim
        features (SigLIP).
      projection_bias: of the projection of texts, as image.head_bias of that of images; the
        published CLIP has none.
      init_scale: what cosines are multiplied by, at initialisation; its logarithm is learned.
      max_scale: the scale stays at or below (CLIP, section 2.5); None for no bound (SigLIP).
      init_bias: a learned number added to all scores, at initialisation; None for none.
    """

    image: Mapping[str, Any]
    text: Mapping[str, Any]
    embed_dim: int
    project_images: bool = True
    projection_bias: bool = True
    init_scale: float = 1 / 0.07
    max_scale: float | None = 100.0
    init_bias: float | None = None

    sections: ClassVar = {'image': ViT, 'text': Transformer}
    sharding_rules: ClassVar = (
        *blocks.SHARDING_RULES,
        (r'^image_tower/patch_embed/kernel$', (None, 'fsdp')),  # [P*P*C, D]
        (r'^image_tower/(class_token|position_embed|pool/probe)$', (None, 'fsdp')),  # [1 or L, D]
        (r'^text_tower/embed/embedding$', ('tensor', 'fsdp')),  # [V, D]
        (r'^text_tower/(position|type)_embed/embedding$', (None, 'fsdp')),  # [S, D]
        (r'head/kernel$', ('fsdp', None)),  # [D, E]
        (r'(scale|bias)$', ()),
    )

    def __post_init__(self):
        self.image, self.text = nn.FrozenDict(self.image), nn.FrozenDict(self.text)  # hashable
        vit, transformer = self.vit(), self.transformer()  # building them checks their fields
        if not (self.project_images or vit.embed_dim == self.embed_dim):
            raise errors.UserError(
                f'config.model.embed_dim = {self.embed_dim} must be model.image.embed_dim = '
                f'{vit.embed_dim}, as project_images is False.'
            )
        check_fixed(transformer, FIXED_WITHOUT_LOGITS, 'model.text')
        most = math.inf if self.max_scale is None else self.max_scale
        if not 0 < self.init_scale <= most:
            raise errors.UserError(
                f'config.model.init_scale = {self.init_scale} must be over 0 and at most '
                f'max_scale = {self.max_scale}.'
            )
        super().__post_init__()

    def vit(self) -> ViT:
        """The tower of images."""
        classes = self.embed_dim if self.project_images else 0
        return config.build(ViT, self.image, 'model.image', num_classes=classes, parent=None)

    def transformer(self) -> Transformer:
        """The tower of texts."""
        return config.build(Transformer, self.text, 'model.text', parent=None)

    @property
    def vocab_size(self) -> int:
        return self.text['vocab_size']

    @property
    def max_length(self) -> int:
        """Of a text, in tokens."""
        return self.transformer().max_length

    def setup(self):
        self.image_tower = self.vit()
        self.text_tower = self.transformer()
        self.text_head = layers.Linear(self.embed_dim, self.projection_bias)
        self.log_scale = self.param(
            'log_scale', nn.initializers.constant(math.log(self.init_scale)), ()
        )
        if self.init_bias is not None:
            self.bias = self.param('bias', nn.initializers.constant(self.init_bias), ())

    def __call__(
        self, inputs: Array, tokens: Array, segment_ids: Array, *, train: bool = False
    ) -> Array:
        """The `scores` [B, T] of images and texts, see `images` and `texts`."""
        images = self.images(inputs, train=train)
        return self.scores(images, self.texts(tokens, segment_ids, train=train))

    def images(self, inputs: Array, *, train: bool = False) -> Array:
        """inputs [B, H, W, C] -> unit vectors [B, E] in float32."""
        return _unit(self.image_tower(inputs, train=train))

    def texts(self, tokens: Array, segment_ids: Array, *, train: bool = False) -> Array:
        """tokens, segment_ids int [T, L], the latter 1 at tokens and 0 behind -> [T, E] likewise.

        Raises:
          UserError: for texts longer than model.text.max_length.
        """
        if tokens.shape[1] > self.max_length:
            raise errors.UserError(
                f'Texts of {tokens.shape[1]} tokens are longer than model.text.max_length = '
                f'{self.max_length}.'
            )
        states = self.text_tower(tokens, segment_ids=segment_ids, train=train, return_hidden=True)
        return _unit(self.text_head(pooling.last(states, segment_ids > 0)))

    def scores(self, images: Array, texts: Array) -> Array:
        """Unit vectors [B, E], [T, E] -> [B, T]: their cosines times the scale, plus the bias."""
        # A TPU's usual bfloat16 product, times a scale of 100, would be a few tenths off.
        scores = jnp.matmul(images, texts.T, precision='highest') * self.scale()
        return scores if self.init_bias is None else scores + self.bias

    def scale(self) -> Array:
        """The learned scale of cosines, a float32 scalar."""
        bounded = self.max_scale is not None
        return jnp.exp(
            clipped_above(self.log_scale, math.log(self.max_scale)) if bounded else self.log_scale
        )


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


@jax.custom_vjp
def clipped_above(x: Array, most: float) -> Array:
    """min(x, most), whose gradient still lets an x above it fall.

    The plain minimum has no gradient there, and a parameter that a step took above the bound would
    stay for ever.
    """
    return jnp.minimum(x, most)


def _clipped_forward(x, most):
    return clipped_above(x, most), (x, most)


def _clipped_backward(residuals, g):
    x, most = residuals
    return jnp.where((x < most) | (g > 0), g, 0), None


clipped_above.defvjp(_clipped_forward, _clipped_backward)
