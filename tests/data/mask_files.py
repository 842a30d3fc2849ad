"""Images of bright rectangles on dark ground, and the numbers of these as masks."""

import pathlib

import numpy as np
from PIL import Image


def scenes(count: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, height, width], and masks uint8 with 1 and 2 for two rectangles."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (count, height, width))
    masks = np.zeros((count, height, width), np.uint8)
    for image, mask in zip(pixels, masks, strict=True):
        for number in (1, 2):
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            tall, wide = rng.integers(height // 6, height // 2, 2)
            mask[top : top + tall, left : left + wide] = number
        image[mask > 0] += 150
    return pixels.astype(np.uint8), masks


def write_archive(path: pathlib.Path, count: int = 24, size: int = 32) -> None:
    """The archive that `configs/segment.py` reads; every fourth image is for the test."""
    images, masks = scenes(count, size, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=images, instance=masks, is_test=np.arange(count) % 4 == 0)


def write_folder(path: pathlib.Path, images, masks) -> None:
    """Images as PNG files 0.png, 1.png, ... in `images`, and their masks in `masks`."""
    for folder, arrays in (('images', images), ('masks', masks)):
        (path / folder).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(path / folder / f'{i}.png')
