"""The sparse autoencoder of activations (Gao et al. 2024, arXiv:2406.04093).

Axes: B batch, D of the activations, F features.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models.parts import blocks, layers

Array = jax.Array


class SparseAutoencoder(nn.Module):
    """inputs [B, D] -> (features [B, F], not negative and mostly 0, and their sum [B, D]).

    A feature is a direction of unit length that is added as strongly as it is active.

    Fields:
      num_features: F.
      top_k: how many features are active in an example (section 2.3); 0 leaves that to a ReLU and
        to a penalty in the loss (section 2.1).
    """

    num_features: int
    top_k: int = 32

    sharding_rules: ClassVar = (
        (r'^encoder/kernel$', ('fsdp', 'tensor')),  # [D, F]
        (r'^decoder$', ('tensor', 'fsdp')),  # [F, D]
        (r'bias$', ()),
    )

    def __post_init__(self):
        if not 0 <= self.top_k <= self.num_features:
            raise errors.UserError(
                f'model.top_k = {self.top_k} must be from 0 to num_features = {self.num_features}.'
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> tuple[Array, Array]:
        width = inputs.shape[-1]
        decoder = self.param('decoder', blocks.scaled_normal(1 / width), (self.num_features, width))
        directions = decoder / jnp.linalg.norm(decoder, axis=1, keepdims=True)
        bias = self.param('bias', nn.initializers.zeros, (width,))
        # Encoders begin as the decoder's transpose, so that few features are born dead (A.1).
        start = lambda *_: directions.T
        features = layers.Linear(self.num_features, kernel_init=start, name='encoder')
        active = jax.nn.relu(features(inputs - bias))
        if self.top_k:
            least = jax.lax.top_k(active, self.top_k)[0][..., -1:]
            active = jnp.where(active >= least, active, 0)
        return active, layers.matmul(active, directions) + bias
