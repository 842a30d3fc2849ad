"""Grain's order of shuffled epochs, computed for many places at once.

Grain shuffles by a function of (index, seed) alone: a block cipher over at least 2**16 numbers,
applied until the result is one of the set's (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). One place at a time, in one thread's Python lock, that is 10 us, or for a set of n under
2**16 65,536 / n times the cipher on average: a third of a core for quick steps. The cipher is four
rounds of Simon (Beaulieu et al. 2013, iacr.org/2013/404), keyed by C++'s std::seed_seq.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence

import numpy as np

_SMALL = 2**16  # the fewest numbers that the cipher permutes


def endless(start: int, length: int, seed: int) -> Sequence[int]:
    """The numbers start to start + length - 1, shuffled anew in every epoch; seed under 2**32."""
    return _Endless(start, length, seed)


@dataclasses.dataclass(frozen=True)
class _Endless:
    """See `endless`."""

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
            here, seed = epochs == epoch, (self.seed + epoch) % 2**32
            if self.length <= _SMALL:
                numbers[here] = permutation(self.length, seed)[places[here]]
            else:
                numbers[here] = shuffled(places[here], self.length, seed)
        return self.start + numbers


def shuffled(places: np.ndarray, length: int, seed: int) -> np.ndarray:
    """grain.experimental.index_shuffle(i, length - 1, seed, rounds=4) of int64 [n] places i.

    But where length - 1 is a power of 4: its last place ends there where another one does.
    """
    if length == 1:
        return np.zeros_like(places)
    bits = -(-max(length - 1, _SMALL - 1).bit_length() // 2)  # of half a number
    keys = [key % 2**bits for key in _seed_sequence(seed)]
    numbers = _ciphered(places, bits, keys)
    while (beyond := numbers >= length).any():
        numbers[beyond] = _ciphered(numbers[beyond], bits, keys)
    return numbers


@functools.lru_cache(maxsize=16)
def permutation(length: int, seed: int) -> np.ndarray:
    """`shuffled` of all places of a small set, int64 [length]."""
    if length == 1:
        return np.zeros(1, np.int64)
    keys = [key % 2**8 for key in _seed_sequence(seed)]
    # Where each number ends: after 1, 2, 4, ... ciphers, or sooner in the set.
    ends = _ciphered(np.arange(_SMALL), 8, keys)
    while (ends[:length] >= length).any():
        ends = np.where(ends < length, ends, ends[ends])
    return ends[:length].copy()


def _ciphered(numbers: np.ndarray, bits: int, keys: Sequence[int]) -> np.ndarray:
    """One application to int64 [n] numbers under 2**(2 * bits)."""
    left, right = numbers >> bits, numbers & (2**bits - 1)
    for i in (0, 2):
        left = left ^ _simon(right, bits) ^ keys[i]
        right = right ^ _simon(left, bits) ^ keys[i + 1]
    return left << bits | right


def _simon(word: np.ndarray, bits: int) -> np.ndarray:
    """The round function of numbers under 2**bits."""

    def rotated(by: int) -> np.ndarray:
        return word << by % bits & (2**bits - 1) | word >> (bits - by % bits)

    return (rotated(1) & rotated(8)) ^ rotated(2)


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
