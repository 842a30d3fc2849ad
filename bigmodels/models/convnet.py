"""Plain convolutional networks, sizes by field; images [B, H, W, C] or [B, H, W].

LeNet-5 (LeCun et al. 1998, with ReLU and maxima), AlexNet (Krizhevsky 2014, one tower) and VGG
(Simonyan and Zisserman 2015) are in `configs/`.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models.parts import activations, layers
from bigmodels.models.parts.batch_norm import BatchNorm
from bigmodels.models.parts.convolution import Conv, max_pool

Array = jax.Array

# Parameter name -> mesh axes of its trailing dimensions; kernels are [height, width, C, F].
SHARDING_RULES = (
    (r'^conv_0/kernel$', ('fsdp',)),  # few channels in
    (r'^conv_\d+/kernel$', ('fsdp', 'tensor')),
    (r'^(dense_\d+|head)/kernel$', ('fsdp', 'tensor')),
    (r'(scale|bias)$', ()),
)


class ConvNet(nn.Module):
    """inputs -> logits [B, num_classes] in float32.

    Convolutions in stages, maxima of windows after each stage, and dense layers.

    Fields:
      stages: the channels of each convolution, by stage.
      kernel_sizes, strides, paddings: of each convolution, over all stages; by default 3, 1 and
        half the kernel.
      pool_size: of the windows, two pixels apart.
      pool_last: whether the last stage is followed by maxima too.
      dense_widths: of the hidden layers after the convolutions.
      norm: after each convolution.
      dropout_rate: applied after each hidden dense layer when training.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    stages: Sequence[Sequence[int]]
    kernel_sizes: Sequence[int] = ()
    strides: Sequence[int] = ()
    paddings: Sequence[int] = ()
    pool_size: int = 2
    pool_last: bool = True
    dense_widths: Sequence[int] = ()
    norm: Literal['none', 'batch_norm'] = 'none'
    activation: Literal['relu', 'gelu', 'silu', 'tanh'] = 'relu'
    dropout_rate: float = 0.0
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        self.stages = tuple(map(tuple, self.stages))  # a model is hashable
        count = sum(map(len, self.stages))
        for name in ('kernel_sizes', 'strides', 'paddings'):
            given = getattr(self, name)
            if given and len(given) != count:
                raise errors.UserError(
                    f'model.{name} = {tuple(given)} must have one number for each of the {count} '
                    f'convolutions in model.stages, or none.'
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        x = (inputs if inputs.ndim == 4 else inputs[..., None]).astype(self.dtype)
        activation = activations.ACTIVATIONS[self.activation]
        sizes = self.kernel_sizes or [3] * sum(map(len, self.stages))
        strides = self.strides or [1] * len(sizes)
        paddings = self.paddings or [size // 2 for size in sizes]
        shapes = zip(sizes, strides, paddings, strict=True)
        i = stage = 0

        def left(x):
            if not x.size:
                raise errors.UserError(
                    f'Images of {inputs.shape[1]} x {inputs.shape[2]} pixels are used up after '
                    f'stage {stage} of model.stages: take fewer stages, or smaller strides.'
                )
            return x

        for stage, widths in enumerate(self.stages):
            for width in widths:
                x = Conv(width, *next(shapes), use_bias=True, name=f'conv_{i}')(x)
                if self.norm == 'batch_norm':
                    x = BatchNorm(name=f'norm_{i}')(x, train)
                x = left(activation(x))
                i += 1
            if self.pool_last or stage < len(self.stages) - 1:
                x = left(max_pool(x, self.pool_size, stride=2, padding=0))
        x = x.reshape(x.shape[0], -1)
        for j, width in enumerate(self.dense_widths):
            init = nn.initializers.he_normal()
            x = activation(layers.Linear(width, kernel_init=init, name=f'dense_{j}')(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return layers.Linear(self.num_classes, name='head')(x).astype(jnp.float32)
