"""EfficientNet (Tan and Le 2019), scaled by field; images [B, H, W, C].

B0 is the default. B1 to B7 have `width` 1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0 and `depth` 1.1, 1.2,
1.4, 1.8, 2.2, 2.6, 3.1.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models.parts import activations, layers
from bigmodels.models.parts.batch_norm import BatchNorm
from bigmodels.models.parts.convolution import Conv, DepthwiseConv

Array = jax.Array

# Of each stage in B0 (table 1): expansion, kernel size, channels, blocks.
STAGES = (
    (1, 3, 16, 1),
    (6, 3, 24, 2),
    (6, 5, 40, 2),
    (6, 3, 80, 3),
    (6, 5, 112, 3),
    (6, 5, 192, 4),
    (6, 3, 320, 1),
)
STEM_WIDTH, HEAD_EXPANSION, MULTIPLE = 32, 4, 8
MOMENTUM, EPSILON = 0.99, 1e-3  # of BatchNorm, as in the authors' code

# Parameter name -> mesh axes of its trailing dimensions; kernels are [height, width, C, F].
SHARDING_RULES = (
    (r'^stem/kernel$', ('fsdp',)),
    (r'(expand|squeeze|head_conv)/kernel$', ('fsdp', 'tensor')),
    (r'depthwise/kernel$', ('tensor',)),
    (r'(excite|project)/kernel$', ('tensor', 'fsdp')),
    (r'^head/kernel$', ('fsdp', 'tensor')),
    (r'(scale|bias)$', ()),
)


class EfficientNet(nn.Module):
    """inputs [B, H, W, C] -> logits [B, num_classes] in float32.

    Fields:
      width, depth: factors of B0's channels and blocks.
      strides: of the first block of each stage; with `stem_stride` they reduce 224 pixels to 7.
      dropout_rate: before the last layer, when training.
      drop_path_rate: when training, block i of n, from 0, is skipped for an example with
        probability drop_path_rate * i / n (Huang et al. 2016), if it has a shortcut.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1)
    stem_stride: int = 2
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.2
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        if len(self.strides) != len(STAGES):
            raise errors.UserError(
                f'model.strides = {tuple(self.strides)} must have {len(STAGES)} numbers, one for '
                f'each stage.'
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        x = inputs.astype(self.dtype)
        x = Conv(scaled(STEM_WIDTH, self.width), 3, self.stem_stride, name='stem')(x)
        x = _normalised(x, train, 'stem_norm')
        repeats = [math.ceil(self.depth * blocks) for *_, blocks in STAGES]
        done = 0
        for stage, (expansion, size, width, _) in enumerate(STAGES):
            for i in range(repeats[stage]):
                x = MBConv(
                    scaled(width, self.width),
                    size,
                    self.strides[stage] if i == 0 else 1,
                    expansion,
                    self.drop_path_rate * done / sum(repeats),
                    name=f'stage{stage}_{i}',
                )(x, train)
                done += 1
        x = Conv(HEAD_EXPANSION * x.shape[-1], 1, name='head_conv')(x)
        x = _normalised(x, train, 'head_norm')
        pooled = x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
        pooled = nn.Dropout(self.dropout_rate, deterministic=not train)(pooled)
        return layers.Linear(self.num_classes, name='head')(pooled).astype(jnp.float32)


class MBConv(nn.Module):
    """An inverted bottleneck with squeeze-and-excitation: widened, filtered, narrowed."""

    width: int
    size: int
    stride: int
    expansion: int
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]
        y = x
        if self.expansion > 1:
            y = Conv(self.expansion * channels, 1, name='expand')(y)
            y = _normalised(y, train, 'expand_norm')
        y = DepthwiseConv(self.size, self.stride, name='depthwise')(y)
        y = _normalised(y, train, 'depthwise_norm')
        # Each channel is weighed by what all are on average (Hu et al. 2018).
        mean = y.astype(jnp.float32).mean((1, 2)).astype(y.dtype)
        gate = layers.Linear(max(1, channels // 4), name='squeeze')(mean)
        gate = layers.Linear(y.shape[-1], name='excite')(activations.ACTIVATIONS['silu'](gate))
        y *= jax.nn.sigmoid(gate)[:, None, None]
        y = BatchNorm(MOMENTUM, EPSILON, name='project_norm')(
            Conv(self.width, 1, name='project')(y), train
        )
        if x.shape != y.shape:
            return y
        whole = (1, 2, 3)  # an example's branch is dropped as one
        return x + nn.Dropout(self.drop_path_rate, whole, deterministic=not train)(y)


def _normalised(x: Array, train: bool, name: str) -> Array:
    return activations.ACTIVATIONS['silu'](BatchNorm(MOMENTUM, EPSILON, name=name)(x, train))


def scaled(channels: int, factor: float) -> int:
    """The multiple of 8 next to channels * factor, and no more than a tenth under it."""
    wanted = channels * factor
    nearest = max(MULTIPLE, int(wanted + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return nearest if nearest >= 0.9 * wanted else nearest + MULTIPLE
