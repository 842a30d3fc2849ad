"""Figures of segmented images: Dice and intersection over union, exact over all pixels.

Axes: N images, C classes, of which 0 is the background.
"""

import numpy as np

FIGURES = ('dice', 'iou', 'image_dice')


def dice(confusion: np.ndarray) -> np.ndarray:
    """2 |A and B| / (|A| + |B|) of the pixels of a class and those taken for it (Dice 1945).

    Args:
      confusion: int [..., C, C], how many pixels of class `row` were taken for class `column`.

    Returns:
      [..., C]; NaN where a class is in neither.
    """
    both, sizes = _overlap(confusion)
    return _ratio(2 * both, sizes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """|A and B| / |A or B| (Jaccard 1912), as `dice`."""
    both, sizes = _overlap(confusion)
    return _ratio(both, sizes - both)


def figures(confusion: np.ndarray) -> dict[str, float]:
    """The FIGURES of a set: means over the classes that occur, but for the background.

    Args:
      confusion: int [N, C, C] of each image.

    Returns:
      'dice' and 'iou' over the pixels of all images, 'image_dice' the mean over images and classes.
    """
    whole = confusion.sum(0, dtype=np.int64)
    values = (dice(whole)[1:], iou(whole)[1:], dice(confusion)[:, 1:])
    return {name: _known_mean(value) for name, value in zip(FIGURES, values, strict=True)}


def _overlap(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., C] each: the pixels in both, and the sum of both sizes."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1)
    return both, confusion.sum(-1) + confusion.sum(-2)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _known_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')
