"""Residual networks (He et al. 2016), sizes by field; images [B, H, W, C].

ResNet-18 is `block='basic', stage_sizes=(2, 2, 2, 2)`, ResNet-50 the default.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models.parts import activations, layers
from bigmodels.models.parts.batch_norm import BatchNorm
from bigmodels.models.parts.convolution import Conv, cosines, max_pool, mean_pool

Array = jax.Array
EXPANSION = 4  # output channels of a bottleneck for each of its inner ones

# Parameter name -> mesh axes of its trailing dimensions; kernels are [height, width, C, F]. The
# last two convolutions of a branch are split as the two matrices of a feed-forward layer are.
SHARDING_RULES = (
    (r'^stem/kernel$', ('fsdp',)),
    (r'(first|middle)/kernel$', ('fsdp', 'tensor')),
    (r'last/kernel$', ('tensor', 'fsdp')),
    (r'(reduce|shortcut)/kernel$', (None, 'fsdp')),
    (r'^head/kernel$', ('fsdp', 'tensor')),
    (r'(scale|bias)$', ()),
)


class ResNet(nn.Module):
    """inputs [B, H, W, C] -> logits [B, num_classes] in float32.

    Fields:
      stage_sizes: blocks in each stage; all but the first stage halve the resolution.
      stage_widths: channels in each stage, of a bottleneck's inner convolution.
      inner_widths: channels inside the blocks of each stage, where they are others than those;
        what a block gives has the stage's.
      block: 'basic' (two 3x3 convolutions) or 'bottleneck' (1x1, 3x3, 1x1).
      strides: of bottlenecks, in the 3x3 convolution ('v1.5', as is usual since Goyal et al. 2017)
        or in the first one ('v1', He et al. 2016).
      downsampling: 'stride', of convolutions (He et al. 2016), or 'pool', for small images: of what
        its 3x3 convolution gives a block keeps the largest of each 2x2 pixels, as networks for few
        epochs do (Page 2018, "How to train your ResNet"), and its shortcut takes their mean (He et
        al. 2018, arXiv:1812.01187, section 4.1).
      stem: 'imagenet' (7x7 of stride 2 and pooling) or 'cifar' (3x3, full resolution).
      stem_init: of the stem's kernel; for 'cosines' see `convolution.cosines`.
      activation: behind the stem, between convolutions and behind blocks.
      zero_init: each branch begins as zero (Goyal et al. 2017, section 5.1).
      momentum: of BatchNorm's averages.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    stage_widths: Sequence[int] = (64, 128, 256, 512)
    inner_widths: Sequence[int] = ()
    block: Literal['basic', 'bottleneck'] = 'bottleneck'
    strides: Literal['v1', 'v1.5'] = 'v1.5'
    downsampling: Literal['stride', 'pool'] = 'stride'
    stem: Literal['imagenet', 'cifar'] = 'imagenet'
    stem_init: Literal['he_normal', 'cosines'] = 'he_normal'
    activation: Literal['relu', 'gelu', 'silu'] = 'relu'
    zero_init: bool = True
    momentum: float = 0.9
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        for name in ('stage_widths', 'inner_widths'):
            widths = getattr(self, name)
            if len(widths) != len(self.stage_sizes) and (widths or name == 'stage_widths'):
                raise errors.UserError(
                    f'model.stage_sizes = {tuple(self.stage_sizes)} and model.{name} = '
                    f'{tuple(widths)} must have one number for each stage.'
                )
        first = self.block == 'bottleneck' and self.strides == 'v1'
        if self.downsampling == 'pool' and first:
            raise errors.UserError(
                "model.downsampling = 'pool' is behind 3x3 convolutions, and model.strides = 'v1' "
                'downsamples before them: leave one of them out.'
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Array, *, train: bool = False, features: bool = False
    ) -> Array | list[Array]:
        """Logits; with `features` what each stage gives, [B, H, W, C], and no head."""
        width = self.stage_widths[0]
        x = inputs.astype(self.dtype)
        size, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
        init = cosines if self.stem_init == 'cosines' else nn.initializers.he_normal()
        x = Conv(width, size, stride, kernel_init=init, name='stem')(x)
        x = _active(self, BatchNorm(self.momentum, name='stem_norm')(x, train))
        if self.stem == 'imagenet':
            x = max_pool(x, 3, stride=2)
        block, stages = BasicBlock, []
        if self.block == 'bottleneck':
            block = functools.partial(Bottleneck, stride_first=self.strides == 'v1')
        pool = self.downsampling == 'pool'
        settings = (pool, self.activation, self.zero_init, self.momentum)
        inner_widths = self.inner_widths or self.stage_widths
        for stage, (size, width, inner) in enumerate(
            zip(self.stage_sizes, self.stage_widths, inner_widths, strict=True)
        ):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f'stage{stage}_{i}'
                x = block(width, inner, stride, *settings, name=name)(x, train)
            stages.append(x)
        if features:
            return stages
        pooled = x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
        return layers.Linear(self.num_classes, name='head')(pooled).astype(jnp.float32)


class BasicBlock(nn.Module):
    """x + two 3x3 convolutions of x; `inner` channels between them, `width` behind."""

    width: int
    inner: int
    stride: int
    pool: bool
    activation: str
    zero_init: bool
    momentum: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _downsampled(self, x, self.stride, name='first')
        y = _active(self, BatchNorm(self.momentum, name='first_norm')(y, train))
        y = Conv(self.width, 3, name='last')(y)
        return _joined(self, x, y, train)


class Bottleneck(nn.Module):
    """x + 1x1, 3x3 and 1x1 convolutions of x; `inner` channels in it, EXPANSION * `width` out."""

    width: int
    inner: int
    stride: int
    pool: bool
    activation: str
    zero_init: bool
    momentum: float
    stride_first: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        first, middle = (self.stride, 1) if self.stride_first else (1, self.stride)
        y = Conv(self.inner, 1, first, name='reduce')(x)
        y = _active(self, BatchNorm(self.momentum, name='reduce_norm')(y, train))
        y = _downsampled(self, y, middle, name='middle')
        y = _active(self, BatchNorm(self.momentum, name='middle_norm')(y, train))
        y = Conv(EXPANSION * self.width, 1, name='last')(y)
        return _joined(self, x, y, train)


def _active(module: ResNet | BasicBlock | Bottleneck, x: Array) -> Array:
    return activations.ACTIVATIONS[module.activation](x)


def _downsampled(block: BasicBlock | Bottleneck, x: Array, stride: int, name: str) -> Array:
    """A 3x3 convolution of x, its resolution divided by the stride."""
    if not block.pool or stride == 1:
        return Conv(block.inner, 3, stride, name=name)(x)
    if x.shape[1] % stride or x.shape[2] % stride:
        raise errors.UserError(
            f"model.downsampling = 'pool' halves images of even sides: a block is given "
            f'{x.shape[1]} x {x.shape[2]} pixels.'
        )
    return max_pool(Conv(block.inner, 3, name=name)(x), stride, stride, padding=0)


def _joined(block: BasicBlock | Bottleneck, x: Array, y: Array, train: bool) -> Array:
    """x + the normalised branch y, activated; x is projected where the shapes differ."""
    scale_init = nn.initializers.zeros if block.zero_init else nn.initializers.ones
    y = BatchNorm(block.momentum, scale_init=scale_init, name='last_norm')(y, train)
    if x.shape != y.shape:
        x, stride = (mean_pool(x, block.stride), 1) if block.pool else (x, block.stride)
        x = Conv(y.shape[-1], 1, stride, name='shortcut')(x)
        x = BatchNorm(block.momentum, name='shortcut_norm')(x, train)
    return _active(block, x + y)
