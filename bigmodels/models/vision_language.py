"""Texts about images, by a decoder that sees an image before them (PaliGemma, Beyer et al. 2024).

Axes: B batch, H height, W width, C channels, P patches, L length, D embed, V vocab.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from bigmodels import config
from bigmodels.models.parts import blocks
from bigmodels.models.parts.blocks import Cache
from bigmodels.models.parts.settings import check_fixed
from bigmodels.models.transformer import Prefix, Transformer
from bigmodels.models.vit import ViT

Array = jax.Array

# Field of a tower -> its only value, and why.
FIXED = {
    'image': {'pool': ('none', 'the decoder sees every patch')},
    'text': {
        'moe': (None, 'nobody adds the losses that balance experts'),
        'scan_layers': (False, 'layers that are scanned do not decode'),
    },
}


class VisionLanguage(nn.Module):
    """A `ViT` whose patches, projected by its head, come before the tokens of a `Transformer`.

    Image and question see each other whole, the answer is causal (section 3.1).

    Fields:
      image: the fields of the `ViT`, without num_classes.
      text: the fields of the `Transformer`. Those that are FIXED have no other value here.
    """

    image: Mapping[str, Any]
    text: Mapping[str, Any]

    sections: ClassVar = {'image': ViT, 'text': Transformer}
    sharding_rules: ClassVar = (
        *blocks.SHARDING_RULES,
        (r'^image_tower/patch_embed/kernel$', (None, 'fsdp')),  # [P*P*C, D]
        (r'^image_tower/position_embed$', (None, 'fsdp')),  # [P, D]
        (r'^image_tower/head/kernel$', ('fsdp', None)),  # [D, D]
        (r'^text_tower/embed/embedding$', ('tensor', 'fsdp')),  # [V, D]
        (r'^text_tower/position_embed/embedding$', (None, 'fsdp')),  # [S, D]
        (r'^text_tower/unembed$', ('fsdp', 'tensor')),  # [D, V]
        (r'^text_tower/logits_transform/dense/kernel$', ('fsdp', None)),  # [D, D]
        (r'(scale|bias)$', ()),
    )

    def __post_init__(self):
        self.image, self.text = nn.FrozenDict(self.image), nn.FrozenDict(self.text)  # hashable
        towers = {
            'image': self._image_tower(parent=None),  # building them checks their fields
            'text': self._text_tower(parent=None),
        }
        for name, tower in towers.items():
            check_fixed(tower, FIXED[name], f'model.{name}')
        super().__post_init__()

    def _image_tower(self, **given) -> ViT:
        width = self.text['embed_dim']
        return config.build(ViT, self.image, 'model.image', num_classes=width, **given)

    def _text_tower(self, **given) -> Transformer:
        return config.build(Transformer, self.text, 'model.text', **given)

    @property
    def vocab_size(self) -> int:
        return self.text['vocab_size']

    def num_patches(self, height: int, width: int) -> int:
        """P, of an image of so many pixels."""
        return height * width // self._image_tower(parent=None).patch_size ** 2

    @property
    def max_length(self) -> int:
        """Of patches and tokens together."""
        return self._text_tower(parent=None).max_length

    def setup(self):
        self.image_tower = self._image_tower()
        self.text_tower = self._text_tower()

    def __call__(
        self,
        inputs: Array,
        tokens: Array,
        lengths: Array,
        *,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Array | tuple[Array, Cache]:
        """Logits of the next token at every token.

        Args:
          inputs: images [B, H, W, C].
          tokens: int [B, L], of which the first `lengths` int [B] are the question.
          cache: of `init_cache`.

        Returns:
          float32 [B, L, V]; with a cache, that and the cache with the image and the tokens written.
        """
        prefix = Prefix(self.image_tower(inputs, train=train), lengths)
        return self.text_tower(tokens, prefix=prefix, cache=cache, train=train)

    def decode(self, tokens: Array, positions: Array, cache: Cache) -> tuple[Array, Cache]:
        """Logits [B, 1, V] after further tokens [B, 1] of the answer, see `Transformer`.

        Args:
          positions: int [B, 1], counted from the first patch.
        """
        return self.text_tower(tokens, positions=positions, cache=cache)

    def init_cache(self, batch_size: int, length: int) -> Cache:
        """Empty slots for so many patches and tokens."""
        return self._text_tower(parent=None).init_cache(batch_size, length)
