"""Convolutions of images by the fastest way on the devices computed on, and pooling.

Axes: B batch, H height, W width, C channels in, F channels out.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.scipy.fft import dct

from bigmodels import sharding
from bigmodels.models.parts import layers
from bigmodels.models.parts.convolution import columns, depthwise, winograd

Array = jax.Array


# With fewer channels in, as colours are, XLA's own convolutions are as fast; but not of one image,
# as where each example has a gradient of its own.
MIN_CHANNELS = 4


def convolve(x: Array, kernel: Array, stride: int = 1, padding: int | None = None) -> Array:
    """x [B, H, W, C], kernel [K, K, C, F] -> [B, H / stride, W / stride, F] in x's dtype.

    Zeros surround the images, `padding` on each side; by default K // 2, so that odd kernels keep
    their size.
    """
    padding = len(kernel) // 2 if padding is None else padding
    if kernel.shape[:2] == (1, 1) and not padding:
        return layers.matmul(x[:, ::stride, ::stride], kernel[0, 0])
    kernel = kernel.astype(x.dtype)
    # Blocks of a batch that is split would move, and a batch of any size has none.
    whole = sharding.num_batch_shards() == 1 and not jax.export.is_symbolic_dim(x.shape[0])
    many = x.shape[-1] >= MIN_CHANNELS or x.shape[0] == 1
    if whole and many and stride < len(kernel):
        return _by_products(x, kernel, stride, padding)
    return _convolve(x, kernel, stride, padding)


def _convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """XLA's own convolution."""
    around = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), around, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_products(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """By matrix products on CPUs, where XLA's own convolutions are slow."""

    def products(x, kernel):
        if _filters(x, kernel, stride, padding):
            return winograd.convolve(x, kernel)
        return columns.convolve(x, kernel, stride, padding)

    own = functools.partial(_convolve, stride=stride, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=products, default=own)


def _filters(x: Array, kernel: Array, stride: int, padding: int) -> bool:
    """Whether minimal filtering takes these."""
    return stride == padding == 1 and winograd.fits(x.shape, kernel.shape)


def _forward(x, kernel, stride, padding):
    return _by_products(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, g):
    def products(x, kernel, g):
        if _filters(x, kernel, stride, padding):
            dx, dkernel = winograd.input_gradient(g, kernel), winograd.kernel_gradient(x, g)
        else:
            dx = columns.input_gradient(x, kernel, g, stride, padding)
            dkernel = columns.kernel_gradient(x, kernel, g, stride, padding)
        return dx, dkernel.astype(kernel.dtype)

    def own(x, kernel, g):
        convolution = functools.partial(_convolve, stride=stride, padding=padding)
        return jax.vjp(convolution, x, kernel)[1](g)

    return jax.lax.platform_dependent(*residuals, g, cpu=products, default=own)


_by_products.defvjp(_forward, _backward)


def max_pool(x: Array, size: int, stride: int, padding: int | None = None) -> Array:
    """The largest of each window of x [B, H, W, C]; by default size // 2 around the images."""
    around = size // 2 if padding is None else padding
    if size == stride and around == 0:
        return _largest(_windows(x, size), size)
    return nn.max_pool(x, (size, size), (stride, stride), [(around, around)] * 2)


def mean_pool(x: Array, size: int) -> Array:
    """The mean of each of the windows of x [B, H, W, C] that lie beside each other."""
    return _windows(x, size).astype(jnp.float32).mean((2, 4)).astype(x.dtype)


def _windows(x: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, H / size, size, W / size, size, C], without what is left at the edges."""
    b, h, w, c = x.shape
    whole = x[:, : h // size * size, : w // size * size]
    return whole.reshape(b, h // size, size, w // size, size, c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _largest(windows: Array, size: int) -> Array:
    """The largest of each of windows [B, H, K, W, K, C] -> [B, H, W, C], the gradient to the first.

    The gradient goes by places, not by which values equal the largest: XLA may compute the values
    anew for that, rounded otherwise, and then none does.
    """
    return _first_largest(windows, size)[0]


def _first_largest(windows, size):
    largest = windows[:, :, 0, :, 0]
    place = jnp.zeros(largest.shape, jnp.uint8)
    for i in range(1, size**2):
        value = windows[:, :, i // size, :, i % size]
        above = (value > largest) | jnp.isnan(value)
        largest, place = jnp.where(above, value, largest), jnp.where(above, jnp.uint8(i), place)
    return largest, place


def _gradient_of_largest(size, place, g):
    index = jnp.arange(size**2, dtype=jnp.uint8).reshape(size, 1, size, 1)
    hit = place[:, :, None, :, None] == index
    return (jnp.where(hit, g[:, :, None, :, None], 0),)


_largest.defvjp(_first_largest, _gradient_of_largest)


def cosines(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Kernels [K, K, C, F] for images: a patch's cosine transform, lowest frequencies first.

    Then the same with the other sign, and if F is more than all of these, He's random kernels. The
    transform leaves little correlation in natural images (Ahmed et al. 1974), so that with
    BatchNorm behind it the first layer is nearly one that was fitted to whiten patches (Jordan
    2024, "94% on CIFAR-10 in 3.29 seconds").
    """
    size, _, c, f = shape
    space, colour = (dct(jnp.eye(n), norm='ortho') for n in (size, c))  # [place, frequency]
    waves = jnp.einsum('hi,wj,ck->hwcijk', space, space, colour).reshape(size, size, c, -1)
    waves = waves[..., np.argsort(np.indices((size, size, c)).sum(0).ravel(), kind='stable')]
    waves = jnp.concatenate([waves, -waves], -1)[..., :f]
    kernel = nn.initializers.he_normal()(key, shape, dtype)
    return kernel.at[..., : waves.shape[-1]].set(math.sqrt(2) * waves)  # He's variance


class Conv(nn.Module):
    """x [B, H, W, C] -> [B, H / stride, W / stride, features]; see `convolve`."""

    features: int
    size: int
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = layers.kernel_of(self, 'kernel', self.kernel_init, shape)
        y = convolve(*layers.rounded_inputs(x, kernel), self.stride, self.padding)
        if self.use_bias:
            y = layers.add_bias(y, self.param('bias', nn.initializers.zeros, (self.features,)))
        return y


class DepthwiseConv(nn.Module):
    """x [B, H, W, C] -> [B, H / stride, W / stride, C]; see `depthwise.convolve`."""

    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = layers.kernel_of(self, 'kernel', nn.initializers.he_normal(), shape)
        x, kernel = layers.rounded_inputs(x, kernel)
        return depthwise.convolve(x, kernel[:, :, 0], self.stride)
