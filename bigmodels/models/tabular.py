"""Models of tables: numbers and categories as embeddings, in a perceptron.

Axes: B batch, N numeric columns, C categorical ones, K features of a number, D embed.
"""

import statistics
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors
from bigmodels.models.mlp import MLP
from bigmodels.models.parts import layers

Array = jax.Array


class TableModel(nn.Module):
    """The fields that models of tables share, and the embedding of their columns.

    Fields:
      num_outputs: one for each class, or 1 for a number.
      num_categories: codes of all categorical columns together.
      embed_dim: of each column's embedding.
      numeric: what an embedding is a linear function of: the number itself (Gorishniy et al. 2021,
        arXiv:2106.11959, section 3.3); or, then through a ReLU, its `periodic_features` or its
        `piecewise_linear` encoding (Gorishniy et al. 2022, arXiv:2203.05556: PLR and Q-LR).
      num_features: K, of the last two; even for periodic ones.
      frequency_scale: deviation of the initial frequencies of periodic features.
      dropout_rate: where a model has dropout.
      dtype: of the computation; parameters are float32.
    """

    num_outputs: int
    num_categories: int
    embed_dim: int = 16
    numeric: Literal['linear', 'periodic', 'piecewise_linear'] = 'piecewise_linear'
    num_features: int = 32
    frequency_scale: float = 0.1
    dropout_rate: float = 0.0
    dtype: layers.Dtype = 'float32'

    def __post_init__(self):
        if self.num_features < 1 or (self.numeric == 'periodic' and self.num_features % 2):
            raise errors.UserError(
                f'model.num_features = {self.num_features} must be at least 1, and even for '
                'periodic ones.'
            )
        super().__post_init__()

    def embed(self, inputs: Array, categories: Array) -> Array:
        """float32 [B, N] and int [B, C] -> [B, N + C, D]; for use in a compact `__call__`."""
        embedded = []
        if inputs.shape[1]:
            embedded.append(self._embed_numbers(inputs))
        if categories.shape[1]:
            table = layers.Embed(self.num_categories, self.embed_dim, name='embed')
            embedded.append(table(categories))
        return jnp.concatenate(embedded, axis=1).astype(self.dtype)

    def _embed_numbers(self, x: Array) -> Array:
        count = x.shape[1]
        if self.numeric == 'linear':
            features = x[..., None]
        elif self.numeric == 'periodic':
            normal = nn.initializers.normal(self.frequency_scale)
            shape = (count, self.num_features // 2)
            features = periodic_features(x, self.param('frequencies', normal, shape))
        else:
            features = piecewise_linear(x, self.num_features)
        init = nn.initializers.normal(features.shape[-1] ** -0.5)
        kernel = self.param('number_embed', init, (count, features.shape[-1], self.embed_dim))
        bias = self.param('number_bias_embed', nn.initializers.zeros, (count, self.embed_dim))
        embedded = jnp.einsum('bnk,nkd->bnd', features, kernel) + bias
        return embedded if self.numeric == 'linear' else jax.nn.relu(embedded)


class TabularMLP(TableModel):
    """inputs float32 [B, N], categories int32 [B, C] -> float32 [B, num_outputs].

    The embeddings of all columns one after the other, through an `MLP` of `hidden_dims`.
    """

    hidden_dims: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, inputs: Array, categories: Array, *, train: bool = False) -> Array:
        network = MLP(
            self.num_outputs,
            self.hidden_dims,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            name='mlp',
        )
        return network(self.embed(inputs, categories), train=train)


def periodic_features(x: Array, frequencies: Array) -> Array:
    """x [B, N] and frequencies [N, K / 2] -> [B, N, K]: sines and cosines of 2 pi frequency x."""
    angles = 2 * jnp.pi * x[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def piecewise_linear(x: Array, num_features: int) -> Array:
    """x [B, N] -> [B, N, K]: how far x is through each of K bins, from 0 to 1.

    The bins hold equal shares of a standard normal distribution, which is that of normal scores:
    they end at quantiles of the training values. The first and the last, which end at -3 and 3 or
    one beyond their neighbours, go on in a straight line.
    """
    quantile = statistics.NormalDist().inv_cdf
    inner = [quantile(i / num_features) for i in range(1, num_features)]
    end = 3 if min(inner, default=0) > -3 else 1 - inner[0]
    edges = np.array([-end, *inner, end], np.float32)
    low, high = np.zeros(num_features, np.float32), np.ones(num_features, np.float32)
    low[0], high[-1] = -np.inf, np.inf
    return jnp.clip((x[..., None] - edges[:-1]) / np.diff(edges), low, high)
