"""Convolutions of images by the fastest way on the devices computed on, and pooling.

Axes: B batch, H height, W width, C channels in, F channels out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import sharding
from bigmodels.models import layers, winograd

Array = jax.Array


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """x [B, H, W, C], kernel [K, K, C, F] -> [B, H / stride, W / stride, F] in x's dtype.

    Zeros surround the images, K // 2 on each side, so that odd kernels keep their size.
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:2] == (1, 1):
        return layers.matmul(x[:, ::stride, ::stride], kernel[0, 0])
    if stride == 1 and winograd.fits(x.shape, kernel.shape) and sharding.num_batch_shards() == 1:
        return _convolve_3x3(x, kernel)
    return _convolve(x, kernel, stride)


def _convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """XLA's own convolution."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


@jax.custom_vjp
def _convolve_3x3(x: Array, kernel: Array) -> Array:
    """By `winograd` on CPUs, whose own convolutions are slow."""
    return jax.lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=_convolve)


def _forward_3x3(x, kernel):
    return _convolve_3x3(x, kernel), (x, kernel)


def _backward_3x3(residuals, g):
    x, kernel = residuals

    def own(x, kernel, g):
        return jax.vjp(_convolve, x, kernel)[1](g)

    def filtered(x, kernel, g):
        dkernel = winograd.kernel_gradient(x, g).astype(kernel.dtype)
        return winograd.input_gradient(g, kernel), dkernel

    return jax.lax.platform_dependent(x, kernel, g, cpu=filtered, default=own)


_convolve_3x3.defvjp(_forward_3x3, _backward_3x3)


def max_pool(x: Array, size: int, stride: int) -> Array:
    """The largest of each window of x [B, H, W, C]; size // 2 on each side beyond the image."""
    around = (size // 2, size // 2)
    return nn.max_pool(x, (size, size), (stride, stride), (around, around))


class Conv(nn.Module):
    """x [B, H, W, C] -> [B, H / stride, W / stride, features]; see `convolve`."""

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.he_normal(), shape, jnp.float32)
        y = convolve(x, kernel, self.stride)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
        return y
