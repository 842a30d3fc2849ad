"""Learning rates by depth: the published factors, in the optimiser, scanned and unrolled alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, optimizers, trees
from bigmodels.layer_decay import layer_factors

WEIGHT = np.ones((2, 2), np.float32)
PARAMS = {
    'encoder': {
        'embed': {'embedding': WEIGHT},
        'position_embed': WEIGHT,
        'embed_norm': {'scale': WEIGHT},
        'frequencies': WEIGHT,
        'layers_0': {'mlp': {'kernel': WEIGHT}},
        'layers_1': {'mlp': {'kernel': WEIGHT}},
        'layers_2': {'mlp': {'kernel': WEIGHT}},
        'final_norm': {'scale': WEIGHT},
    },
    'unembed': WEIGHT,
    'head': {'kernel': WEIGHT},
}
EXPECTED = {
    'encoder/embed/embedding': 0.5**4,
    'encoder/position_embed': 0.5**4,
    'encoder/embed_norm/scale': 0.5**4,
    'encoder/frequencies': 0.5**4,
    'encoder/layers_0/mlp/kernel': 0.5**3,
    'encoder/layers_1/mlp/kernel': 0.5**2,
    'encoder/layers_2/mlp/kernel': 0.5,
    'encoder/final_norm/scale': 1.0,
    'unembed': 1.0,
    'head/kernel': 1.0,
}


def test_factors_by_depth():
    assert trees.flatten_named(layer_factors(PARAMS, 0.5)) == EXPECTED


def test_directions_of_a_recurrent_layer_are_of_one_depth():
    params = {f'layers_{i}_{way}': WEIGHT for i in range(2) for way in ('forward', 'backward')}
    factors = layer_factors(params, 0.5)
    assert [factors[name] for name in params] == [0.25, 0.25, 0.5, 0.5]


def test_networks_of_other_depths_count_for_themselves():
    params = {'a': {'layers_0': WEIGHT, 'layers_1': WEIGHT}, 'b': {'layers_0': WEIGHT}}
    assert layer_factors(params, 0.5) == {'a': {'layers_0': 0.25, 'layers_1': 0.5},
                                          'b': {'layers_0': 0.5}}  # fmt: skip


def updates(params, grads, **settings):
    tx, _ = optimizers.make_optimizer(
        params,
        10,
        learning_rate=0.1,
        algorithm={'name': 'sgd', 'momentum': 0.0},
        schedule={'name': 'constant'},
        **settings,
    )
    return tx.update(grads, tx.init(params), params)[0]


def test_updates_are_scaled_beside_other_rules_and_frozen_parameters():
    given = updates(
        PARAMS,
        PARAMS,
        layer_decay=0.5,
        learning_rate_rules=[('layers_1', 3.0), ('.*', 1.0)],
        freeze=['^encoder/embed', 'head'],
    )
    for name, update in trees.flatten_named(given).items():
        factor = EXPECTED[name] * (3 if 'layers_1' in name else 1)
        if name.startswith('encoder/embed') or 'head' in name:
            factor = 0
        np.testing.assert_allclose(update, -0.1 * factor * WEIGHT, rtol=1e-6)


def test_scanned_layers_are_scaled_as_unrolled_ones():
    kernels = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    one = updates(layers := {f'layers_{i}': kernels[i] for i in range(3)}, layers, layer_decay=0.7)
    other = updates({'layers': kernels}, {'layers': jnp.asarray(kernels)}, layer_decay=0.7)
    stacked = np.stack(jax.tree.leaves(one))
    np.testing.assert_allclose(stacked, other['layers'], rtol=1e-6)


def test_mistakes():
    with pytest.raises(errors.UserError, match='no parameter is of a layer .*head/kernel'):
        layer_factors({'head': {'kernel': WEIGHT}}, 0.5)
    with pytest.raises(errors.UserError, match=r'layer_decay = 0\.0 must be over 0'):
        updates(PARAMS, PARAMS, layer_decay=0.0)
