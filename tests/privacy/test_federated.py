"""Clients that learn by themselves: against loops in numpy, against centralised steps."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment, privacy, trees
from bigmodels import train as train_lib
from bigmodels.privacy import federated, sampling, secure_sum
from bigmodels.tasks.base import Examples
from tests import commands, test_sharding, test_steps, test_train
from tests.data.test_pipeline import Numbers

LABELS = np.repeat(np.arange(10), 60)
CLIENTS = federated.Settings(clients=3, per_round=3, local_steps=2, local_learning_rate=0.1)


def test_partitions_hold_each_example_once_and_are_as_unlike_as_alpha_says():
    largest = {}
    for alpha in (0.0, 0.05, 1.0, 1000.0):
        parts = federated.partition(LABELS, 12, alpha, seed=3)
        assert sorted(np.concatenate(parts)) == list(range(600))
        again = federated.partition(LABELS, 12, alpha, seed=3)
        other = federated.partition(LABELS, 12, alpha, seed=4)
        assert all(map(np.array_equal, parts, again))
        assert not all(map(np.array_equal, parts, other))
        # The share that a client's most frequent label has, over clients by size.
        largest[alpha] = sum(np.bincount(LABELS[part]).max() for part in parts if len(part)) / 600
    unknown = np.where(LABELS[0] != LABELS, LABELS, np.nan)
    assert sorted(np.concatenate(federated.partition(unknown, 12, 0.3, 3))) == list(range(600))
    assert {len(part) for part in federated.partition(LABELS, 12, 0.0, 3)} == {50}
    assert largest[0.05] > 0.6 > largest[1.0] > largest[1000.0]
    assert max(largest[1000.0], largest[0.0]) < 0.3


def test_a_round_holds_its_clients_examples_and_padding():
    settings = dataclasses.replace(CLIENTS, clients=12, per_round=5)
    parts = federated.partition(LABELS, 12, 0.3, seed=0)
    order = federated.Rounds(settings, parts, 600, batch_size=5 * 2 * 8, seed=1)
    owner = np.full(601, -1)
    for client, part in enumerate(parts):
        owner[part] = client
    seen = set()
    for t in (7, 0, 7):
        clients = order.clients(t)
        assert len(set(clients)) == 5
        rows = order.batch(t).reshape(5, 2, 8)
        np.testing.assert_array_equal(order.take(np.arange(80 * t, 80 * (t + 1))), rows.ravel())
        for client, batches in zip(clients, rows, strict=True):
            for batch in batches:
                real = batch[batch < 600]
                assert len(set(real)) == len(real) == min(8, len(parts[client]))
                assert set(owner[real]) <= {client}
            alone = federated.OneClient(order, int(client))
            np.testing.assert_array_equal(alone.batch(t), batches.ravel())
            assert alone.batch_size == 16
        seen.add(rows.tobytes())
    assert len(seen) == 2
    private = dataclasses.replace(order, rate=0.3)
    counts = [len(private.clients(t)) for t in range(200)]
    assert 0 <= min(counts) < max(counts) == 5  # no more than there is room for
    assert abs(np.mean([len(sampling.poisson(12, 0.3, 1, t)) for t in range(400)]) - 3.6) < 0.3


def gradients(batch, parts=1, budget=None, rng=0, **changes):
    settings = dataclasses.replace(CLIENTS, **changes)
    function = functools.partial(federated.federated_gradients, settings=settings, budget=budget)
    arguments = test_steps.PARAMS, {}, batch, jax.random.key(rng), test_steps.loss_fn, parts
    return jax.jit(function, static_argnums=(4, 5))(*arguments)


def batch_with_padding():
    weights = np.ones(12, np.float32)
    weights[[3, 8, 9, 10, 11]] = 0  # one client has nothing but padding
    return {key: np.array(value) for key, value in test_steps.BATCH.items()} | {'weights': weights}


def local_updates_in_float64(batch, learning_rate, proximal, local_steps=2):
    """(what each of three clients moved by, its examples), one step after the other."""
    rows = [np.float64(x).reshape(3, local_steps, -1, *x.shape[1:]) for x in batch.values()]
    start = {key: np.float64(value) for key, value in test_steps.PARAMS.items()}
    found = []
    for client in zip(*rows, strict=True):
        own = dict(start)
        for x, targets, weights in zip(*client, strict=True):
            y = np.tanh(x @ own['w'] + own['b'])
            by_sum = 2 * (y - targets) * (1 - y**2) * weights[:, None] / max(weights.sum(), 1e-9)
            grads = {'w': x.T @ by_sum, 'b': by_sum.sum(0)}
            own = {
                key: own[key] - learning_rate * (grads[key] + proximal * (own[key] - start[key]))
                for key in own
            }
        found.append(({key: start[key] - own[key] for key in own}, client[2].sum()))
    return found


@pytest.mark.parametrize('proximal', [0.0, 2.0])
def test_clients_steps_are_those_of_a_loop_in_float64(proximal):
    batch = batch_with_padding()
    found = local_updates_in_float64(batch, 0.1, proximal)
    counts = [count for _, count in found]
    assert counts == [3, 4, 0]
    expected = {key: np.float32(sum(moved[key] * count for moved, count in found) / 7)
                for key in ('w', 'b')}  # fmt: skip
    for parts in (1, 3):
        grads, pairs, _ = gradients(batch, parts, proximal=proximal)
        test_sharding.assert_close(grads, expected, 1e-6)
        assert pairs['loss'][1] == 7


def test_one_local_step_of_all_clients_is_a_centralised_step():
    batch = batch_with_padding()
    whole = jax.grad(lambda p: test_steps.loss_fn(p, {}, batch, None, True)[0])(test_steps.PARAMS)
    grads = gradients(batch, local_steps=1, local_learning_rate=0.5)[0]
    test_sharding.assert_close(grads, jax.tree.map(lambda g: 0.5 * g, whole), 1e-6)


@pytest.mark.parametrize('private', [False, True])
def test_a_sum_under_masks_is_the_sum(private):
    budget = types.SimpleNamespace(
        settings=types.SimpleNamespace(clip=0.2), noise_multiplier=0.0, expected=2.5
    )
    budget = budget if private else None
    batch = batch_with_padding()
    plain, secure, in_parts = (
        gradients(batch, parts, budget, secure_sum=secure)[0]
        for secure, parts in ((False, 1), (True, 1), (True, 3))
    )
    test_sharding.assert_close(plain, secure, 1e-5)
    assert trees.first_difference(secure, in_parts) is None
    if private:
        total = {'w': 0.0, 'b': 0.0}
        for moved, count in local_updates_in_float64(batch, 0.1, 0.0):
            norm = np.sqrt(sum((x**2).sum() for x in moved.values()))
            assert norm > 0.2 or not count
            total = {key: total[key] + moved[key] * min(1, 0.2 / max(norm, 1e-9)) for key in total}
        expected = jax.tree.map(lambda x: np.float32(x / 2.5), total)
        test_sharding.assert_close(plain, expected, 1e-6)


def test_a_client_that_diverges_is_seen_through_the_masks():
    batch = batch_with_padding()
    for key, leaf in batch.items():
        if leaf.dtype == np.float32 and key != 'weights':
            batch[key] = leaf.copy()
            batch[key][0] = np.nan
            break
    grads = gradients(batch, secure_sum=True)[0]
    assert not np.isfinite(grads['w']).any()


def test_masks_cancel_to_the_last_bit_and_hide_the_terms():
    rng = np.random.default_rng(0)
    vectors = jnp.float32(rng.normal(size=(5, 2000)) * 3)
    terms = secure_sum.encoded(vectors)
    masked = jax.vmap(lambda term, i: secure_sum.masked(term, i, 5, jax.random.key(1)))(
        terms, jnp.arange(5)
    )
    np.testing.assert_array_equal(masked.sum(0), terms.sum(0))
    np.testing.assert_allclose(secure_sum.decoded(terms.sum(0)), vectors.sum(0), atol=1e-5)
    uniform = np.asarray(masked, np.float64) / 2**32
    assert abs(uniform.mean(1) - 0.5).max() < 0.03
    assert abs(np.corrcoef(uniform, vectors)[:5, 5:]).max() < 0.1
    assert (masked[:4].sum(0) != terms[:4].sum(0)).mean() > 0.99  # without the fifth none cancel
    below = secure_sum.decoded(secure_sum.encoded(vectors))
    assert (abs(below) <= abs(vectors)).all()


def test_eight_devices_compute_what_one_does():
    task, batches = test_sharding.classifier(dropout_rate=0.1)
    clients = federated.Settings(clients=8, per_round=8, local_steps=2)
    private = privacy.Settings(8.0, 1e-5, clip=0.5)
    options = dict(clients=clients, private=private)
    figures, state, _ = test_sharding.train(task, batches, num_devices=1, **options)
    mesh_figures, mesh_state, _ = test_sharding.train(task, batches, data=8, **options)
    np.testing.assert_allclose(mesh_figures, figures, rtol=1e-4)
    test_sharding.assert_close(mesh_state.params, state.params, 1e-4)


FEDERATED = dict(clients=20, per_round=8, local_steps=2, local_learning_rate=0.1, alpha=0.5)


def federated_digits(changes=(), **values):
    config = test_train.digits_config(batch_size=160, **values).to_dict()
    config['federated'] = FEDERATED | dict(changes)
    config['optimizer'] |= dict(
        learning_rate=1.0, algorithm=dict(name='sgd', momentum=0.0), schedule=dict(name='constant'),
        weight_decay=0.0, clip_norm=None,
    )  # fmt: skip
    return config


def test_clients_learn_digits_by_the_one_loop(tmp_path):
    figures = train_lib.train(federated_digits(total_steps=40), tmp_path)
    assert figures['valid/accuracy'] > 0.8


@pytest.mark.parametrize(
    ('changes', 'values', 'message'),
    [
        (dict(clients=5), {}, 'per_round = 8 is more than the clients that there are: 5'),
        (dict(local_steps=0), {}, 'local_steps = 0 must be over 0'),
        (dict(alpha=-1), {}, 'alpha = -1.0 must be not negative'),
        (dict(per_round=7), {}, 'batch_size = 160 must be a multiple of .* = 14'),
        ({}, {'accumulate': 5}, 'accumulate = 5 must divide federated.per_round = 8'),
        ({}, {'privacy.epsilon': 2.0, 'privacy.examples': 1437}, 'units of privacy .* 20 clients'),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_at_once(changes, values, message):
    with pytest.raises(errors.UserError, match=message):
        experiment.from_config(federated_digits(changes, **values))


def test_clients_are_found_in_records_or_missed():
    settings = federated.Settings(clients=4, per_round=4, client_key='speaker')
    examples = Examples(Speakers(), task=None)
    assert [len(part) for part in federated.members(settings, examples, 0)] == [3, 3, 2, 2]
    for changes, message in (
        (dict(clients=5, per_round=5), "'speaker' names 4 clients, but .*clients = 5"),
        (dict(client_key='speker'), "federated.client_key = 'speker'.*'speaker'"),
        (dict(client_key='', alpha=1.0), "federated.label_key = 'label'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            federated.members(dataclasses.replace(settings, **changes), examples, 0)
    with pytest.raises(errors.UserError, match='one example of each record'):
        federated.members(settings, Numbers(10), 0)


class Speakers(list):
    """Ten records of four speakers."""

    def __init__(self):
        super().__init__({'speaker': np.int64(i % 4)} for i in range(10))


@pytest.mark.shared_data
def test_speakers_are_clients_with_all_that_they_have_said(shared_data, monkeypatch):
    monkeypatch.setenv('BIGMODELS_DATA', str(shared_data))
    made = experiment.from_config(config_lib.load(f'{commands.ROOT}/configs/speech_federated.py'))
    parts = experiment.training_parts(experiment.make_task(made), experiment.training_sources(made))
    order = privacy.batch_order(made, parts)
    speakers = parts[0][0].source.column('speaker')
    assert [len(part) for part in order.members] == [450] * 6
    assert [set(speakers[part]) for part in order.members] == [{i} for i in range(6)]
