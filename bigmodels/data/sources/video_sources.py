"""Random-access sources of labelled videos: moving digits, made as they are read."""

from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index, digest
from bigmodels.data.sources.image_sources import Mnist

# The label of a video is the place of its direction; as (down, right), in eighths of a turn.
DIRECTIONS = {
    'right': (0, 1),
    'up_right': (-1, 1),
    'up': (-1, 0),
    'up_left': (-1, -1),
    'left': (0, -1),
    'down_left': (1, -1),
    'down': (1, 0),
    'down_right': (1, 1),
}


class MovingDigits:
    """Videos of one MNIST digit that moves straight on: which way is the label, see `DIRECTIONS`.

    After Moving MNIST (Srivastava et al. 2015, arXiv:1502.04681, section 3.1), with one digit, and
    its label. The digit does not bounce: what leaves at one side comes in at the other. So its
    place is uniform in every frame, whatever the direction, and no frame alone tells the label.
    Video i is a function of the seed and i: the digit, the direction, the first place and the
    speed, in pixels a frame, are drawn uniformly. The grey levels are the digit's own, the rest is
    0. Record: {'video': uint8 [num_frames, size, size, 1], 'label': int64}.
    """

    def __init__(
        self,
        path: str,
        count: int,
        split: Literal['train', 'test'] = 'train',
        num_frames: int = 8,
        size: int = 64,
        shrink: int = 1,
        speeds: tuple[float, float] = (3.0, 6.0),
        seed: int = 0,
    ):
        """Of the digits of `split` of the folder `path`, see `Mnist`.

        Args:
          count: of the videos.
          size: of the square frames, in pixels.
          shrink: a digit's pixels are means of so many by so many of MNIST's.
          speeds: the lowest and the highest. From sqrt(2) on, no two frames one after the other are
            the same.

        Raises:
          UserError: for what cannot be.
        """
        digits = Mnist(path, split)
        images = digits.take(np.arange(len(digits)))['image']
        side = images.shape[1]
        if shrink < 1 or side % shrink or images.shape[2] % shrink:
            raise errors.UserError(
                f'shrink = {shrink} does not divide digits of {side} x {images.shape[2]} pixels.'
            )
        if max(images.shape[1:]) // shrink > size:
            raise errors.UserError(
                f'size = {size} is smaller than digits of {side // shrink} x '
                f'{images.shape[2] // shrink} pixels.'
            )
        if count < 1 or num_frames < 2:
            raise errors.UserError(
                f'count = {count} must be at least 1, and num_frames = {num_frames} at least 2.'
            )
        if len(speeds) != 2 or not 0 < speeds[0] <= speeds[1] < size / 2:
            raise errors.UserError(
                f'speeds = {speeds} must be two above 0, the first not above the second, and both '
                f'under {size / 2:g}, half of size: beyond it a step looks like one back.'
            )
        self._digits, self._described = shrunk(images, shrink), digits.describe()
        self._count, self._seed, self._speeds = count, seed, tuple(speeds)
        self._num_frames, self._size = num_frames, size
        settings = count, num_frames, size, shrink, *self._speeds, seed
        self._fingerprint = digest('moving_digits', digits.fingerprint(), *map(str, settings))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        videos = self.take(np.array([checked_index(index, len(self))]))
        return {name: column[0] for name, column in videos.items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The videos of int64 [n] indices, stacked."""
        drawn = [self._draw(index) for index in indices.tolist()]
        which, labels, starts, speeds = map(np.array, zip(*drawn, strict=True))
        heading = np.array(list(DIRECTIONS.values()))[labels]
        velocity = speeds[:, None] * heading / np.linalg.norm(heading, axis=1, keepdims=True)
        times = np.arange(self._num_frames)
        moved = np.rint(velocity[:, None] * times[:, None]).astype(np.int64)
        corners = starts[:, None] + moved  # [n, T, 2]: of the digit's first row and column
        return {'video': self._painted(self._digits[which], corners), 'label': labels}

    def _draw(self, index: int) -> tuple[int, int, np.ndarray, float]:
        """Of one video: the digit, the direction, the first row and column, and the speed."""
        rng = np.random.default_rng([self._seed, index])
        return (
            int(rng.integers(len(self._digits))),
            int(rng.integers(len(DIRECTIONS))),
            rng.integers(0, self._size, 2),
            float(rng.uniform(*self._speeds)),
        )

    def _painted(self, digits: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """digits [n, h, w] at corners [n, T, 2] -> videos [n, T, size, size, 1]."""
        count, frames = corners.shape[:2]
        rows, columns = (
            (corners[..., axis, None] + np.arange(digits.shape[1 + axis])) % self._size
            for axis in (0, 1)
        )
        videos = np.zeros((count, frames, self._size, self._size, 1), np.uint8)
        video, frame = np.ogrid[:count, :frames]
        where = (video[..., None, None], frame[..., None, None])
        videos[*where, rows[..., :, None], columns[..., None, :], 0] = digits[:, None]
        return videos

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return (
            f'{self._count:,} videos of {self._num_frames} frames of {self._size} x {self._size} '
            f'pixels, digits of {self._described}'
        )


def shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """uint8 [n, h, w] -> [n, h / factor, w / factor], rounded means of factor x factor pixels."""
    if factor == 1:
        return images
    offsets = range(factor)
    total = sum(images[:, i::factor, j::factor].astype(np.int32) for i in offsets for j in offsets)
    return np.rint(total / factor**2).astype(np.uint8)
