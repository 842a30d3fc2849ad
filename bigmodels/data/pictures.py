"""Pictures of a batch, its images as one grid, its waveforms one below another; of predictions."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def image_grid(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Images, row by row, each above its caption.

    Args:
      images: [B, H, W] or [B, H, W, C] with C 1, 3 or 4 (the fourth is left out). The smallest
        value of the batch is drawn black and the largest white; what is not finite, red.
      captions: [B].
    """
    pixels = _colours(images)
    count, height, width, _ = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    label, gap = max(2, height // 4), max(1, width // 8)
    canvas = np.ones((rows * (height + label), columns * (width + gap), 3), np.float32)
    tile = max(1.4, (width + gap) / 100)  # inches
    figure = Figure(figsize=(tile * columns, tile * rows * (height + label) / (width + gap)))
    axes = figure.add_axes((0, 0, 1, 1))
    for i, caption in enumerate(captions):
        top, left = i // columns * (height + label), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = pixels[i]
        axes.text(left + width / 2, top + height, caption, ha='center', va='top', fontsize=6)
    axes.imshow(canvas, interpolation='nearest', aspect='auto')
    axes.set_axis_off()
    return figure


def overlay(image: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """An image in grey, with what was found in it green, or red where wrong; what was missed, blue.

    Args:
      image: [H, W, C], drawn from its smallest value to its largest.
      targets, predicted: the classes of its pixels, int [H, W]; 0 is the background.

    Returns:
      float32 [H, W, 3] from 0 to 1.
    """
    grey = np.repeat(_colours(image[None]).mean(-1)[0, ..., None], 3, axis=-1)
    right = (predicted == targets) & (targets > 0)
    kinds = (right, (0, 1, 0)), (~right & (predicted > 0), (1, 0, 0)), (
        (predicted == 0) & (targets > 0), (0, 0, 1)
    )  # fmt: skip
    for where, colour in kinds:
        grey[where] = 0.6 * grey[where] + 0.4 * np.float32(colour)
    return grey


def _colours(images: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] from 0 to 1."""
    pixels = np.asarray(images, np.float32)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels[..., :3]
    finite = np.isfinite(pixels)
    known = pixels[finite]
    low, high = (known.min(), known.max()) if known.size else (0, 1)
    scaled = np.where(finite, (pixels - low) / max(high - low, 1e-30), 0)
    scaled = np.broadcast_to(scaled, (*scaled.shape[:3], 3))
    return np.where(finite.all(-1, keepdims=True), scaled, np.float32([1, 0, 0]))


def waveforms(values: np.ndarray, captions: Sequence[str]) -> Figure:
    """Signals over their samples, one below another on one scale, each beside its caption.

    Args:
      values: [B, T]; what is not finite leaves a gap.
      captions: [B].
    """
    figure = Figure(figsize=(9, 0.6 * len(values) + 1), layout='constrained')
    axes = figure.add_subplot()
    finite = values[np.isfinite(values)]
    scale = max(float(np.abs(finite).max(initial=0)), 1e-30)
    for i, signal in enumerate(values):
        axes.plot(signal / (2 * scale) - i, linewidth=0.5, color='C0')
    axes.set_yticks(-np.arange(len(values)), captions, fontsize=7)
    axes.set(xlabel='sample', title=f'full height of a signal: -{scale:.3g} to {scale:.3g}')
    axes.margins(x=0)
    return figure


MOST_WRITTEN = 20  # classes of which a matrix has its numbers written in it


def confusion(counts: np.ndarray) -> Figure:
    """A confusion matrix, shaded by the share of each true class.

    Args:
      counts: int [C, C], how many examples of class `row` were taken for class `column`.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(2 + 0.5 * len(counts), 12)  # inches
    figure = Figure(figsize=(side, side), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set(xlabel='predicted class', ylabel='true class')
    if len(counts) <= MOST_WRITTEN:
        axes.set_xticks(range(len(counts)))
        axes.set_yticks(range(len(counts)))
        for (row, column), count in np.ndenumerate(counts):
            colour = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(column, row, f'{count}', ha='center', va='center', color=colour, fontsize=7)
    return figure
