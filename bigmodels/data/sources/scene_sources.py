"""Random-access sources of images with questions: scenes of digits, made as they are read."""

from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index, digest
from bigmodels.data.sources.image_sources import Mnist

# Kind of a question -> the question, and its answer from the digits of a scene in reading order.
QUESTIONS = {
    'count': ('how many are there?', len),
    'largest': ('which is the largest?', max),
    'sum': ('what is the sum?', sum),
    'read': ('how do they read?', lambda digits: ''.join(map(str, digits))),
}


class DigitScenes:
    """Scenes of one to four MNIST digits, each with a question about them, see `QUESTIONS`.

    A scene has four quarters; digits are in quarters of their own, anywhere in them. Scene i is a
    function of the seed and i: the question, how many digits, which, their quarters and places are
    drawn uniformly. The grey levels are the digits' own, the rest is 0. Digits are read from left
    to right, those of the upper quarters first. Record: {'image': uint8 [size, size, 1],
    'question': str, 'answer': str, 'kind': int64, the place in QUESTIONS}.
    """

    def __init__(
        self,
        path: str,
        count: int,
        split: Literal['train', 'test'] = 'train',
        size: int = 64,
        seed: int = 0,
    ):
        """Of the digits of `split` of the folder `path`, see `Mnist`.

        Args:
          count: of the scenes.
          size: of the square scenes, in pixels.

        Raises:
          UserError: for what cannot be.
        """
        digits = Mnist(path, split)
        records = digits.take(np.arange(len(digits)))
        self._digits, self._labels = records['image'], records['label']
        largest = max(self._digits.shape[1:])
        if size % 2 or size < 2 * largest:
            raise errors.UserError(
                f'size = {size} must be even and at least {2 * largest}, twice that of a digit.'
            )
        if count < 1:
            raise errors.UserError(f'count = {count} must be at least 1.')
        self._count, self._size, self._seed = count, size, seed
        self._described = digits.describe()
        asked = [(kind, question) for kind, (question, _) in QUESTIONS.items()]
        settings = f'{count} {size} {seed} {asked}'
        self._fingerprint = digest('digit_scenes', digits.fingerprint(), settings)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self._seed, checked_index(index, len(self))])
        kind = int(rng.integers(len(QUESTIONS)))
        quarters = rng.permutation(4)[: rng.integers(1, 5)]
        which = rng.integers(len(self._digits), size=len(quarters))
        half = self._size // 2
        room = half - np.array(self._digits.shape[1:]) + 1
        corners = rng.integers(room, size=(len(quarters), 2))
        corners += half * np.stack(np.divmod(quarters, 2), axis=1)
        image = np.zeros((self._size, self._size, 1), np.uint8)
        for digit, (row, column) in zip(self._digits[which], corners, strict=True):
            image[row : row + len(digit), column : column + len(digit[0]), 0] = digit
        question, answer = list(QUESTIONS.values())[kind]
        digits = self._labels[which[np.argsort(quarters)]].tolist()
        return {
            'image': image,
            'question': question,
            'answer': str(answer(digits)),
            'kind': np.int64(kind),
        }

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return (
            f'{self._count:,} scenes of {self._size} x {self._size} pixels with questions, digits '
            f'of {self._described}'
        )
