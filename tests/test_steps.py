"""One update: accumulation, averages, randomness, purity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodels import metrics, steps, trees
from bigmodels.state import TrainState, init_state

rng = np.random.default_rng(0)
PARAMS = {'w': jnp.float32(rng.normal(size=(4, 3))), 'b': jnp.zeros(3)}
BATCH = {
    'inputs': jnp.float32(rng.normal(size=(12, 4))),
    'targets': jnp.float32(rng.normal(size=(12, 3))),
    'weights': jnp.ones(12),
}


def loss_fn(params, model_state, batch, rng, train, dropout=0.0):
    x = batch['inputs']
    if train and dropout:
        x = x * jax.random.bernoulli(rng, 1 - dropout, x.shape)
    error = jnp.square(jnp.tanh(x @ params['w'] + params['b']) - batch['targets']).sum(-1)
    pair = metrics.pair(error, batch['weights'])
    seen = {'seen': model_state['seen'] + batch['weights'].sum()} if model_state else model_state
    return metrics.mean(pair), ({'loss': pair}, seen)


def make(dropout=0.0, ema=0.0, tx=None, **settings):
    tx = tx or optax.sgd(0.1)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=PARAMS,
        model_state={'seen': jnp.zeros(())},
        opt_state=tx.init(PARAMS),
        ema_params=PARAMS if ema else None,
    )
    step = functools.partial(
        steps.train_step,
        loss_fn=functools.partial(loss_fn, dropout=dropout),
        tx=tx,
        seed=7,
        schedule=optax.constant_schedule(0.1),
        ema_decay=ema,
        **settings,
    )
    return state, jax.jit(step)


@pytest.mark.parametrize('parts', [3, 12])
@pytest.mark.parametrize('weights', ['even', 'uneven', 'an empty part', 'none'])
def test_accumulated_is_the_full_batch(parts, weights):
    batch = dict(BATCH)
    if weights == 'uneven':
        batch['weights'] = jnp.float32(rng.random(12))
    if weights == 'an empty part':  # part i holds the rows i, i + parts, ...
        batch['weights'] = jnp.ones(12).at[1::parts].set(0)
    if weights == 'none':
        batch['weights'] = jnp.zeros(12)
    gradients = jax.jit(steps.accumulated_gradients, static_argnums=(4, 5))
    model_state = {'seen': jnp.zeros(())}
    arguments = PARAMS, model_state, batch, jax.random.key(0), loss_fn
    whole, parted = gradients(*arguments, 1), gradients(*arguments, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parted)
    exact = jax.grad(lambda p: loss_fn(p, {}, batch, None, True)[0])(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parted[0], exact)


def test_parts_have_dropout_of_their_own():
    """Of equal rows, each taken alone, the gradient is the mean over independent masks."""
    row = jax.tree.map(lambda x: x[:1], BATCH)
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), BATCH)
    dropped = functools.partial(loss_fn, dropout=0.5)
    gradients = jax.jit(steps.accumulated_gradients, static_argnums=(4, 5))
    key = jax.random.key(0)
    parted = gradients(PARAMS, {}, batch, key, dropped, 12)[0]['w']
    alone = [
        gradients(PARAMS, {}, row, jax.random.fold_in(key, i), dropped, 1)[0]['w']
        for i in range(12)
    ]
    assert abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(parted, sum(alone) / 12, atol=1e-5)


def test_average_follows_its_recurrence():
    state, step = make(ema=0.3)
    average = np.float64(PARAMS['w'])
    for t in range(6):
        state, _ = step(state, BATCH)
        decay = min(0.3, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * np.float64(state.params['w'])
        np.testing.assert_allclose(state.ema_params['w'], average, atol=1e-6)
    assert state.eval_params is state.ema_params
    state, _ = make()
    assert state.eval_params is state.params


def test_metrics_and_counters():
    state, step = make()
    new, figures = step(state, BATCH)
    grads = jax.grad(lambda p: loss_fn(p, {}, BATCH, None, True)[0])(PARAMS)
    norm = lambda tree: np.sqrt(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(tree)))
    np.testing.assert_allclose(figures['grad_norm'], norm(grads), rtol=1e-5)
    np.testing.assert_allclose(figures['param_norm'], norm(new.params), rtol=1e-5)
    np.testing.assert_allclose(figures['learning_rate'], 0.1)
    np.testing.assert_allclose(
        metrics.mean(figures['loss']), loss_fn(PARAMS, {}, BATCH, None, True)[0], rtol=1e-6
    )
    assert (new.step, new.model_state['seen']) == (1, 12)
    assert new.step.dtype == jnp.int32
    np.testing.assert_allclose(new.params['w'], PARAMS['w'] - 0.1 * grads['w'], atol=1e-6)


def test_dropout_is_a_function_of_seed_and_step():
    state, step = make(dropout=0.5)
    _, first = step(state, BATCH)
    _, again = step(state, BATCH)
    assert first['loss'][0] == again['loss'][0]
    _, later = step(state.replace(step=jnp.int32(1)), BATCH)
    assert first['loss'][0] != later['loss'][0]
    keys = {(s, t): jax.random.key_data(steps.step_rng(s, t)).tobytes()
            for s in range(3) for t in range(3)}  # fmt: skip
    assert len(set(keys.values())) == 9
    assert keys[1, 2] == jax.random.key_data(jax.jit(steps.step_rng)(1, jnp.int32(2))).tobytes()


def test_the_step_is_pure():
    state, step = make(dropout=0.5, ema=0.9, accumulate=3, tx=optax.adam(0.1))
    before = jax.tree.map(np.array, state)
    one, other = step(state, BATCH)[0], step(state, BATCH)[0]
    for name in ('params', 'opt_state', 'ema_params', 'model_state'):
        assert trees.first_difference(getattr(one, name), getattr(other, name)) is None
        assert trees.first_difference(getattr(state, name), getattr(before, name)) is None
    shapes = jax.eval_shape(step, state, BATCH)[0]
    assert jax.tree.structure(shapes) == jax.tree.structure(state)


def test_evaluation_is_without_dropout():
    evaluate = functools.partial(loss_fn, dropout=0.5)
    pairs, outcomes = steps.eval_step(PARAMS, {}, BATCH, loss_fn=evaluate)
    assert outcomes == {}
    np.testing.assert_allclose(
        metrics.mean(pairs['loss']), loss_fn(PARAMS, {}, BATCH, None, False)[0], rtol=1e-6
    )


def test_the_initial_state():
    tx = optax.adam(0.1)

    def make_state(rng):
        variables = {'params': {'w': jax.random.normal(rng, 3)}, 'stats': {'n': 0.0}}
        return init_state(variables, tx=tx, use_ema=True)

    state = make_state(jax.random.key(0))
    assert state.step == 0
    assert state.model_state == {'stats': {'n': 0.0}}
    assert (state.ema_params['w'] == state.params['w']).all()
    assert state.ema_params['w'] is not state.params['w']  # both are donated
    shapes = jax.eval_shape(make_state, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
