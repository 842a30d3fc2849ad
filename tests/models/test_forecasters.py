"""Forecasters: the papers' sizes and formulas, and what a forecast may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, trees
from bigmodels.models import forecasters

rng = np.random.default_rng(0)
SERIES = rng.normal(size=(2, 24, 3)).astype(np.float32)
SMALL = forecasters.PatchTST(horizon=6, num_layers=1, mlp_dim=8, patch_size=8, stride=4)
MODELS = {
    'patch_tst': SMALL,
    'dlinear': forecasters.DLinear(horizon=6, window=5),
    'normalised dlinear': forecasters.DLinear(horizon=6, window=5, instance_norm=True),
}


def shaken(variables):
    """Parameters away from their initial values, some of which are alike."""
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), variables)


@pytest.fixture(params=MODELS)
def forecast(request):
    model = MODELS[request.param]
    variables = shaken(model.init(jax.random.key(0), SERIES))
    return jax.jit(lambda inputs: model.apply(variables, inputs))


def test_each_column_is_forecast_from_itself_alone(forecast):
    changed = SERIES.copy()
    changed[:, :, 1] += rng.normal(size=(2, 24))
    before, after = np.asarray(forecast(SERIES)), np.asarray(forecast(changed))
    assert before.shape == (2, 6, 3)
    np.testing.assert_allclose(before[..., [0, 2]], after[..., [0, 2]], atol=1e-5)
    assert np.abs(before[..., 1] - after[..., 1]).max() > 0.01


@pytest.mark.parametrize('model', [SMALL, MODELS['normalised dlinear']])
def test_instance_normalisation_is_undone_by_the_forecast(model):
    variables = shaken(model.init(jax.random.key(0), SERIES))
    np.testing.assert_allclose(
        model.apply(variables, 5 * SERIES + 3), 5 * model.apply(variables, SERIES) + 3, atol=1e-3
    )


def test_the_papers_number_of_patches():
    """PatchTST/42 and /64 have their names from 336 and 512 rows, patches of 16, stride 8."""
    for rows, count in ((336, 42), (512, 64)):
        patches = forecasters.patches(jnp.arange(2.0 * rows).reshape(2, rows), 16, 8)
        assert patches.shape == (2, count, 16)
        np.testing.assert_array_equal(patches[0, 3], np.arange(24, 40))
        np.testing.assert_array_equal(patches[1, -1, 8:], np.full(8, 2 * rows - 1))


def test_a_patch_longer_than_the_rows_is_refused():
    with pytest.raises(errors.UserError, match='patch_size = 40 is longer than .* = 24'):
        SMALL.clone(patch_size=40).init(jax.random.key(0), SERIES)
    with pytest.raises(errors.UserError, match='patch_size = 26 is longer than .* = 24'):
        SMALL.clone(patch_size=26).init(jax.random.key(0), SERIES)


@pytest.mark.parametrize(
    ('model', 'fields', 'message'),
    [
        (forecasters.PatchTST, dict(stride=0), 'stride = 0 must be at least 1'),
        (forecasters.PatchTST, dict(patch_size=0), 'patch_size = 0 must be at least 1'),
        (forecasters.DLinear, dict(window=4), 'window = 4 must be odd'),
        (forecasters.DLinear, dict(window=-1), 'window = -1 must be odd'),
    ],
)
def test_sizes_that_cannot_be_are_said_at_once(model, fields, message):
    with pytest.raises(errors.UserError, match=message):
        model(horizon=8, **fields)


def test_the_trend_is_a_moving_average_of_the_series_with_its_ends_repeated():
    trend = forecasters.moving_average(SERIES, 5)
    for b in range(2):
        for c in range(3):
            padded = np.pad(SERIES[b, :, c], 2, mode='edge')
            expected = np.convolve(padded, np.ones(5) / 5, mode='valid')
            np.testing.assert_allclose(trend[b, :, c], expected, atol=1e-5)


def test_dlinear_has_two_matrices_and_starts_at_the_mean():
    model = forecasters.DLinear(horizon=96)
    inputs = rng.normal(size=(2, 336, 7)).astype(np.float32)
    outputs, variables = model.init_with_output(jax.random.key(0), inputs)
    assert trees.count(variables['params']) == 2 * (336 * 96 + 96)
    mean = np.broadcast_to(inputs.mean(1, keepdims=True), outputs.shape)
    np.testing.assert_allclose(outputs, mean, atol=1e-5)
