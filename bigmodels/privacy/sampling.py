"""Which units a batch holds: functions of (seed, t), as all batches are."""

import dataclasses
import sys

import numpy as np

_POISSON = 0x50  # distinguishes what is random here from all else that has the seed


def generator(*words: int) -> np.random.Generator:
    """Random numbers that are a function of the words, integers from 0 to 2**64 - 1, alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


@dataclasses.dataclass(frozen=True)
class Order:
    """The numbers of the examples row by row; batch t is rows t * batch_size to the next batch's.

    A number past the last example's stands for a row of weight 0. Subclasses have `batch(t)`, int64
    [batch_size], and the fields `batch_size` and `seed`.
    """

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        return int(self.take(np.array([index]))[0])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The numbers in the rows of int64 [n] indices."""
        batches, places = np.divmod(indices, self.batch_size)
        numbers = np.empty_like(places)
        for t in np.unique(batches):
            here = batches == t
            numbers[here] = self.batch(int(t))[places[here]]
        return numbers


@dataclasses.dataclass(frozen=True)
class Poisson(Order):
    """Each of `length` examples is in each batch with probability `rate`, independently."""

    length: int
    rate: float
    batch_size: int
    seed: int

    def batch(self, t: int) -> np.ndarray:
        """Those drawn for batch t, as many as it has rows at most, then padding."""
        drawn = poisson(self.length, self.rate, self.seed, t)[: self.batch_size]
        return np.pad(drawn, (0, self.batch_size - len(drawn)), constant_values=self.length)


def poisson(count: int, rate: float, seed: int, t: int) -> np.ndarray:
    """The numbers under `count` that are drawn for batch t, each with probability `rate`."""
    return np.flatnonzero(generator(seed, _POISSON, t).random(count) < rate)
