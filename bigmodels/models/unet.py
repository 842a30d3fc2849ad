"""The U-Net (Ronneberger et al. 2015), sizes by field; images [B, H, W, C], a class a pixel.

As is usual since, convolutions keep the size, and are followed by BatchNorm.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models.parts import layers
from bigmodels.models.parts.batch_norm import BatchNorm
from bigmodels.models.parts.convolution import Conv, max_pool

Array = jax.Array

# Parameter name -> mesh axes of its trailing dimensions; kernels are [height, width, C, F]. Pairs
# of convolutions are split as the two matrices of a feed-forward layer are.
SHARDING_RULES = (
    (r'^down_0/first/kernel$', (None, 'tensor')),  # few channels in
    (r'first/kernel$', ('fsdp', 'tensor')),
    (r'last/kernel$', ('tensor', 'fsdp')),
    (r'^up_\d+/kernel$', ('fsdp', 'tensor')),
    (r'^head/kernel$', ('fsdp', None)),
    (r'(scale|bias)$', ()),
)


class UNet(nn.Module):
    """inputs [B, H, W, C] -> logits [B, H, W, num_classes] in float32.

    Fields:
      widths: the channels of each resolution, each half of the one before.
      momentum: of BatchNorm's averages.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    momentum: float = 0.9
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    @property
    def stride(self) -> int:
        """What the sides of images are multiples of."""
        return 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        height, width = inputs.shape[1:3]
        if height % self.stride or width % self.stride:
            raise errors.UserError(
                f'Images of {height} x {width} pixels are not halved evenly by the '
                f'{len(self.widths)} resolutions of model.widths: take multiples of {self.stride}.'
            )
        x, skipped = inputs.astype(self.dtype), []
        for level, features in enumerate(self.widths):
            if level:
                x = max_pool(x, 2, stride=2, padding=0)
            x = ConvPair(features, self.momentum, name=f'down_{level}')(x, train)
            skipped.append(x)
        for level, features in reversed(list(enumerate(self.widths[:-1]))):
            x = UpConv(features, name=f'up_{level}')(x)
            x = jnp.concatenate([skipped[level], x], axis=-1)
            x = ConvPair(features, self.momentum, name=f'join_{level}')(x, train)
        return layers.Linear(self.num_classes, name='head')(x).astype(jnp.float32)


class ConvPair(nn.Module):
    """Two 3x3 convolutions of x [B, H, W, C], each normalised and rectified."""

    features: int
    momentum: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for name in ('first', 'last'):
            x = Conv(self.features, 3, name=name)(x)
            x = jax.nn.relu(BatchNorm(self.momentum, name=f'{name}_norm')(x, train))
        return x


class UpConv(nn.Module):
    """x [B, H, W, C] -> [B, 2H, 2W, features]: each pixel becomes 2 x 2, by a matrix of their own.

    This is the transposed convolution of 2x2 kernels with stride 2. The kernel is [C, 4 features],
    for the upper left, upper right, lower left and lower right pixel.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        shape = c, 4 * self.features
        kernel = layers.kernel_of(self, 'kernel', nn.initializers.he_normal(), shape)
        y = layers.matmul(x, kernel).reshape(b, h, w, 2, 2, self.features)
        y = y.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, self.features)
        return layers.add_bias(y, self.param('bias', nn.initializers.zeros, (self.features,)))
