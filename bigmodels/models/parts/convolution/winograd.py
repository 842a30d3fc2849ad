"""3x3 convolutions by minimal filtering, F(2x2, 3x3) of Lavin and Gray (2016).

Four outputs of a pair of channels cost 16 multiplications instead of 36, and all are those of
plain matrix products, which XLA's CPU backend does best. Blocks of the batch are taken one after
the other, so that what is between the steps stays in the cache.

Axes: B batch, H height, W width, C channels in, F channels out, R the 2x2 tiles of a block's
outputs.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bigmodels.models.parts import layers

Array = jax.Array
Grid = Sequence[Sequence[Array]]  # rows of columns of equally shaped arrays

# Bytes of transformed inputs in a block: a share of the cache that the cores have in common.
BLOCK_BYTES = 4 << 20
# Where a transformed kernel has the transform of its mirror image.
MIRRORED = (3, 1, 2, 0)


def fits(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Whether `convolve` takes these: 3x3 kernels on images of even sides."""
    return kernel_shape[:2] == (3, 3) and x_shape[1] % 2 == 0 and x_shape[2] % 2 == 0


def convolve(x: Array, kernel: Array) -> Array:
    """x [B, H, W, C], kernel [3, 3, C, F] -> [B, H, W, F] with zero padding, in x's dtype.

    Operands of the products are in x's dtype, sums in float32.
    """
    return _convolve(x, _cast(_transformed(kernel.astype(jnp.float32), _kernel), x.dtype))


def input_gradient(g: Array, kernel: Array) -> Array:
    """The gradient of x [B, H, W, C] from g [B, H, W, F]: `convolve` by the mirrored kernel."""
    kernels = _cast(_transformed(kernel.astype(jnp.float32), _kernel), g.dtype)
    # The transform of the mirrored kernel is that of the kernel in another order.
    mirrored = [[layers.transposed(kernels[a][b]) for b in MIRRORED] for a in MIRRORED]
    return _convolve(g, mirrored)


def _convolve(x: Array, kernels: Grid) -> Array:
    """`convolve` for a transformed kernel, 4x4 arrays [C, F]."""

    def one_block(x):
        products = [
            [jnp.dot(v, u, preferred_element_type=jnp.float32) for v, u in zip(*row, strict=True)]
            for row in zip(transform_inputs(x), kernels, strict=True)
        ]
        return _interleaved(_transformed(products, _products), x.shape).astype(x.dtype)

    (blocks,) = in_blocks(4 * x[0].nbytes, x)
    return jax.lax.map(one_block, blocks).reshape(*x.shape[:3], -1)


def kernel_gradient(x: Array, g: Array) -> Array:
    """The gradient of a kernel, float32 [3, 3, C, F], from x [B, H, W, C] and g [B, H, W, F]."""

    def one_block(totals, block):
        inputs, cotangents = transform_inputs(block[0]), transform_cotangents(block[1])
        return jax.tree.map(lambda t, v, m: t + _inner(v, m), totals, inputs, cotangents), None

    zeros = [[jnp.zeros((x.shape[-1], g.shape[-1]))] * 4] * 4
    totals, _ = jax.lax.scan(one_block, zeros, in_blocks(4 * max(x[0].nbytes, g[0].nbytes), x, g))
    return jnp.stack([jnp.stack(row) for row in _transformed(totals, _kernel_transposed)])


def transform_inputs(x: Array) -> Grid:
    """x [B, H, W, C] -> for each place in the 4x4 tiles around 2x2 outputs, [R, C]."""
    _, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = [[padded[:, a : a + h : 2, b : b + w : 2] for b in range(4)] for a in range(4)]
    grid = _transformed(_cast(tiles, jnp.float32), _inputs)
    return jax.tree.map(lambda v: v.reshape(-1, c).astype(x.dtype), grid)


def transform_cotangents(g: Array) -> Grid:
    """g [B, H, W, F] -> for each of the 4x4 products, [R, F]: how the outputs lean on it."""
    tiles = [[g[:, a::2, b::2] for b in range(2)] for a in range(2)]
    grid = _transformed(_cast(tiles, jnp.float32), _products_transposed)
    return jax.tree.map(lambda m: m.reshape(-1, g.shape[-1]).astype(g.dtype), grid)


def _inner(v: Array, m: Array) -> Array:
    """v [R, C], m [R, F] -> float32 [C, F]."""
    return jnp.dot(layers.transposed(v), m, preferred_element_type=jnp.float32)


def _interleaved(tiles: Grid, shape: tuple[int, ...]) -> Array:
    """2x2 arrays [R, F] -> [B, H, W, F], for images of shape [B, H, W, ...]."""
    b, h, w, _ = shape
    parts = [jnp.stack([t.reshape(b, h // 2, w // 2, -1) for t in row], 3) for row in tiles]
    return jnp.stack(parts, 2).reshape(b, h, w, -1)


def in_blocks(image_bytes: int, *arrays: Array) -> list[Array]:
    """Arrays [B, ...] -> [blocks, images of a block, ...], at `image_bytes` for each image."""
    batch = len(arrays[0])
    limit = max(1, BLOCK_BYTES // image_bytes)
    images = max(n for n in range(1, min(limit, batch) + 1) if batch % n == 0)
    return [x.reshape(-1, images, *x.shape[1:]) for x in arrays]


def _cast(grid: Grid, dtype) -> Grid:
    return jax.tree.map(lambda x: x.astype(dtype), grid)


def _transformed(grid: Grid, transform: Callable) -> Grid:
    """A one-dimensional transform of the columns of a grid, then of its rows."""
    columns = [transform(*column) for column in zip(*grid, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _kernel(k0, k1, k2):
    half, odd = (k0 + k2) / 2, k1 / 2
    return [k0, half + odd, half - odd, k2]


def _kernel_transposed(u0, u1, u2, u3):
    half = (u1 + u2) / 2
    return [u0 + half, (u1 - u2) / 2, half + u3]


def _inputs(x0, x1, x2, x3):
    return [x0 - x2, x1 + x2, x2 - x1, x1 - x3]


def _products(m0, m1, m2, m3):
    return [m0 + m1 + m2, m1 - m2 - m3]


def _products_transposed(y0, y1):
    return [y0, y0 + y1, y0 - y1, -y1]
