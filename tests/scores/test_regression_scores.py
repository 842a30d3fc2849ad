"""R2 against scikit-learn's, from means over parts of a set."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from bigmodels import metrics
from bigmodels.scores import regression as scores
from bigmodels.tasks import regression

rng = np.random.default_rng(0)
TARGETS = rng.normal(size=(40, 3, 2)).astype(np.float32)
PREDICTIONS = (0.8 * TARGETS + 0.3 * rng.normal(size=TARGETS.shape)).astype(np.float32)


def test_means_over_batches_with_padding_are_scikit_learns():
    parts = []
    for start in (0, 16, 32):
        real = min(16, len(TARGETS) - start)
        rows = np.resize(np.arange(start, start + real), 16)  # padded with the first ones
        weights = jnp.float32(np.arange(16) < real)
        parts.append(
            regression.pairs('squared', PREDICTIONS[rows], TARGETS[rows], weights, train=False)
        )
    values = regression.with_r2(metrics.means_of_all(parts))
    flat = TARGETS.ravel(), PREDICTIONS.ravel()
    assert values.keys() == {'loss', 'mse', 'mae', 'r2'}
    assert values['mse'] == pytest.approx(sklearn_metrics.mean_squared_error(*flat), rel=1e-5)
    assert values['mae'] == pytest.approx(sklearn_metrics.mean_absolute_error(*flat), rel=1e-5)
    assert values['r2'] == pytest.approx(sklearn_metrics.r2_score(*flat), rel=1e-4)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('squared', lambda e: e**2),
        ('absolute', abs),
        ('huber', lambda e: np.where(abs(e) < 1, e**2 / 2, abs(e) - 0.5)),  # Huber 1964, delta 1
    ],
)
def test_losses_are_their_definitions(name, expected):
    weights = jnp.ones(len(TARGETS))
    pairs = regression.pairs(name, 3 * PREDICTIONS, TARGETS, weights, train=True)
    assert pairs.keys() == {'loss', 'mse', 'mae'}
    loss = expected(3 * PREDICTIONS - TARGETS).mean()
    assert float(metrics.mean(pairs['loss'])) == pytest.approx(loss, rel=1e-5)


def test_equal_targets_have_no_r2():
    assert math.isnan(scores.r2(0.5, 2.0, 4.0))
    for centre, spread in ((0.1, 0), (100, 0.1)):  # what float32 sums do not tell apart
        targets = (centre + spread * TARGETS).astype(np.float32)
        pairs = regression.pairs('squared', targets + 0.01, targets, jnp.ones(40), train=False)
        assert math.isnan(regression.with_r2(metrics.means_of_all([pairs]))['r2'])
