"""Training images changed at random with the boxes of their objects, as functions of (key, image).

What lies beyond an edge is 0, the mean of normalised inputs: mirrored, there would be objects
without boxes. Boxes are (left, top, right, bottom) in pixels, labels -1 for padding.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bigmodels import boxes as boxes_lib
from bigmodels import errors
from bigmodels.augmentation import _each, colour

Array = jax.Array
LEAST_VISIBLE = 0.3  # of a box's area: less is too little to tell what it was


@dataclasses.dataclass(frozen=True)
class BoxAugmentation:
    """config.task.augment of a detector, in this order; 0 is not at all.

    Fields:
      brightness, contrast, saturation, hue: see `colour.jitter`.
      flip, flip_vertical: the probability of a mirror image, left to right and top to bottom.
      scale: magnified by up to 1 + scale, or reduced as much, both sides alike.
      shift: moved by up to this share of each side.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    flip: float = 0.0
    flip_vertical: float = 0.0
    scale: float = 0.0
    shift: float = 0.0

    def __post_init__(self):
        most = {'flip': 1, 'flip_vertical': 1, 'shift': 1, 'hue': 0.5}
        for field in dataclasses.fields(self):
            value, limit = getattr(self, field.name), most.get(field.name, math.inf)
            if not 0 <= value <= limit:
                raise errors.UserError(
                    f'config.task.augment.{field.name} = {value} must be from 0 to {limit}.'
                )

    def __call__(
        self, rng: Array, batch: Mapping[str, Array], mean: float, std: float
    ) -> dict[str, Array]:
        """The batch with its 'inputs' [B, H, W, C], 'boxes' [B, M, 4] and 'labels' [B, M] changed.

        A box of which too little is left to see has the label -1. What is beyond an image's
        'extent' [B, 2], its width and height within its inputs, is padding and stays 0.

        Args:
          rng: of the step.
          mean, std: of the pixels, such that inputs * std + mean is from 0 to 255.
        """

        def one(key, image, boxes, labels, extent):
            return self._changed(key, image, boxes, labels, extent, mean, std)

        names = ('inputs', 'boxes', 'labels', 'extent')
        inputs, boxes, labels = _each(one, rng, *(batch[name] for name in names))
        return {**batch, 'inputs': inputs, 'boxes': boxes, 'labels': labels}

    def _changed(self, rng, image, boxes, labels, extent, mean, std):
        keys = jax.random.split(rng, 4)
        if any(jitter := (self.brightness, self.contrast, self.saturation, self.hue)):
            pixels = jnp.clip(image * std + mean, 0, 255)
            image = (colour.jitter(keys[0], pixels, *jitter) - mean) / std
            image = jnp.where(_within(extent, image.shape), image, 0)
        for key, axis, chance in ((keys[1], 1, self.flip), (keys[2], 0, self.flip_vertical)):
            if chance:
                mirrored = jax.random.bernoulli(key, chance)
                other = flipped(image, boxes, axis)
                image, boxes = jax.tree.map(
                    lambda a, b, mirrored=mirrored: jnp.where(mirrored, a, b), other, (image, boxes)
                )
        if not (self.scale or self.shift):
            return image, boxes, labels
        size, *shifts = jax.random.uniform(keys[3], (3,), minval=-1, maxval=1)
        factor = jnp.exp(size * math.log1p(self.scale))
        return moved(image, boxes, labels, factor, self.shift * jnp.stack(shifts))


def _within(extent: Array, shape: tuple[int, ...]) -> Array:
    """Which pixels of an image of `shape` lie within `extent` [2], width and height: [H, W, 1]."""
    rows, columns = (jnp.arange(size)[:, None] for size in shape[:2])
    return ((rows < extent[1]) & (columns < extent[0]).T)[..., None]


def flipped(image: Array, boxes: Array, axis: int) -> tuple[Array, Array]:
    """The mirror image [H, W, C] and its boxes [M, 4]; axis 1 exchanges left and right, 0 top and
    bottom.
    """
    first, second = (0, 2) if axis == 1 else (1, 3)
    extent = image.shape[axis]
    mirrored = boxes.at[:, first].set(extent - boxes[:, second])
    mirrored = mirrored.at[:, second].set(extent - boxes[:, first])
    return jnp.flip(image, axis), mirrored


def moved(
    image: Array, boxes: Array, labels: Array, factor: Array, shift: Array
) -> tuple[Array, Array, Array]:
    """An image magnified about its middle and moved, of the same size; boxes are cut at its edges.

    Args:
      image, boxes, labels: [H, W, C], [M, 4] and int [M].
      factor: by which sides are multiplied.
      shift: [2], to the right and down, as a share of width and height.

    Returns:
      The three after the change.
    """
    height, width, _ = image.shape
    extent = jnp.array([width, height], jnp.float32)
    offset = extent * ((1 - factor) / 2 + shift)
    image = jax.image.scale_and_translate(
        image, image.shape, (0, 1), jnp.stack([factor, factor]), offset[::-1], 'linear'
    )
    whole = boxes * factor + jnp.tile(offset, 2)
    visible = boxes_lib.clipped(whole, extent)
    enough = boxes_lib.area(visible) >= LEAST_VISIBLE * boxes_lib.area(whole)
    return image, visible, jnp.where(enough & (labels >= 0), labels, -1)
