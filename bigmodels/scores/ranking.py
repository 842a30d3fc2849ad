"""Figures of ranked lists, of the places that the right items have in them.

A place counts from 1; 0 says that the item cannot be in the list. Axes: N lists, V items, R right
items of a list: places are int [N], or [N, R] filled up with -1.
"""

from typing import TypeVar

import numpy as np

Array = TypeVar('Array')  # of numpy or of JAX


def places(scores: Array, targets: Array) -> Array:
    """Where each target is in the list of all items by falling score, int [N].

    Of equal scores the lower row comes first, as `jax.lax.top_k` has it; an item of score -inf is
    not in the list.

    Args:
      scores: [N, V], all items and not a sample of them: figures of samples order methods
        otherwise (Krichene and Rendle 2020).
      targets: int [N], rows of V.
    """
    own = scores[np.arange(len(targets)), targets][:, None]
    before = np.arange(scores.shape[1]) < targets[:, None]
    place = 1 + (scores > own).sum(1) + ((scores == own) & before).sum(1)
    return place * (own[:, 0] > -np.inf)


def hit_rate(places: np.ndarray, k: int) -> float:
    """The share of lists with a right item among the first k."""
    return float(_within(places, k).any(1).mean())


def recall(places: np.ndarray, k: int) -> float:
    """The mean over lists of the share of right items that are among the first k.

    Of lists with one right item it is the hit rate.
    """
    counts = (_by_lists(places) >= 0).sum(1)
    return float((_within(places, k).sum(1) / counts).mean())


def mean_reciprocal_rank(places: np.ndarray) -> float:
    """The mean over lists of 1 / place of the first right item; 0 where there is none."""
    places = _by_lists(places)
    inverse = np.where(places > 0, 1 / np.maximum(places, 1), 0)
    return float(inverse.max(1).mean())


def ndcg(places: np.ndarray, k: int) -> float:
    """The normalised discounted cumulative gain of the first k (Järvelin and Kekäläinen 2002).

    A right item at place r gains 1 / log2(1 + r); the sum is divided by the largest there can be.
    """
    places = _by_lists(places)
    gains = np.where(_within(places, k), 1 / np.log2(1 + np.maximum(places, 1)), 0).sum(1)
    most = np.minimum((places >= 0).sum(1), k)
    ideal = np.cumsum(1 / np.log2(2 + np.arange(most.max())))[most - 1]
    return float((gains / ideal).mean())


def _by_lists(places: np.ndarray) -> np.ndarray:
    """int [N, R]."""
    return places.reshape(len(places), -1)


def _within(places: np.ndarray, k: int) -> np.ndarray:
    """bool [N, R]: which right items are among the first k."""
    places = _by_lists(places)
    return (places > 0) & (places <= k)
