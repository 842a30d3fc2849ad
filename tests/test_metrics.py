"""Means of pairs over batches."""

import math

import numpy as np

from bigmodels import metrics


def test_means_are_over_all_batches_and_unknown_where_nothing_counted():
    """The sum of all values over the sum of all weights, not a mean of means."""
    pairs = [
        {'loss': (np.float32(6), np.float32(3)), 'of_none': (np.float32(0), np.float32(0))},
        {'loss': (np.float32(1), np.float32(1)), 'of_none': (np.float32(0), np.float32(0))},
    ]
    means = metrics.means_of_all(pairs)
    assert means['loss'] == 7 / 4
    assert math.isnan(means['of_none'])
