"""Where the pixels of an image come from: mirrored, moved, turned, magnified, cut out.

Changes map a key and an image [H, W, C] of any float values to one of the same shape, but for
`window`. What lies beyond an edge is the image mirrored there, without the edge repeated.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def flip(rng: Array, image: Array, probability: float) -> Array:
    """Left and right exchanged, with a probability."""
    return jnp.where(jax.random.bernoulli(rng, probability), image[:, ::-1], image)


def shift(rng: Array, image: Array, pixels: int) -> Array:
    """Moved by up to so many whole pixels along each side, each with equal probability."""
    down, right = jax.random.randint(rng, (2,), -pixels, pixels + 1)
    return moved(image, down, right)


def moved(image: Array, down: int | Array, right: int | Array) -> Array:
    """[H, W] or [H, W, C], moved by whole pixels."""
    height, width = image.shape[:2]
    rows = reflected(jnp.arange(height) - down, height)
    columns = reflected(jnp.arange(width) - right, width)
    return image[rows][:, columns]


def window(rng: Array, image: Array, size: int, extent: Array) -> Array:
    """A part [size, size, C], every place within the first rows and columns equally probable.

    Args:
      extent: int [2], how many rows and columns; where there are fewer than `size`, the first part.
    """
    top, left = jax.random.randint(rng, (2,), 0, jnp.maximum(extent - size, 0) + 1)
    return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, image.shape[-1]))


def crop(rng: Array, image: Array, least_area: float) -> Array:
    """A random part, scaled to the whole (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Its share of the area is uniform in [least_area, 1], the logarithm of its width over its height,
    both as shares of the image's, in [log 3/4, log 4/3]; what would be longer than a side is cut.
    """
    height, width, _ = image.shape
    area, ratio, top, left = jax.random.uniform(rng, (4,))
    share = least_area + (1 - least_area) * area
    stretch = jnp.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
    h, w = (jnp.minimum(jnp.sqrt(share) * s, 1) for s in (1 / stretch, stretch))
    # From the first pixel's outer edge to the last one's, as resizing has it.
    rows = (jnp.arange(height) + 0.5) * h + top * (1 - h) * height - 0.5
    columns = (jnp.arange(width) + 0.5) * w + left * (1 - w) * width - 0.5
    return sample(image, *jnp.meshgrid(rows, columns, indexing='ij'))


def turn(rng: Array, image: Array, degrees: float, scale: float) -> Array:
    """Turned by up to so many degrees either way, and magnified by up to 1 + scale or 1 over it.

    Both are uniform, the latter on its logarithm.
    """
    angle, size = jax.random.uniform(rng, (2,), minval=-1, maxval=1)
    factor = jnp.exp(size * math.log1p(scale))
    return affine(image, rotation(jnp.deg2rad(angle * degrees)) / factor)


def cutout(rng: Array, image: Array, side: int) -> Array:
    """Zero in a square whose centre is a random pixel (DeVries and Taylor 2017, section 3.2).

    Normalised inputs are zero at the data's mean. The square may reach beyond the image.
    """
    inside = [
        jnp.abs(jnp.arange(size) - centre + (side % 2 - 1) / 2) < side / 2
        for size, centre in zip(image.shape, _pixel(rng, image), strict=False)
    ]
    return jnp.where(inside[0][:, None, None] & inside[1][:, None], 0, image)


def _pixel(rng: Array, image: Array) -> Array:
    """The row and column of a random pixel."""
    return jax.random.randint(rng, (2,), 0, jnp.array(image.shape[:2]))


def rotation(angle: Array) -> Array:
    """The matrix [2, 2] for `affine` that turns an image counter-clockwise by `angle` radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, sin], [-sin, cos]])


def affine(image: Array, matrix: Array, offset: Array | float = 0.0) -> Array:
    """The image whose pixel p, (row, column) from the middle, is the given one's at matrix @ p.

    Args:
      matrix: [2, 2].
      offset: [2], added to matrix @ p, in pixels.
    """
    height, width, _ = image.shape
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij'))
    # Sums of two products, not a matrix product, whose precision would depend on the platform.
    row, column = places - middle[:, None, None]
    row, column = matrix[:, 0, None, None] * row + matrix[:, 1, None, None] * column + (
        middle + offset
    )[:, None, None]  # fmt: skip
    return sample(image, row, column)


def sample(image: Array, rows: Array, columns: Array) -> Array:
    """The image [H, W, C] at places between its pixels, bilinear.

    Args:
      rows, columns: float [...]; whole numbers are the middles of pixels.

    Returns:
      [..., C]; at whole numbers the pixels as they are.
    """
    height, width, _ = image.shape
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    upper, lower = reflected(top, height), reflected(top + 1, height)
    first, last = reflected(left, width), reflected(left + 1, width)
    above = image[upper, first] * (1 - right) + image[upper, last] * right
    below = image[lower, first] * (1 - right) + image[lower, last] * right
    return above * (1 - down) + below * down


def reflected(places: Array, size: int) -> Array:
    """Integers mirrored at 0 and size - 1 until they lie between: -1 is 1, and size is size - 2."""
    period = max(2 * (size - 1), 1)
    places = places % period
    return jnp.minimum(places, period - places) if size > 1 else places
