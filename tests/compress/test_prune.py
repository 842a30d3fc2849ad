"""Gradual pruning: the share by step against the published cubic; exact zeros; exact resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodels import errors, experiment, train, trees
from bigmodels.compress import prune
from tests import commands, test_sharding

TARGET = 'layers_0/mlp/up/kernel'


@pytest.mark.parametrize('score', ['magnitude', 'movement'])
def test_the_share_grows_as_published_and_what_is_zero_stays_so(score):
    """By an independent loop in float64, with plain gradient descent for the optimiser."""
    settings = prune.Settings(0.75, score=score, begin=2, end=10, every=4, targets='up')
    rng = np.random.default_rng(0)
    params = {'up': {'kernel': jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)},
              'down': {'kernel': jnp.ones((8, 4))}}  # fmt: skip
    tx = prune.gradually(optax.sgd(0.5), settings, params)
    state, update = tx.init(params), jax.jit(tx.update)
    weights, moved = np.float64(params['up']['kernel']), np.zeros((16, 8))
    mask = np.ones((16, 8), bool)
    for step in range(1, 14):
        gradient = rng.normal(size=(16, 8)).astype(np.float32)
        grads = {'up': {'kernel': jnp.asarray(gradient)}, 'down': {'kernel': jnp.ones((8, 4))}}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        moved -= weights * gradient
        weights = weights - 0.5 * gradient
        if step in (2, 6, 10):
            share = 0.75 * (1 - (1 - (step - 2) / 8) ** 3)
            value = np.where(mask, np.abs(weights) if score == 'magnitude' else moved, -np.inf)
            mask = value >= np.sort(value, axis=None)[round(share * 128)]
        weights = weights * mask
        np.testing.assert_array_equal(params['up']['kernel'] != 0, mask)
        np.testing.assert_allclose(params['up']['kernel'], weights, rtol=1e-5, atol=1e-5)
    assert mask.mean() == 0.25
    np.testing.assert_allclose(params['down']['kernel'], 1 - 0.5 * 13)


def test_a_weight_that_decays_does_not_move():
    kernel = {'kernel': jnp.array([[1.0], [2], [3], [4]])}
    settings = prune.Settings(0.5, score='movement', begin=2, end=2, every=1)
    tx = prune.gradually(optax.adamw(1e-3, weight_decay=0.1), settings, kernel)
    params, state = kernel, tx.init(kernel)
    for gradient in ([[-1.0], [-1], [1], [1]], [[0.0], [0], [0], [0]]):
        updates, state = tx.update({'kernel': jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    assert (params['kernel'] != 0).ravel().tolist() == [True, True, False, False]


@pytest.mark.parametrize('score', ['magnitude', 'movement'])
def test_what_began_as_zero_stays_so(score):
    rng = np.random.default_rng(0)
    kernel = {'kernel': jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)}
    settings = prune.Settings(0.75, score=score)
    before = prune.pruned(settings, kernel)
    tx = prune.gradually(optax.adam(0.1), settings, before)
    state, params = tx.init(before), before
    for _ in range(3):
        gradients = {'kernel': jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params['kernel'] != 0, before['kernel'] != 0)


def test_a_resumed_run_has_the_masks_of_one_that_was_not_stopped(tmp_path):
    config = commands.tiny_text_config(tmp_path, [
        'prune.sparsity=0.8', 'prune.begin=2', 'prune.end=6', 'prune.every=2', 'ema_decay=0.9',
        'total_steps=8', 'checkpoint.every=4',
    ])  # fmt: skip
    train.train(config, tmp_path / 'whole')
    with config.unlocked():
        config.checkpoint.keep_last = 1
    train.train(config, tmp_path / 'again')
    last = tmp_path / 'again' / 'checkpoints' / '8'
    (tmp_path / 'whole' / 'checkpoints' / '4').rename(last.with_name('4'))
    last.rename(tmp_path / 'aside')
    (tmp_path / 'again' / 'summary.json').unlink()
    train.train(config, tmp_path / 'again')
    one, other = (commands.arrays(tmp_path / run, 8) for run in ('whole', 'again'))
    assert trees.first_difference(one, other) is None
    for part in ('params', 'ema_params'):
        kernel = trees.flatten_named(one[part])[TARGET]
        assert (kernel == 0).mean() == pytest.approx(0.8, abs=1e-3)
        assert (trees.flatten_named(one[part])['embed/embedding'] != 0).all()
    masks = [leaf for leaf in jax.tree.leaves(one['opt_state']) if leaf.dtype == bool]
    assert sum(mask.sum() for mask in masks) == pytest.approx(
        0.2 * sum(m.size for m in masks), 0.01
    )


@pytest.mark.slow
def test_pruning_is_the_same_on_a_mesh():
    task, batches = test_sharding.language_model(scan_layers=True)
    settings = prune.Settings(0.6, scope='global', begin=1, end=3, every=1)
    _, one, _ = test_sharding.train(task, batches, num_devices=1, prune=settings)
    _, split, _ = test_sharding.train(task, batches, fsdp=2, tensor=2, data=2, prune=settings)
    test_sharding.assert_close(split.params, one.params)
    masks = [
        leaf
        for name, leaf in trees.flatten_named(split.opt_state).items()
        if 'masks/layers/mlp/up/kernel' in name
    ]
    assert test_sharding.shard_fraction(masks[0]) <= 1 / 4


def test_mistakes():
    for message, fields in {
        'sparsity = 1.0 must be from 0 to under 1': dict(sparsity=1.0),
        'has a sparsity of 0.5, not 0.7': dict(sparsity=0.7, pattern='2:4'),
        'has a sparsity of 0.5, not 0.0': dict(pattern='2:4'),
        'begin = 5 must not be': dict(sparsity=0.5, begin=5, end=4),
    }.items():
        with pytest.raises(errors.UserError, match=message):
            prune.Settings(**fields)
    kernel = {'head': {'kernel': jax.ShapeDtypeStruct((6, 8), 'float32')}}
    with pytest.raises(errors.UserError, match="targets = 'haed'.*Allowed: head/kernel"):
        prune.gradually(optax.sgd(0.5), prune.Settings(0.5, targets='haed'), kernel)
    with pytest.raises(errors.UserError, match='6 inputs, which are no fours'):
        prune.gradually(optax.sgd(0.5), prune.Settings(0.5, pattern='2:4'), kernel)
    with pytest.raises(errors.UserError, match='end = 9 is after the last step'):
        experiment.from_config(
            dict(model={}, task={}, optimizer={}, total_steps=8, batch_size=1,
                 data=dict(train={}, evals={}), prune=dict(sparsity=0.5, end=9))
        )  # fmt: skip
