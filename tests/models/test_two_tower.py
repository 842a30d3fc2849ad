"""The towers against their definition in NumPy."""

import jax
import numpy as np
import pytest

from bigmodels.models.two_tower import TwoTower

USERS = np.array([1, 0, 3])
HISTORY = np.array([[4, 2, 4, 0], [0, 0, 0, 0], [5, 0, 0, 0]])
ITEMS = np.array([1, 2, 5, 0])


@pytest.fixture(scope='module')
def tower():
    model = TwoTower(num_items=6, num_users=4, embed_dim=8, hidden_dims=(16,), temperature=0.1)
    params = model.init(jax.random.key(0), USERS, HISTORY, ITEMS)['params']
    return model, jax.tree.map(np.asarray, params)


def vectors(params, name: str, x: np.ndarray) -> np.ndarray:
    """A tower in NumPy, to vectors of length 1."""
    hidden, last = (params[f'{name}_layers_{i}'] for i in range(2))
    x = np.maximum(x @ hidden['kernel'] + hidden['bias'], 0) @ last['kernel'] + last['bias']
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_scores_are_cosines_over_the_temperature(tower):
    model, params = tower
    queries, items = model.apply({'params': params}, USERS, HISTORY, ITEMS)
    table = params['item_embed']['embedding']
    means = [table[[4, 2, 4]].mean(0), np.zeros(8), table[5]]
    features = [params['user_embed']['embedding'][USERS], means, table[HISTORY[:, 0]]]
    expected = vectors(params, 'query', np.concatenate(features, axis=1))
    expected = expected @ vectors(params, 'item', table[ITEMS]).T / 0.1
    np.testing.assert_allclose(queries @ items.T, expected, rtol=1e-3, atol=1e-3)


def test_what_stands_behind_the_end_of_a_history_does_not_count(tower):
    model, params = tower
    longer = np.pad(HISTORY, ((0, 0), (0, 3)))
    queries = [
        model.apply({'params': params}, USERS, history, method=model.queries)
        for history in (HISTORY, longer)
    ]
    np.testing.assert_allclose(*queries, rtol=1e-5)
