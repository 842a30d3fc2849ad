"""Boxes of objects in images, as arrays; and how a grid of cells tells where they are.

A box is (left, top, right, bottom) in pixels, float [..., 4]: its edges, so that the first pixel is
from 0 to 1 and an image of width W from 0 to W.
Axes: M boxes of an image, H and W rows and columns of the grid, C classes.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# An object's peak is Gaussian, its standard deviation this share of a side (TTFNet, section 3.2).
SPREAD = 0.54 / 6
LEAST = 0.01  # of a peak: where it is lower, its box is not learnt


def area(boxes: Array) -> Array:
    """[..., 4] -> [...]; 0 where an edge lies beyond its opposite."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def intersection_and_union(one: Array, other: Array) -> tuple[Array, Array]:
    """The areas common to two boxes and in either, for boxes [..., 4] broadcast to each other."""
    upper = jnp.maximum(one[..., :2], other[..., :2])
    lower = jnp.minimum(one[..., 2:], other[..., 2:])
    both = area(jnp.concatenate([upper, lower], axis=-1))
    return both, area(one) + area(other) - both


def iou(one: Array, other: Array) -> Array:
    """Intersection over union of boxes [..., 4] broadcast to each other; 0 where both are empty."""
    both, either = intersection_and_union(one, other)
    return both / jnp.maximum(either, 1e-9)


def clipped(boxes: Array, extent: Array) -> Array:
    """Boxes [..., 4] cut at the edges of an image of `extent` [..., 2], its width and height."""
    most = jnp.concatenate([extent, extent], axis=-1)
    return jnp.clip(boxes, 0, most)


def centres(height: int, width: int, stride: int) -> Array:
    """The middles (x, y) of a grid's cells in pixels, float32 [H, W, 2]."""
    x, y = (stride * (jnp.arange(size, dtype=jnp.float32) + 0.5) for size in (width, height))
    return jnp.stack(jnp.meshgrid(x, y), axis=-1)


def encode(boxes: Array, grid: Array, stride: int) -> Array:
    """What a cell has to say of a box: where its centre is, and how large it is.

    Args:
      boxes: [..., 4], of positive sides.
      grid: the middles of cells [..., 2], as `centres` gives.
      stride: of the cells, in pixels.

    Returns:
      [..., 4]: from the cell's middle to the box's, in cells, along x and y; and the logarithms
      of width and height, in cells.
    """
    upper, lower = boxes[..., :2], boxes[..., 2:]
    offset = ((upper + lower) / 2 - grid) / stride
    return jnp.concatenate([offset, jnp.log((lower - upper) / stride)], axis=-1)


def decode(code: Array, grid: Array, stride: int) -> Array:
    """The boxes [..., 4] of which `encode` gives `code` [..., 4]; none is over e^8 cells wide."""
    middle = grid + stride * code[..., :2]
    half = stride * jnp.exp(jnp.minimum(code[..., 2:], 8.0)) / 2
    return jnp.concatenate([middle - half, middle + half], axis=-1)


def targets(
    boxes: Array, labels: Array, num_classes: int, grid_size: tuple[int, int], stride: int
) -> tuple[Array, Array, Array]:
    """What a network is to answer for one image (Zhou et al. 2019, section 3; TTFNet, section 3).

    Each box has a peak of 1 in the cell of its centre, which falls off around it as a Gaussian; of
    several in a class the highest counts. Around its peak a cell answers with the box whose peak is
    the highest there, the smaller one of equals.

    Args:
      boxes: [M, 4] in pixels.
      labels: int [M] from 0; -1 for padding.
      grid_size: (H, W).

    Returns:
      heat [H, W, C] from 0 to 1; the box of each cell [H, W, 4]; and its weight [H, W], of which
      each box that has any cell has 1 in all.
    """
    height, width = grid_size
    real = labels >= 0
    sides = jnp.where(real[:, None], boxes[:, 2:] - boxes[:, :2], 1) / stride
    middle = (boxes[:, :2] + boxes[:, 2:]) / (2 * stride)
    cell = jnp.clip(jnp.floor(middle), 0, jnp.array([width - 1, height - 1]))
    along_x, along_y = (
        jnp.exp(-(((jnp.arange(n) - cell[:, i, None]) / (SPREAD * sides[:, i, None])) ** 2) / 2)
        for i, n in enumerate((width, height))
    )
    peaks = jnp.where(real[:, None, None], along_y[:, :, None] * along_x[:, None, :], 0)
    heat = jax.ops.segment_max(peaks, jnp.where(real, labels, 0), num_segments=num_classes)
    # A stable order of area makes the first of equal peaks the smallest box's.
    order = jnp.argsort(jnp.where(real, area(boxes), jnp.inf))
    owner = order[peaks[order].argmax(0)]
    strength = peaks.max(0)
    weight = jnp.where(strength > LEAST, strength, 0)
    shares = jax.ops.segment_sum(weight.ravel(), owner.ravel(), num_segments=len(boxes))
    weight /= jnp.maximum(shares, 1e-9)[owner]
    return jnp.moveaxis(jnp.maximum(heat, 0), 0, -1), boxes[owner], weight


def peaks(heat: Array, most: int, reach: int = 1) -> tuple[Array, Array, Array]:
    """The highest cells that no neighbour of their class exceeds (Zhou et al. 2019, section 4).

    Args:
      heat: [H, W, C].
      most: how many.
      reach: how far neighbours are, along rows and columns; 0 for any cells, the highest.

    Returns:
      scores [most], descending, 0 where there are fewer; cells int [most] as row * W + column; and
      labels int [most].
    """
    window, none = (2 * reach + 1, 2 * reach + 1, 1), -jnp.inf
    highest = jax.lax.reduce_window(heat, none, jax.lax.max, window, (1, 1, 1), 'SAME')
    alone = jnp.where(heat == highest, heat, 0)
    scores, found = jax.lax.top_k(alone.ravel(), most)
    return scores, found // heat.shape[-1], found % heat.shape[-1]


def suppressed(boxes: Array, labels: Array, scores: Array, most_overlap: float) -> Array:
    """Scores [M] with 0 for a box that overlaps a better one of its class (greedy suppression).

    Args:
      boxes, labels, scores: [M, 4], int [M] and [M], the best first.
      most_overlap: boxes of a higher intersection over union are taken for the same object.
    """
    same = labels[:, None] == labels
    overlap = same & (iou(boxes[:, None], boxes) > most_overlap)
    earlier = jnp.arange(len(scores))

    def check(i, kept):
        beaten = (overlap[i] & kept & (earlier < i)).any()
        return kept.at[i].set(kept[i] & ~beaten)

    kept = jax.lax.fori_loop(0, len(scores), check, scores > 0)
    return jnp.where(kept, scores, 0)
