"""Models of time series: PatchTST, on the blocks of a Transformer, and DLinear.

Axes: B batch, L input rows, H rows of the horizon, C columns, P patches, D embed.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models.parts import blocks, layers
from bigmodels.models.parts.attention import Implementation
from bigmodels.models.parts.settings import Remat, Settings, settings_of

Array = jax.Array


class PatchTST(nn.Module):
    """inputs [B, L, C] -> float32 [B, horizon, C] (Nie et al. 2023, arXiv:2211.14730).

    Each column alone, by the same parameters: its patches are the tokens, and a linear function of
    them all is the forecast. Batch normalisation in the paper's blocks is layer normalisation here.

    Fields:
      patch_size, stride: rows of a patch, and from one to the next; the last row is repeated
        `stride` times at the end.
      head_dropout_rate: on the states of all patches before the forecast.
      instance_norm: see `instance_statistics`.
      num_layers and the rest: see `settings.Settings`.
    """

    horizon: int
    num_layers: int = 3
    embed_dim: int = 16
    num_heads: int = 4
    mlp_dim: int | None = 128
    patch_size: int = 16
    stride: int = 8
    dropout_rate: float = 0.0
    head_dropout_rate: float = 0.0
    instance_norm: bool = True
    activation: Literal['gelu', 'gelu_exact', 'swiglu', 'geglu'] = 'gelu'
    attention: Implementation = 'auto'
    remat: Remat = 'none'
    dtype: layers.Dtype = 'float32'

    def __post_init__(self):
        for name in ('patch_size', 'stride'):
            if getattr(self, name) < 1:
                raise errors.UserError(f'model.{name} = {getattr(self, name)} must be at least 1.')
        super().__post_init__()

    @property
    def settings(self) -> Settings:
        """Of the blocks: every patch sees all, positions are added once."""
        return settings_of(self, vocab_size=self.horizon, causal=False, positions='none')

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        b, _, c = inputs.shape
        mean, deviation = instance_statistics(inputs) if self.instance_norm else (0, 1)
        x = ((inputs - mean) / deviation).swapaxes(1, 2).reshape(b * c, -1)
        x = patches(x, self.patch_size, self.stride).astype(self.dtype)
        x = layers.Linear(self.embed_dim, name='patch_embed')(x)
        normal = nn.initializers.normal(0.02)
        x += self.param('position_embed', normal, x.shape[1:]).astype(x.dtype)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x, _ = blocks.run(self.settings, sharding.constrain_activations(x), train=train)
        x = layers.Norm('layer_norm', self.settings.norm_epsilon, name='final_norm')(x)
        x = nn.Dropout(self.head_dropout_rate, deterministic=not train)(x.reshape(b * c, -1))
        x = layers.Linear(self.horizon, name='head')(x).astype(jnp.float32)
        return x.reshape(b, c, -1).swapaxes(1, 2) * deviation + mean


class DLinear(nn.Module):
    """inputs [B, L, C] -> float32 [B, horizon, C] (Zeng et al. 2023, arXiv:2205.13504).

    A linear function of the trend, and one of what is left of the series beside it; the same ones
    for each column.

    Fields:
      window: rows of the moving average that is the trend; odd.
      instance_norm: see `instance_statistics`; the paper has none.
    """

    horizon: int
    window: int = 25
    instance_norm: bool = False

    def __post_init__(self):
        if self.window < 1 or self.window % 2 == 0:
            raise errors.UserError(f'model.window = {self.window} must be odd: 1, 3, 5, ...')
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        mean, deviation = instance_statistics(inputs) if self.instance_norm else (0, 1)
        x = (inputs - mean) / deviation
        trend = moving_average(x, self.window)
        # The mean of the input rows, as in the authors' code.
        init = nn.initializers.constant(1 / x.shape[1])
        forecast = sum(
            layers.Linear(self.horizon, kernel_init=init, name=name)(part.swapaxes(1, 2))
            for name, part in (('trend', trend), ('remainder', x - trend))
        )
        return forecast.swapaxes(1, 2) * deviation + mean


def instance_statistics(x: Array, epsilon: float = 1e-5) -> tuple[Array, Array]:
    """Mean and deviation [B, 1, C] of each window x [B, L, C] and column, in float32.

    A model that divides them out of its inputs and puts them back into its outputs does not depend
    on a shift of the level (reversible instance normalisation, Kim et al. 2022).
    """
    x = x.astype(jnp.float32)
    return x.mean(1, keepdims=True), jnp.sqrt(x.var(1, keepdims=True) + epsilon)


def patches(x: Array, size: int, stride: int) -> Array:
    """x [B, L] -> [B, P, size], every `stride` rows; the last row is repeated `stride` times.

    Raises:
      UserError: if the rows are fewer than a patch.
    """
    if x.shape[1] < size:
        raise errors.UserError(
            f'model.patch_size = {size} is longer than task.input_length = {x.shape[1]}.'
        )
    x = jnp.pad(x, ((0, 0), (0, stride)), mode='edge')
    count = (x.shape[1] - size) // stride + 1
    starts = stride * jnp.arange(count)
    return x[:, starts[:, None] + jnp.arange(size)]


def moving_average(x: Array, window: int) -> Array:
    """The mean of the `window` rows around each row of x [B, L, C]; the ends are repeated."""
    half = window // 2
    padded = jnp.pad(x, ((0, 0), (half, window - 1 - half), (0, 0)), mode='edge')
    sums = jnp.cumsum(jnp.pad(padded, ((0, 0), (1, 0), (0, 0))), axis=1)
    return (sums[:, window:] - sums[:, :-window]) / window
