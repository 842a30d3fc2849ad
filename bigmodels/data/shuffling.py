"""Grain's order of shuffled epochs, computed for a whole epoch of a small set at once.

Grain shuffles by a function of (index, seed) alone: a block cipher over at least 2**16 numbers,
applied until the result is one of the set's (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). For a set of n that is 65,536 / n times on average for each example, in one thread's
Python lock: 40 % of a core for a small set and quick steps. The cipher is four rounds of Simon
(Beaulieu et al. 2013, iacr.org/2013/404), keyed by C++'s std::seed_seq.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence

import grain
import numpy as np

_SMALL = 2**16  # numbers under it have two halves of 8 bits


def endless(start: int, length: int, seed: int) -> Sequence[int]:
    """The numbers start to start + length - 1, shuffled anew in every epoch; seed under 2**32."""
    if length <= _SMALL:
        return _Small(start, length, seed)
    return grain.MapDataset.range(start, start + length).shuffle(seed=seed).repeat()


@dataclasses.dataclass(frozen=True)
class _Small:
    """The endless order of a small set."""

    start: int
    length: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize  # as of a repeated dataset

    def __getitem__(self, index: int) -> int:
        return int(self.take(np.array([index]))[0])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The numbers at int64 [n] indices."""
        epochs, places = np.divmod(indices, self.length)
        numbers = np.empty_like(places)
        for epoch in range(epochs.min(), epochs.max() + 1):
            here = epochs == epoch
            numbers[here] = permutation(self.length, (self.seed + epoch) % 2**32)[places[here]]
        return self.start + numbers


@functools.lru_cache(maxsize=16)
def permutation(length: int, seed: int) -> np.ndarray:
    """grain.experimental.index_shuffle(i, length - 1, seed, rounds=4) of each i, int64 [length]."""
    if length == 1:
        return np.zeros(1, np.int64)
    numbers = np.arange(_SMALL, dtype=np.uint16)
    left, right = (numbers >> 8).astype(np.uint8), numbers.astype(np.uint8)
    keys = [np.uint8(key % 2**8) for key in _seed_sequence(seed)]
    for i in (0, 2):
        left ^= _simon(right) ^ keys[i]
        right ^= _simon(left) ^ keys[i + 1]
    # Where each number ends: after 1, 2, 4, ... ciphers, or sooner in the set.
    ends = left.astype(np.int64) << 8 | right
    while (ends[:length] >= length).any():
        ends = np.where(ends < length, ends, ends[ends])
    return ends[:length].copy()


def _simon(word: np.ndarray) -> np.ndarray:
    """The round function of uint8, where the rotation by 8 changes nothing."""
    return (_rotated(word, 1) & word) ^ _rotated(word, 2)


def _rotated(word: np.ndarray, bits: int) -> np.ndarray:
    return word << bits | word >> (8 - bits)


def _seed_sequence(seed: int, count: int = 4) -> list[int]:
    """What C++'s std::seed_seq{seed} generates, uint32 (ISO C++, rand.util.seedseq; 2 to 6)."""
    state = [0x8B8B8B8B] * count
    middle = (count - 1) // 2
    first = (count - middle) // 2
    for k in range(2 * count):
        here, near, far = (place % count for place in (k, k + first, k + first + middle))
        words = state[here], state[near], state[(k - 1) % count]
        if k < count:
            low = _mixed(words[0] ^ words[1] ^ words[2], 1664525)
            high = (low + (1, 1 + seed, *range(2, count))[k]) % 2**32
            state[near] = (state[near] + low) % 2**32
            state[far] = (state[far] + high) % 2**32
        else:
            low = _mixed(sum(words) % 2**32, 1566083941)
            high = (low - k % count) % 2**32
            state[near] ^= low
            state[far] ^= high
        state[here] = high
    return state


def _mixed(word: int, factor: int) -> int:
    return (word ^ word >> 27) * factor % 2**32
