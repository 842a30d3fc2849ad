"""A bad step changes nothing, is told with what it saw, and is remembered over a resume."""

import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodels import checkpoint, errors, metrics, rundir, sharding, steps, trees, writers
from bigmodels import config as config_lib
from bigmodels import guard as guard_lib
from bigmodels import state as state_lib
from bigmodels import train as train_lib
from tests import commands

rng = np.random.default_rng(0)
BATCH = {
    'inputs': np.float32(rng.normal(size=(16, 4))),
    'targets': np.float32(rng.normal(size=(16, 8))),
    'weights': np.ones(16, np.float32),
}
SKIP = guard_lib.Guard(policy='skip')


class Normed(nn.Module):
    """A classifier whose normalisation keeps averages in the model state."""

    num_classes: int

    @nn.compact
    def __call__(self, inputs, *, train: bool = False):
        x = nn.Dense(8)(inputs.reshape(len(inputs), -1))
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not train)(x))


def loss_fn(params, model_state, batch, rng, train):
    error = jnp.square(batch['inputs'] @ params['w'] - batch['targets']).sum(-1)
    # The square root's derivative at 0 is not finite, though the loss is.
    error = error + jnp.sqrt(jnp.abs(params['only_gradient'] * batch['inputs'][:, 0])).sum(-1)
    pair = metrics.pair(error, batch['weights'])
    mean = 0.9 * model_state['mean'] + 0.1 * batch['inputs'].mean(0)
    return metrics.mean(pair), ({'loss': pair}, {'mean': mean})


def make_step(parallel, mesh_shape, accumulate=1, guard=SKIP):
    """A placed state and the compiled step."""
    mesh = sharding.make_mesh(mesh_shape)
    tx = optax.adamw(0.1)

    def init():
        params = {'w': jnp.ones((4, 8)) / 3, 'only_gradient': jnp.ones(1)}
        return state_lib.init_state(
            {'params': params, 'mean': jnp.ones(4)},
            tx=tx,
            use_ema=True,
            guard=guard_lib.init_memory(guard),
        )

    shapes = jax.eval_shape(init)
    placed, _ = sharding.state_shardings(shapes, (), mesh)
    step = sharding.compile_step(
        functools.partial(
            steps.train_step,
            loss_fn=loss_fn,
            tx=tx,
            seed=0,
            schedule=optax.constant_schedule(0.1),
            accumulate=accumulate,
            ema_decay=0.9,
            guard=guard,
        ),
        mesh,
        sharding.with_shardings(shapes, placed),
        sharding.with_shardings(
            {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in BATCH.items()},
            dict.fromkeys(BATCH, sharding.batch_sharding(mesh)),
        ),
        parallel,
    )
    state = jax.jit(init, out_shardings=placed)()
    return state, lambda state, batch: step(state, sharding.put_batch(batch, mesh))


def bad_batch(kind):
    inputs = BATCH['inputs'].copy()
    inputs[5, 0] = {'nan': np.nan, 'huge': 1e30, 'gradient': 0}[kind]
    return BATCH | {'inputs': inputs}


def on_host(state):
    """Everything but the number of the step and the guard's memory, as numpy copies."""
    return jax.tree.map(np.array, state.replace(step=0, guard=None))


@pytest.mark.parametrize('kind', ['nan', 'huge', 'gradient'])
@pytest.mark.parametrize(
    ('parallel', 'mesh', 'accumulate', 'guard'),
    [
        ('jit', sharding.MeshShape(data=8), 1, guard_lib.STOP),
        ('jit', sharding.MeshShape(data=2, fsdp=4), 2, SKIP),
        ('pmap', sharding.MeshShape(data=8), 2, SKIP),
    ],
    ids=['data', 'fsdp', 'pmap'],
)
def test_a_bad_step_changes_nothing_bitwise(parallel, mesh, accumulate, guard, kind):
    state, step = make_step(parallel, mesh, accumulate, guard)
    state, figures = step(state, BATCH)
    assert figures['skipped'] == 0
    before = on_host(state)
    state, figures = step(state, bad_batch(kind))
    assert figures['skipped'] == 1
    assert np.isfinite(figures['loss'][0]) == (kind == 'gradient')
    assert not np.isfinite(figures['grad_norm'])
    assert trees.first_difference(vars(on_host(state)), vars(before)) is None
    assert state.step == 2
    assert (state.guard is None) == (guard.policy == 'stop')
    if state.guard is not None:
        assert (state.guard.skips_in_a_row, state.guard.skips, state.guard.accepted) == (1, 1, 1)
    finite = {'only_gradient': kind == 'huge', 'w': kind == 'gradient'}
    assert np.isfinite(figures['grad_squares']).tolist() == list(finite.values())
    state, figures = step(state, BATCH)
    after = on_host(state)
    for name in ('params', 'opt_state', 'model_state', 'ema_params'):
        assert trees.first_difference(getattr(after, name), getattr(before, name))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(getattr(after, name)))
    if state.guard is not None:
        assert (state.guard.skips_in_a_row, state.guard.skips, state.guard.accepted) == (0, 1, 2)


def test_the_squares_of_the_gradient_are_those_of_each_parameter():
    state, step = make_step('jit', sharding.MeshShape(data=8))
    params, model_state = jax.device_get((state.params, state.model_state))
    _, figures = step(state, BATCH)
    of_params = lambda params: loss_fn(params, model_state, BATCH, None, train=True)[0]
    grads = jax.tree.leaves(jax.grad(of_params)(params))
    squares = [np.square(leaf, dtype=np.float64).sum() for leaf in grads]
    np.testing.assert_allclose(figures['grad_squares'], squares, rtol=1e-5)
    np.testing.assert_allclose(figures['grad_norm'], np.sqrt(sum(squares)), rtol=1e-5)


@pytest.mark.parametrize('sigma', [2.0, 4.0])
def test_spikes_are_those_of_a_plain_computation(sigma):
    chance = np.random.default_rng(1)
    losses = np.float32(5 + chance.normal(size=300) * 0.3 - np.arange(300) / 100)
    losses[[3, 50, 51, 170]] += 20
    losses[[60, 90]] = np.nan, np.inf
    settings = guard_lib.Guard(policy='skip', spike_sigma=sigma, spike_window=16)
    judge = jax.jit(functools.partial(guard_lib.judge, settings))
    memory, accepted, in_a_row, spikes = guard_lib.init_memory(settings), [], 0, 0
    for loss in losses:
        window = np.float64(accepted[-16:])
        limit = window.mean() + sigma * window.std() if len(window) == 16 else np.inf
        good = bool(np.isfinite(loss) and loss <= limit)
        spikes += bool(np.isfinite(loss) and not good)
        in_a_row = 0 if good else in_a_row + 1
        accepted += [loss] if good else []
        decided, memory, figures = judge(memory, loss, np.float32(1))
        assert bool(decided) == good
        assert figures['skips_in_a_row'] == in_a_row
        assert figures['skipped'] == (not good)
    assert figures['skips'] == 300 - len(accepted)
    assert spikes == 3 if sigma == 4 else spikes > 8
    assert (memory.losses < 20).all()  # the early peak, before the window was full, has left it


def test_a_spike_is_told_as_one():
    watch = guard_lib.Watch(
        guard_lib.Guard(policy='skip', spike_sigma=4.0), ['w'], 'step {}'.format
    )
    values = {'loss': 9.0, 'grad_norm': 1.0, 'param_norm': 1.0, 'skipped': 0.0}
    assert watch.check(3, values, np.ones(1)) is None
    values |= {'skipped': 1.0, 'skips_in_a_row': 2.0, 'skips': 5.0}
    said = watch.check(3, values, np.ones(1))
    assert said.endswith('of the parameters 1: a spike, skipped, 2 in a row, 5 in all. step 3')
    with pytest.raises(errors.UserError, match='a spike, stopped'):
        guard_lib.Watch().check(3, values, np.ones(0))
    # An update that overflowed has been made: it cannot be skipped.
    with pytest.raises(errors.UserError, match='the parameters inf: stopped'):
        watch.check(3, values | {'skipped': 0.0, 'param_norm': np.inf}, np.ones(1))


def digits_with(tmp_path, bad_rows, **values):
    """Digits from an .npz whose `bad_rows` are so large that no loss is finite."""
    images = np.float32(np.random.default_rng(0).integers(0, 256, size=(96, 8, 8)))
    images[bad_rows] = 3e38
    np.savez(tmp_path / 'digits.npz', image=images, label=np.arange(96) % 10)
    config = config_lib.load(
        str(commands.ROOT / 'configs/digits_mlp.py:tiny'), ['model.name=tests.test_guard.Normed']
    )
    with config.unlocked():
        config.model.num_classes = 10
        config.data.train = dict(name='npz', path=str(tmp_path / 'digits.npz'))
    values = {'batch_size': 8, 'checkpoint.every': 1, 'checkpoint.keep_last': 99} | values
    config.update_from_flattened_dict(values)
    return config


def test_a_stop_tells_what_the_step_saw_and_may_be_resumed_by_skipping(tmp_path):
    run = tmp_path / 'a run'
    with pytest.raises(errors.UserError) as raised:
        train_lib.train(digits_with(tmp_path, [33]), run)
    [step] = checkpoint.steps(run / rundir.CHECKPOINTS)[-1:]
    said = str(raised.value)
    assert f'At step {step + 1} (batch {step}) the loss is nan' in said
    assert 'npz[33]' in said
    assert said.count('npz[') == 8
    assert 'not finite, 6 of 6: BatchNorm_0/bias, BatchNorm_0/scale, Dense_0/bias' in said
    assert f"--workdir='{run}' --steps={step + 1}:{step + 2}" in said
    assert '--config.guard.policy=skip --resume=changed' in said
    config = digits_with(tmp_path, [33], **{'guard.policy': 'skip'})
    train_lib.train(config, run, resume='changed')
    rows = writers.read_metrics(run / 'metrics.jsonl')
    assert json.loads((run / 'summary.json').read_text())['step'] == 20
    skipped = [row['step'] for row in rows if row.get('skipped')]
    assert skipped[0] == step + 1
    assert len(skipped) == 1 + any(row > 12 for row in skipped)  # once in an epoch of 12 steps


@pytest.mark.parametrize('since', [{}, {'guard.spike_sigma': 3.0, 'guard.spike_window': 2}])
def test_a_hard_end_before_a_save_by_another_guard_loses_nothing(tmp_path, monkeypatch, since):
    values = {'total_steps': 6, 'guard.policy': 'skip', 'guard.spike_window': 9} | since
    run, whole = tmp_path / 'run', tmp_path / 'whole'
    before = {'guard.spike_sigma': 9.0} if since else {}
    train_lib.train(digits_with(tmp_path, [], total_steps=4, **before), run)
    shutil.copytree(run, whole)
    train_lib.train(digits_with(tmp_path, [], **values), whole, resume='changed')
    with monkeypatch.context() as patch:
        patch.setattr(train_lib, '_loop', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_lib.train(digits_with(tmp_path, [], **values), run, resume='changed')
    for _ in range(2):  # then from a step that the guard has seen, and from the one before it
        train_lib.train(digits_with(tmp_path, [], **values), run)
        assert trees.first_difference(commands.arrays(run, 6), commands.arrays(whole, 6)) is None
        (run / 'summary.json').unlink()
        shutil.rmtree(run / rundir.CHECKPOINTS / '6')


def test_skips_are_warned_of_and_end_at_their_number(tmp_path, capsys):
    config = digits_with(tmp_path, range(96), **{'guard.policy': 'skip', 'guard.max_skips': 3})
    with pytest.raises(errors.UserError, match=r'At step 4 .*stopped.*guard\.max_skips = 3'):
        train_lib.train(config, tmp_path / 'run')
    said = capsys.readouterr().err
    assert 'WARNING: At step 3 (batch 2) the loss is nan' in said
    assert 'skipped, 3 in a row, 3 in all' in said
    assert checkpoint.steps(tmp_path / 'run' / rundir.CHECKPOINTS) == [1, 2, 3]


def test_resuming_amid_skips_equals_going_through(tmp_path):
    """Spikes and NaN, BatchNorm's averages, Adam, EMA: everything that a checkpoint holds."""
    values = {
        'guard.policy': 'skip',
        'guard.spike_sigma': 1.0,
        'guard.spike_window': 4,
        'ema_decay': 0.9,
        'log_every': 1,
    }
    config = digits_with(tmp_path, [33, 50, 51, 70], **values)
    through, stopped = tmp_path / 'through', tmp_path / 'stopped'
    train_lib.train(config, through)
    rows = writers.read_metrics(through / 'metrics.jsonl')
    spikes = [row['step'] for row in rows if row.get('skipped') and 'train/loss' in row]
    bad = [row['step'] for row in rows if row.get('skipped') and 'train/loss' not in row]
    assert spikes
    assert bad
    rates = {row['step']: row['learning_rate'] for row in rows if 'learning_rate' in row}
    assert all(
        rates[step] == rates[step + 1] for step in spikes if step + 1 in rates
    )  # not applied
    shutil.copytree(through, stopped)
    ends = [commands.arrays(through, 20)]
    assert all(ends[0].values())  # every part has arrays
    for resume in ('same', 'changed'):  # of a guard that is the same
        (stopped / 'summary.json').unlink()
        directory = stopped / rundir.CHECKPOINTS
        for step in checkpoint.steps(directory):
            if step > max(step for step in spikes + bad if step < 20):
                shutil.rmtree(directory / str(step))
        train_lib.train(config, stopped, resume=resume)
        assert trees.first_difference(ends[0], commands.arrays(stopped, 20)) is None
