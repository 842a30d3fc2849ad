"""The order of an epoch is grain's, whatever computes it."""

import grain
import numpy as np
import pytest

from bigmodels.data import shuffling


@pytest.mark.parametrize('length', [1, 2, 3, 10, 1437, 30_000, 2**16, 2**16 + 5, 2**18, 2**21])
@pytest.mark.parametrize('seed', [0, 3, 123_456_789, 2**32 - 1])
def test_epochs_are_those_of_grain(length, seed):
    """Through the first places of three epochs and their ends, the seed's wrap-around included."""
    numbers = shuffling.endless(100, length, seed)
    expected = grain.MapDataset.range(100, 100 + length).shuffle(seed=seed).repeat()
    assert len(numbers) == len(expected)
    places = {*range(min(length, 20)), length - 1}
    for epoch in range(3):
        for place in places:
            assert numbers[epoch * length + place] == expected[epoch * length + place]


@pytest.mark.parametrize('length', [1, 2, 77, 2**16, 2**16 + 1])
def test_an_epoch_is_a_permutation(length):
    order = shuffling.endless(0, length, 7).take(np.arange(length))
    assert sorted(order.tolist()) == list(range(length))


def test_a_mixture_is_that_of_grain():
    """Of a small set and of a large one."""
    sizes, weights = (50, 2**16 + 5), [1.0, 3.0]
    ours = [grain.MapDataset.source(shuffling.endless(0, size, 5)) for size in sizes]
    theirs = [grain.MapDataset.range(size).shuffle(seed=5).repeat() for size in sizes]
    mixed, expected = (grain.MapDataset.mix(parts, weights=weights) for parts in (ours, theirs))
    assert len(mixed) == len(expected)
    assert [mixed[i] for i in range(300)] == [expected[i] for i in range(300)]
