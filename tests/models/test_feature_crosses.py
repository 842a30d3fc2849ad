"""DLRM and DCN-v2 against their definitions in NumPy."""

import itertools

import jax
import numpy as np

from bigmodels.models.feature_crosses import DCN, DLRM

rng = np.random.default_rng(0)
INPUTS = rng.normal(size=(5, 3)).astype(np.float32)
CATEGORIES = np.stack([rng.integers(0, 4, 5), rng.integers(0, 7, 5)], 1)
SIZES = (4, 7)


def parameters(model):
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0), INPUTS, CATEGORIES)['params'])
    # Biases are zero at first: they would not be tested.
    return jax.tree.map(lambda x: x if x.any() else rng.normal(size=x.shape), params)


def linear(params, x):
    return x @ params['kernel'] + params['bias']


def perceptron(params, x):
    for i in range(len(params)):
        x = np.maximum(linear(params[f'Linear_{i}'], x), 0)
    return x


def embedded(params):
    return [params[f'embed_{i}']['embedding'][CATEGORIES[:, i]] for i in range(2)]


def test_dlrm():
    model = DLRM(SIZES, embed_dim=6, bottom_dims=(8,), top_dims=(10, 4))
    params = parameters(model)
    dense = perceptron(params['bottom'], INPUTS)
    vectors = [dense, *embedded(params)]
    pairs = [(a * b).sum(1) for a, b in itertools.combinations(vectors, 2)]
    x = perceptron(params['top'], np.concatenate([dense, np.stack(pairs, 1)], axis=1))
    logits = model.apply({'params': params}, INPUTS, CATEGORIES)
    np.testing.assert_allclose(logits, linear(params['head'], x)[:, 0], rtol=1e-4, atol=1e-5)


def test_dcn():
    model = DCN(SIZES, embed_dim=6, num_cross_layers=3, deep_dims=(8, 4))
    params = parameters(model)
    first = np.concatenate([*embedded(params), INPUTS], axis=1)
    x = first
    for i in range(3):
        x = first * linear(params[f'cross_{i}'], x) + x
    x = np.concatenate([x, perceptron(params['deep'], first)], axis=1)
    logits = model.apply({'params': params}, INPUTS, CATEGORIES)
    np.testing.assert_allclose(logits, linear(params['head'], x)[:, 0], rtol=1e-4, atol=1e-5)
