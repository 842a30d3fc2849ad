"""The FT-Transformer of tables (Gorishniy et al. 2021, arXiv:2106.11959).

Axes: B batch, N numeric columns, C categorical ones, D embed.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels.models.parts import blocks, layers
from bigmodels.models.parts.attention import Implementation
from bigmodels.models.parts.settings import Remat, Settings, settings_of
from bigmodels.models.tabular import TableModel

Array = jax.Array


class FTTransformer(TableModel):
    """inputs float32 [B, N], categories int32 [B, C] -> float32 [B, num_outputs].

    Each column is a token; what an extra token has become is classified.

    Fields:
      num_layers and the rest: see `settings.Settings`.
    """

    num_layers: int = 3
    num_heads: int = 8
    mlp_dim: int | None = None
    activation: Literal['gelu', 'gelu_exact', 'swiglu', 'geglu'] = 'geglu'
    attention: Implementation = 'auto'
    remat: Remat = 'none'

    @property
    def settings(self) -> Settings:
        """Of the blocks: columns have no order."""
        return settings_of(self, vocab_size=self.num_outputs, causal=False, positions='none')

    @nn.compact
    def __call__(self, inputs: Array, categories: Array, *, train: bool = False) -> Array:
        tokens = self.embed(inputs, categories)
        normal = nn.initializers.normal(self.embed_dim**-0.5)
        extra = self.param('class_token', normal, (1, self.embed_dim)).astype(tokens.dtype)
        extra = jnp.broadcast_to(extra, (tokens.shape[0], 1, self.embed_dim))
        x, _ = blocks.run(self.settings, jnp.concatenate([extra, tokens], axis=1), train=train)
        x = layers.Norm('layer_norm', self.settings.norm_epsilon, name='final_norm')(x[:, 0])
        return layers.Linear(self.num_outputs, name='head')(jax.nn.relu(x)).astype(jnp.float32)
