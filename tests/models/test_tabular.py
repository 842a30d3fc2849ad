"""Models of tables: their features against the papers' formulas, columns without an order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bigmodels import errors
from bigmodels.models import tabular
from bigmodels.models.ft_transformer import FTTransformer

rng = np.random.default_rng(0)
NUMBERS = rng.normal(size=(5, 3)).astype(np.float32)
CATEGORIES = rng.integers(0, 7, (5, 2)).astype(np.int32)


def test_piecewise_linear_encoding_is_equation_1():
    """Of Gorishniy et al. 2022, written out; bins of equal shares of a normal distribution."""
    edges = [-3, *stats.norm.ppf([0.25, 0.5, 0.75]), 3]
    x = np.float32([[-5, -1, -0.5], [0, 0.7, 9]])
    expected = np.empty((2, 3, 4))
    for index in np.ndindex(expected.shape):
        *place, t = index
        value, low, high = x[tuple(place)], edges[t], edges[t + 1]
        if value < low and t > 0:
            expected[index] = 0
        elif value >= high and t < 3:
            expected[index] = 1
        else:
            expected[index] = (value - low) / (high - low)
    np.testing.assert_allclose(tabular.piecewise_linear(jnp.array(x), 4), expected, atol=1e-5)
    many = np.asarray(tabular.piecewise_linear(jnp.zeros((1, 1)), 1000))
    assert (np.diff(many[0, 0]) <= 0).all()
    assert many.sum() == pytest.approx(500, abs=0.01)


def test_periodic_features_are_sines_and_cosines():
    frequencies = rng.normal(size=(3, 2)).astype(np.float32)
    features = tabular.periodic_features(NUMBERS, frequencies)
    angles = 2 * np.pi * NUMBERS[:, :, None] * frequencies
    np.testing.assert_allclose(features[..., :2], np.sin(angles), atol=1e-5)
    np.testing.assert_allclose(features[..., 2:], np.cos(angles), atol=1e-5)


class Embedding(tabular.TableModel):
    @nn.compact
    def __call__(self, inputs, categories):
        return self.embed(inputs, categories)


@pytest.mark.parametrize('numeric', ['linear', 'periodic', 'piecewise_linear'])
def test_an_embedding_is_a_function_of_its_own_column(numeric):
    model = Embedding(2, num_categories=7, numeric=numeric, num_features=4)
    variables = model.init(jax.random.key(0), NUMBERS, CATEGORIES)

    def embed(numbers, categories):
        return np.asarray(model.apply(variables, numbers, categories))

    before = embed(NUMBERS, CATEGORIES)
    assert before.shape == (5, 5, 16)
    changed = NUMBERS.copy()
    changed[:, 1] += 1
    moved = np.abs(embed(changed, CATEGORIES) - before).max((0, 2)) > 0
    assert moved.tolist() == [False, True, False, False, False]
    # Equal categories have equal embeddings, whatever their column.
    same = embed(NUMBERS, np.full((5, 2), 3, np.int32))
    np.testing.assert_array_equal(same[:, 3], same[:, 4])


def test_only_numbers_or_only_categories():
    for numbers, categories in ((NUMBERS, CATEGORIES[:, :0]), (NUMBERS[:, :0], CATEGORIES)):
        for model in (
            tabular.TabularMLP(1, num_categories=7),
            FTTransformer(1, num_categories=7, num_layers=1, num_heads=2),
        ):
            init = jax.jit(model.init_with_output)
            outputs, _ = init(jax.random.key(0), numbers, categories)
            assert outputs.shape == (5, 1)
            assert outputs.dtype == jnp.float32


@pytest.mark.parametrize('fields', [dict(num_features=0), dict(num_features=3, numeric='periodic')])
def test_features_that_cannot_be_are_said_at_once(fields):
    with pytest.raises(errors.UserError, match='num_features = [03] must be at least 1, and even'):
        FTTransformer(1, num_categories=7, num_layers=1, num_heads=2, **fields)


def test_the_order_of_columns_means_nothing_to_the_ft_transformer():
    model = FTTransformer(3, num_categories=7, num_layers=2, num_heads=2, num_features=4)
    variables = model.init(jax.random.key(0), NUMBERS, CATEGORIES)
    order = np.array([2, 0, 1])
    params = dict(variables['params'])
    for name in ('number_embed', 'number_bias_embed'):
        params[name] = params[name][order]
    np.testing.assert_allclose(
        model.apply({'params': params}, NUMBERS[:, order], CATEGORIES[:, ::-1]),
        model.apply(variables, NUMBERS, CATEGORIES),
        atol=1e-5,
    )
