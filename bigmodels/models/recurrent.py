"""Recurrent networks over tokens, in one direction or both, that classify texts.

Axes: B batch, L length, D features, H hidden units.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels.models.parts import layers, pooling

Array = jax.Array


class Cell(NamedTuple):
    """A recurrent cell.

    Fields:
      gates: the number of its projections, each of H units, side by side.
      width: how many arrays [B, H] it carries; the last one is its output.
      step: (carry, projected [B, gates * H], kernel [H, gates * H], bias) -> carry.
    """

    gates: int
    width: int
    step: Callable


def lstm_step(carry, projected, kernel, bias):
    """The LSTM with forget gates (Gers et al. 2000); gates i, f, g, o as in PyTorch."""
    memory, output = carry
    i, f, g, o = jnp.split(projected + output @ kernel + bias, 4, axis=-1)
    memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
    return memory, jax.nn.sigmoid(o) * jnp.tanh(memory)


def gru_step(carry, projected, kernel, bias):
    """The GRU (Cho et al. 2014); gates r, z, n. The reset gate is on the product and its bias."""
    (output,) = carry
    r, z, n = jnp.split(projected, 3, axis=-1)
    recurrent_r, recurrent_z, recurrent_n = jnp.split(output @ kernel + bias, 3, axis=-1)
    z = jax.nn.sigmoid(z + recurrent_z)
    n = jnp.tanh(n + jax.nn.sigmoid(r + recurrent_r) * recurrent_n)
    return ((1 - z) * n + z * output,)


CELLS = {'lstm': Cell(4, 2, lstm_step), 'gru': Cell(3, 1, gru_step)}


def recur(
    cell: Cell, projected: Array, real: Array, kernel: Array, bias: Array, reverse: bool = False
) -> Array:
    """The cell's outputs [B, L, H] along a sequence, from a carry of zeros.

    Args:
      projected: [B, L, gates * H], of the inputs.
      real: bool [B, L]; where it is false the carry stays as it is, so that padding on either side
        changes nothing.
      kernel: [H, gates * H]; bias: [gates * H].
      reverse: from the last position to the first.
    """
    zeros = jnp.zeros((projected.shape[0], len(kernel)), projected.dtype)

    def step(carry, inputs):
        x, seen = inputs
        moved = cell.step(carry, x, kernel, bias)
        carry = tuple(
            jnp.where(seen[:, None], new, old) for new, old in zip(moved, carry, strict=True)
        )
        return carry, carry[-1]

    along = projected.swapaxes(0, 1), real.T
    _, outputs = jax.lax.scan(step, (zeros,) * cell.width, along, reverse=reverse)
    return outputs.swapaxes(0, 1)


class Recurrence(nn.Module):
    """x [B, L, D], real bool [B, L] -> [B, L, H] by one layer in one direction; see `recur`."""

    cell: str
    hidden_dim: int
    reverse: bool

    @nn.compact
    def __call__(self, x: Array, real: Array) -> Array:
        cell = CELLS[self.cell]
        width = cell.gates * self.hidden_dim
        # The inputs' part of all steps is one product; only the recurrent part waits for itself.
        projected = layers.Linear(width, use_bias=False, name='input')(x)
        kernel = self.param(
            'recurrent_kernel', nn.initializers.orthogonal(), (self.hidden_dim, width)
        )
        bias = self.param('bias', self._init_bias, (width,))
        return recur(cell, projected, real, kernel, bias, self.reverse)

    def _init_bias(self, rng: Array, shape: tuple[int]) -> Array:
        """0, but 1 for an LSTM's forget gates, which then begin by keeping (Gers et al. 2000)."""
        bias = jnp.zeros(shape)
        if self.cell == 'lstm':
            bias = bias.at[self.hidden_dim : 2 * self.hidden_dim].set(1)
        return bias


class Recurrent(nn.Module):
    """Texts to class logits: embeddings, recurrent layers, pooling over tokens, a linear layer.

    Fields:
      embed_dim, hidden_dim: of the embeddings, and of each layer in each direction.
      bidirectional: whether a layer reads in both directions, and passes on both outputs.
      pool: a key of `pooling.POOLS`.
      dropout_rate: on the embeddings, between layers and before the last one.
    """

    num_classes: int
    vocab_size: int
    embed_dim: int = 128
    hidden_dim: int = 128
    num_layers: int = 1
    cell: Literal['lstm', 'gru'] = 'lstm'
    bidirectional: bool = True
    pool: pooling.Pool = 'max'
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self, inputs: Array, *, segment_ids: Array | None = None, train: bool = False
    ) -> Array:
        """inputs int [B, L], segment_ids int [B, L] with 0 for padding -> float32 [B, classes]."""
        real = jnp.ones(inputs.shape, bool) if segment_ids is None else segment_ids > 0
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        embed = layers.Embed(self.vocab_size, self.embed_dim, name='embed')
        x = dropout(embed(inputs))
        for i in range(self.num_layers):
            outputs = [
                Recurrence(self.cell, self.hidden_dim, reverse, name=f'layers_{i}_{direction}')(
                    x, real
                )
                for direction, reverse in (('forward', False), ('backward', True))
                if self.bidirectional or not reverse
            ]
            x = dropout(jnp.concatenate(outputs, -1))
        pooled = pooling.POOLS[self.pool](x, real)
        return layers.Linear(self.num_classes, name='head')(pooled).astype(jnp.float32)
