"""Convolutions as one matrix product each way, over every window as a row.

Blocks of the batch are taken one after the other, so that the windows stay in the cache.

Axes: B batch, H height, W width, C channels in, F channels out, K height and width of a kernel,
R windows of a block of images.
"""

import jax
import jax.numpy as jnp

from bigmodels.models.parts import layers
from bigmodels.models.parts.convolution.winograd import in_blocks

Array = jax.Array


def convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """x [B, H, W, C], kernel [K, K, C, F] -> [B, H', W', F].

    H' is (H + 2 padding - K) // stride + 1, and K more than the stride. Zeros surround the images.
    Products are in x's dtype, sums in float32.
    """
    size, f = len(kernel), kernel.shape[-1]

    def one_block(x):
        windows = _windows(x, size, stride, padding)
        y = jnp.dot(_rows(windows), kernel.reshape(-1, f), preferred_element_type=jnp.float32)
        return y.reshape(*windows.shape[:3], f).astype(x.dtype)

    (blocks,) = in_blocks(_window_bytes(x, size, stride), x)
    y = jax.lax.map(one_block, blocks)
    return y.reshape(len(x), *y.shape[2:])


def input_gradient(x: Array, kernel: Array, g: Array, stride: int, padding: int) -> Array:
    """The gradient of x [B, H, W, C] from g, the gradient of `convolve`'s result."""
    matrix = layers.transposed(kernel.reshape(-1, kernel.shape[-1]))  # [F, K*K*C]

    def one_block(g):
        windows = jnp.dot(_rows(g), matrix, preferred_element_type=jnp.float32)
        return _summed(windows.reshape(*g.shape[:3], -1), x, len(kernel), stride, padding)

    (blocks,) = in_blocks(_window_bytes(x, len(kernel), stride), g)
    return jax.lax.map(one_block, blocks).reshape(x.shape)


def kernel_gradient(x: Array, kernel: Array, g: Array, stride: int, padding: int) -> Array:
    """The gradient of the kernel, float32, from x and from g."""

    def one_block(total, block):
        x, g = block
        rows = _rows(_windows(x, len(kernel), stride, padding))
        product = jnp.dot(layers.transposed(rows), _rows(g), preferred_element_type=jnp.float32)
        return total + product, None

    zeros = jnp.zeros((kernel[..., 0].size, kernel.shape[-1]))
    blocks = in_blocks(_window_bytes(x, len(kernel), stride), x, g)
    return jax.lax.scan(one_block, zeros, tuple(blocks))[0].reshape(kernel.shape)


def _windows(x: Array, size: int, stride: int, padding: int) -> Array:
    """x [B, H, W, C] -> [B, H', W', K*K*C]."""
    around = (padding, padding)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    rows, columns = (
        [slice(i, i + max(n - size + 1, 0), stride) for i in range(size)] for n in padded.shape[1:3]
    )
    return jnp.concatenate([padded[:, i, j] for i in rows for j in columns], axis=-1)


def _summed(windows: Array, x: Array, size: int, stride: int, padding: int) -> Array:
    """The transpose of `_windows`: what windows [B, H', W', K*K*C] have for each pixel, summed.

    Pixels whose rows and columns are equal modulo the stride have the same places in windows: they
    are a plane, in which a place is only shifted, and the planes are interleaved at the end.
    """
    b, h, w, _ = windows.shape
    places = jnp.split(windows, size * size, axis=-1)
    longest = (size - 1) // stride

    def plane(row: int, column: int) -> Array:
        total = 0
        for i in range(row, size, stride):
            for j in range(column, size, stride):
                down, right = i // stride, j // stride
                widths = ((0, 0), (down, longest - down), (right, longest - right), (0, 0))
                total += jnp.pad(places[size * i + j], widths)
        return total.astype(x.dtype)

    rows = [jnp.stack([plane(row, column) for column in range(stride)], 3) for row in range(stride)]
    padded = jnp.stack(rows, 2).reshape(b, (h + longest) * stride, (w + longest) * stride, -1)
    beyond = [  # pixels after the last window
        max(padding + n - found, 0)
        for n, found in zip(x.shape[1:3], padded.shape[1:3], strict=True)
    ]
    padded = jnp.pad(padded, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))
    height, width = x.shape[1:3]
    return padded[:, padding : padding + height, padding : padding + width]


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _window_bytes(x: Array, size: int, stride: int) -> int:
    """Of the windows of one image."""
    return x[0].nbytes * size**2 // stride**2
