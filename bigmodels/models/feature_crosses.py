"""Networks for one answer from categories and numbers, which cross their features: DLRM, DCN-v2.

Axes: B batch, C categories, N numbers, D embed, F features.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels.models.parts import layers

Array = jax.Array


class _Perceptron(nn.Module):
    """Linear layers of these widths, each with ReLU and dropout."""

    widths: Sequence[int]
    dropout_rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for width in self.widths:
            x = nn.relu(layers.Linear(width)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return x


def _embeddings(sizes: Sequence[int], embed_dim: int, categories: Array) -> list[Array]:
    """[B, D] of each of categories int [B, C]; called inside a compact `__call__`."""
    return [
        nn.Embed(size, embed_dim, name=f'embed_{i}')(categories[:, i])
        for i, size in enumerate(sizes)
    ]


class DLRM(nn.Module):
    """inputs [B, N], categories int [B, C] -> logits [B] (Naumov et al. 2019).

    The numbers become one more vector by a perceptron; the products of all pairs of vectors, and
    that one itself, are what the upper perceptron sees.

    Fields:
      category_sizes: rows of the table of each category; row 0 is of unknown values.
      embed_dim: D.
      bottom_dims, top_dims: hidden layers of the perceptrons.
    """

    category_sizes: Sequence[int]
    embed_dim: int = 16
    bottom_dims: Sequence[int] = (64,)
    top_dims: Sequence[int] = (64, 32)
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, inputs: Array, categories: Array, *, train: bool = False) -> Array:
        vectors = _embeddings(self.category_sizes, self.embed_dim, categories)
        widths = (*self.bottom_dims, self.embed_dim)
        dense = _Perceptron(widths, self.dropout_rate, name='bottom')(inputs, train)
        stacked = jnp.stack([dense, *vectors], axis=1)
        products = stacked @ stacked.swapaxes(1, 2)
        pairs = products[:, *np.tril_indices(stacked.shape[1], -1)]
        x = jnp.concatenate([dense, pairs], axis=-1)
        x = _Perceptron(self.top_dims, self.dropout_rate, name='top')(x, train)
        return layers.Linear(1, name='head')(x)[:, 0]


class DCN(nn.Module):
    """inputs [B, N], categories int [B, C] -> logits [B] (DCN-v2, Wang et al. 2021).

    With x0 all embeddings and numbers side by side, each cross layer is x0 * (W x + b) + x; a
    perceptron beside them sees x0 too, and the logit is linear in both (the parallel structure).

    Fields:
      category_sizes: rows of the table of each category; row 0 is of unknown values.
      embed_dim: D.
      num_cross_layers: the degree of the crosses is one more.
      deep_dims: of the perceptron.
    """

    category_sizes: Sequence[int]
    embed_dim: int = 16
    num_cross_layers: int = 2
    deep_dims: Sequence[int] = (64, 32)
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, inputs: Array, categories: Array, *, train: bool = False) -> Array:
        vectors = _embeddings(self.category_sizes, self.embed_dim, categories)
        first = jnp.concatenate([*vectors, inputs], axis=-1)
        first = nn.Dropout(self.dropout_rate, deterministic=not train)(first)
        crossed = first
        for i in range(self.num_cross_layers):
            crossed += first * layers.Linear(first.shape[-1], name=f'cross_{i}')(crossed)
        deep = _Perceptron(self.deep_dims, self.dropout_rate, name='deep')(first, train)
        return layers.Linear(1, name='head')(jnp.concatenate([crossed, deep], axis=-1))[:, 0]
