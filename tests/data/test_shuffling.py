"""The order of an epoch is grain's, whatever computes it."""

import grain
import pytest
from grain.experimental import index_shuffle

from bigmodels.data import shuffling


@pytest.mark.parametrize('length', [1, 2, 3, 10, 1437, 30_000, 2**16 - 1, 2**16, 2**16 + 5])
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


@pytest.mark.parametrize('length', [1, 2, 77, 2**16])
def test_an_epoch_is_a_permutation(length):
    order = shuffling.permutation(length, 7)
    assert sorted(order.tolist()) == list(range(length))
    assert order[length // 2] == index_shuffle(length // 2, length - 1, seed=7, rounds=4)
