"""A multilayer perceptron over flat features."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels.models.parts import activations, layers


class MLP(nn.Module):
    """inputs [B, ...] -> logits [B, num_classes] in float32.

    Fields:
      hidden_dims: the width of each hidden layer.
      activation: a key of `activations.ACTIVATIONS`.
      dropout_rate: applied after each hidden layer when training.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    hidden_dims: Sequence[int] = (256, 128)
    activation: Literal['relu', 'relu_squared', 'gelu', 'gelu_exact', 'silu', 'tanh'] = 'relu'
    dropout_rate: float = 0.0
    dtype: layers.Dtype = 'float32'

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        for width in self.hidden_dims:
            x = activations.ACTIVATIONS[self.activation](layers.Linear(width)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return layers.Linear(self.num_classes, name='head')(x).astype(jnp.float32)
