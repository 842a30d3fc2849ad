"""Private gradients against numpy in float64, example by example; batches; whole runs."""

import dataclasses
import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_privacy import clipping

from bigmodels import (
    checkpoint,
    errors,
    experiment,
    privacy,
    program,
    rundir,
    sharding,
    steps,
    trees,
)
from bigmodels import config as config_lib
from bigmodels import guard as guard_lib
from bigmodels import train as train_lib
from bigmodels.data import pipeline
from bigmodels.privacy import dp_sgd, sampling
from bigmodels.tasks import Retrieval
from tests import commands, test_sharding, test_steps, test_train
from tests.data.test_pipeline import Numbers

CLIP, EXPECTED = 1.5, 9.0
PRIVATE = privacy.Settings(8.0, 1e-5, clip=0.5, examples=40)
SILENT = types.SimpleNamespace(
    settings=types.SimpleNamespace(clip=CLIP), noise_multiplier=0.0, expected=EXPECTED
)


def batch_with_all_kinds():
    """Long gradients and short ones, a row of padding, one that counts half, and one of NaN."""
    batch = {key: np.array(value) for key, value in test_steps.BATCH.items()}
    batch['inputs'][:6] *= 0.01
    batch['targets'][:6] *= 0.1
    batch['weights'][3], batch['weights'][8] = 0, 0.5
    batch['inputs'][9] = np.nan
    return batch


def clipped_mean_in_float64(batch):
    """(gradient, examples that were clipped, examples that count), one after the other."""
    w, b = (np.float64(test_steps.PARAMS[key]) for key in ('w', 'b'))
    total, clipped, counted = {'w': 0 * w, 'b': 0 * b}, 0, 0
    for x, target, weight in zip(*(np.float64(v) for v in batch.values()), strict=True):
        y = np.tanh(x @ w + b)
        by_sum = weight * 2 * (y - target) * (1 - y**2)
        own = {'w': np.outer(x, by_sum), 'b': by_sum}
        norm = np.sqrt(sum((g**2).sum() for g in own.values()))
        if weight and np.isfinite(norm):
            counted, clipped = counted + 1, clipped + (norm > CLIP)
            total = {key: total[key] + own[key] * min(1, CLIP / norm) for key in own}
    return {key: value / EXPECTED for key, value in total.items()}, clipped, counted


@pytest.mark.parametrize('parts', [1, 3, 12])
def test_each_example_is_clipped_as_in_float64(parts):
    batch = batch_with_all_kinds()
    expected, clipped, counted = clipped_mean_in_float64(batch)
    assert 0 < clipped < counted == 10
    gradients = functools.partial(dp_sgd.private_gradients, budget=SILENT)
    grads, pairs, _ = jax.jit(gradients, static_argnums=(4, 5))(
        test_steps.PARAMS, {}, batch, jax.random.key(0), test_steps.loss_fn, parts
    )
    test_sharding.assert_close(grads, jax.tree.map(np.float32, expected), 1e-6)
    assert tuple(map(float, pairs['clipped'])) == (clipped, counted)
    assert np.isfinite(pairs['loss']).all()
    assert pairs['loss'][1] == 9.5


def test_the_gradient_is_that_of_jax_privacy():
    batch = {key: np.array(value) for key, value in test_steps.BATCH.items()}
    batch['weights'][3] = 0

    def loss(params, batch):
        return test_steps.loss_fn(params, {}, batch, None, train=True)[0]

    theirs = clipping.clipped_grad(loss, l2_clip_norm=CLIP, normalize_by=EXPECTED)
    expected = theirs(test_steps.PARAMS, batch, is_padding_example=batch['weights'] == 0)
    grads, _, _ = dp_sgd.private_gradients(
        test_steps.PARAMS, {}, batch, jax.random.key(0), test_steps.loss_fn, 3, budget=SILENT
    )
    test_sharding.assert_close(grads, expected, 1e-6)


def test_parts_change_no_mask_of_dropout():
    dropped = functools.partial(test_steps.loss_fn, dropout=0.5)
    gradients = functools.partial(dp_sgd.private_gradients, budget=SILENT)
    arguments = test_steps.PARAMS, {}, test_steps.BATCH, jax.random.key(0), dropped
    one, other, without = (
        gradients(*arguments[:4], loss_fn, parts)[0]
        for loss_fn, parts in ((dropped, 1), (dropped, 4), (test_steps.loss_fn, 4))
    )
    test_sharding.assert_close(one, other, 1e-6)
    assert abs(one['w'] - without['w']).max() > 1e-3


def test_noise_has_the_calibrated_deviation_and_depends_on_seed_and_step_alone():
    budget = privacy.Budget(privacy.Settings(2.0, 1e-5, clip=3.0, examples=5000), 5000, 256, 40)
    params = {'w': jnp.zeros((100, 90)), 'b': jnp.zeros(9)}

    def loss_fn(params, model_state, batch, rng, train):
        pair = (params['w'] * batch['x']).sum(), jnp.float32(1)
        return pair[0], ({'loss': pair}, model_state)

    def noise(seed, step, rows=8):
        batch = {'x': np.ones((rows, 1), np.float32), 'weights': np.zeros(rows, np.float32)}
        rng = steps.step_rng(seed, step)
        return dp_sgd.private_gradients(params, {}, batch, rng, loss_fn, 1, budget=budget)[0]

    one = noise(1, 2)
    std = budget.noise_multiplier * 3.0 / budget.expected
    np.testing.assert_allclose(np.std(one['w']), std, rtol=0.03)
    assert abs(np.mean(one['w'])) < 4 * std / one['w'].size ** 0.5
    assert trees.first_difference(one, noise(1, 2, rows=4)) is None
    for other in (noise(1, 3), noise(2, 2), {'w': np.flip(one['w'], 0)}):
        assert abs(np.corrcoef(np.ravel(one['w']), np.ravel(other['w']))[0, 1]) < 0.05


def test_eight_devices_compute_what_one_does():
    task, batches = test_sharding.classifier(dropout_rate=0.1)
    figures, state, _ = test_sharding.train(task, batches, num_devices=1, private=PRIVATE)
    mesh = dict(data=4, fsdp=2, accumulate=2)
    mesh_figures, mesh_state, _ = test_sharding.train(task, batches, private=PRIVATE, **mesh)
    np.testing.assert_allclose(mesh_figures, figures, rtol=1e-4)
    test_sharding.assert_close(mesh_state.params, state.params, 1e-4)


def test_batches_hold_each_example_independently_with_one_probability():
    order = sampling.Poisson(length=50, rate=0.2, batch_size=40, seed=3)
    drawn = np.stack([np.isin(np.arange(50), order.batch(t)) for t in range(2000)])
    deviation = (0.2 * 0.8 / 2000) ** 0.5
    assert abs(drawn.mean(0) - 0.2).max() < 4.5 * deviation
    assert abs(np.corrcoef(drawn.T) - np.eye(50)).max() < 4.5 / 2000**0.5
    assert abs(np.corrcoef(drawn[:-1].sum(1), drawn[1:].sum(1))[0, 1]) < 4.5 / 2000**0.5
    np.testing.assert_allclose(drawn.sum(1).var(), 50 * 0.2 * 0.8, rtol=0.15)
    other = dataclasses.replace(order, seed=4)
    assert [list(order.batch(t)) for t in range(5)] != [list(other.batch(t)) for t in range(5)]
    few = dataclasses.replace(order, batch_size=6)  # holds the first of what is drawn
    assert list(few.batch(0)) == list(order.batch(0)[:6])


def test_rows_that_nothing_was_drawn_for_weigh_nothing_on_every_host():
    order = sampling.Poisson(length=30, rate=0.3, batch_size=16, seed=0)
    parts = [(Numbers(30), 1.0)]
    batches = pipeline.training_batches(parts, 16, 0, order=order)
    halves = [pipeline.training_batches(parts, 16, 0, ((i,), 2), order) for i in range(2)]
    ids = pipeline.training_ids(parts, 16, 0, order)
    for t in (5, 0, 1):
        batch, drawn = batches[t], order.batch(t)
        real = drawn < 30
        assert 0 < real.sum() < 16
        np.testing.assert_array_equal(batch['weights'], real)
        np.testing.assert_array_equal(batch['id'][real], drawn[real])
        np.testing.assert_array_equal(ids[t]['example'][real], drawn[real])
        assert set(ids[t]['part'][~real]) <= {1}
        for key in batch:
            joined = np.concatenate([half[t][key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


DIGITS = dict(epsilon=3.0, examples=1437)


def private_digits(**values):
    private = {f'privacy.{key}': value for key, value in DIGITS.items()}
    return test_train.digits_config(**private | values)


def test_a_private_run_resumes_as_it_began_or_not_at_all(tmp_path, capsys):
    through, stopped = tmp_path / 'through', tmp_path / 'stopped'
    settings = {'ema_decay': 0.9, 'log_every': 1, 'eval_every': 10}
    figures = train_lib.train(private_digits(**settings), through)
    said = ' '.join(capsys.readouterr().err.split())
    assert 'one training example of 1,437' in said
    assert 'metrics of training batches are NOT private' in said
    shutil.copytree(through, stopped)
    (stopped / 'summary.json').unlink()
    shutil.rmtree(stopped / rundir.CHECKPOINTS / '20')
    for config in (private_digits(total_steps=30), private_digits(), test_train.digits_config()):
        with pytest.raises(errors.UserError, match='private.*there is no --resume=changed'):
            train_lib.train(config, stopped, resume='changed')
    for key, value in {'total_steps': 30, 'privacy.epsilon': 4.0, 'batch_size': 32}.items():
        with pytest.raises(errors.UserError, match='holds a run with another config'):
            train_lib.train(private_digits(**settings | {key: value}), stopped)
    train_lib.train(private_digits(**settings), stopped)
    one, other = (commands.arrays(run, 20) for run in (through, stopped))
    assert trees.first_difference(one, other) is None
    assert test_train.same_metrics(through, stopped)
    rows = [json.loads(line) for line in (stopped / 'metrics.jsonl').read_text().splitlines()]
    spent = [row['epsilon'] for row in rows if 'epsilon' in row]
    assert len(spent) == 20
    assert (np.diff(spent) > 0).all()
    final = json.loads((stopped / 'summary.json').read_text())['final']
    assert final['epsilon'] == figures['epsilon'] == pytest.approx(spent[-1], rel=1e-6)
    assert 2.99 < spent[-1] <= 3.0
    halfway = checkpoint.figures(stopped / rundir.CHECKPOINTS, 10)['epsilon']
    assert halfway == pytest.approx(spent[9], rel=1e-6)


def test_a_run_without_privacy_is_what_it_was():
    settings = experiment.from_config(test_train.digits_config())
    none = privacy.transformation(settings, None, {})
    assert none == privacy.Transformation(steps.accumulated_gradients, none.spent)
    assert none.spent(3) == {}
    assert privacy.batch_order(settings, []) is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(epsilon=0), r'privacy.epsilon = 0 must be over 0.*None trains without'),
        (dict(epsilon=1e6), 'at most 100'),
        (dict(delta=0), 'privacy.delta = 0'),
        (dict(clip=-1), 'privacy.clip = -1'),
        (dict(examples=0), 'must be the number of training examples'),
        (dict(epsilom=1), "Did you mean 'epsilon'"),
        (dict(epsilon='3'), 'wrong type'),
    ],
    ids=str,
)
def test_settings_that_no_run_can_keep_to_are_refused_at_once(settings, message):
    config = test_train.digits_config().to_dict()
    config['privacy'] = DIGITS | settings
    with pytest.raises(errors.UserError, match=message):
        experiment.from_config(config)


def test_a_batch_with_hardly_any_room_is_refused():
    with pytest.raises(errors.UserError, match='room for 2 has .* on average.*make it larger'):
        experiment.from_config(private_digits(batch_size=2))


def test_what_breaks_the_guarantee_is_refused_and_what_it_leaves_out_is_told():
    settings = experiment.from_config(private_digits())
    task = experiment.make_task(settings)

    def notes(task=task, state=(), **changes):
        made = dataclasses.replace(settings, **changes)
        variables = {'params': {}, **dict.fromkeys(state)}
        return '; '.join(privacy.transformation(made, task, variables).notes)

    # Types stand for tasks: what they are is asked of their classes.
    mixing = types.SimpleNamespace(augment={'cutmix': 1.0, 'flip': 0.5})
    refused = {
        'compares the examples': dict(task=types.SimpleNamespace(compares_examples=True)),
        'keeps batch_stats of its batches': dict(state=['batch_stats']),
        'augment.cutmix mixes examples': dict(task=mixing),
        'spike_sigma = 4': dict(guard=guard_lib.Guard('skip', spike_sigma=4.0)),
        'pmap': dict(parallel='pmap'),
    }
    for message, given in refused.items():
        with pytest.raises(errors.UserError, match=message):
            notes(**given)
    assert Retrieval.compares_examples
    careless = dataclasses.replace(settings.privacy, delta=1e-3)
    assert 'WARNING: delta 0.001 is not under 1 / 1437' in notes(privacy=careless)
    plain, of_text = notes(), notes(task=test_sharding.language_model()[0])
    for told in ('what preprocessing learns', 'packed or cut text, not a document'):
        assert told in of_text
        assert told not in plain


def test_the_number_of_examples_is_checked_against_the_data():
    settings = experiment.from_config(private_digits())
    with pytest.raises(errors.UserError, match='There are 30 .*examples = 1437'):
        privacy.batch_order(settings, [(Numbers(30), 1.0)])
    with pytest.raises(errors.UserError, match='one source'):
        privacy.batch_order(settings, [(Numbers(30), 1.0), (Numbers(3), 1.0)])


def test_batch_norm_is_refused_before_compilation():
    cnn = config_lib.load(
        f'{commands.ROOT}/configs/mnist_lenet.py:tiny',
        ['model.norm=batch_norm', 'privacy.epsilon=4.0', 'privacy.examples=60000'],
    )
    settings = experiment.from_config(cnn)
    task = experiment.make_task(settings)
    batch = {
        'inputs': np.zeros((256, 28, 28), np.float32),
        'targets': np.zeros(256, np.int32),
        'weights': np.zeros(256, np.float32),
    }
    mesh = sharding.make_mesh(sharding.MeshShape(data=1), jax.devices()[:1])
    with pytest.raises(errors.UserError, match='keeps batch_stats of its batches, as BatchNorm'):
        program.make_program(settings, task, mesh, program.shapes_of_batch(batch, 256))
