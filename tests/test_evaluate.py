"""Evaluation is exact for any size, batch and placement, and the same alone as in the loop."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, evaluate, experiment, metrics, program, runs, sharding
from bigmodels import train as train_lib
from bigmodels.data import SOURCES
from bigmodels.tasks.classification import Classification
from tests import commands


def parts(spec: str, **values):
    config = config_lib.load(
        str(commands.ROOT / spec), [f'{key}={value}' for key, value in values.items()]
    )
    settings = experiment.from_config(config)
    task = experiment.make_task(settings)
    [(source, _)] = experiment.training_sources(settings)
    return settings, task.fit(source)


def figures(settings, task, state, mesh):
    eval_step = jax.jit(program.evaluation_step(task))
    return evaluate.evaluate(
        eval_step,
        task,
        state.params,
        state.model_state,
        experiment.evaluation_sets(settings, task),
        mesh,
    )


class Scored(Classification):
    score_names = ('highest',)

    def outcomes(self, params, model_state, batch):
        return {'probability': self.predict(params, model_state, batch), 'label': batch['targets']}

    def scores(self, outcomes):
        assert set(outcomes) == {'probability', 'label'}
        np.testing.assert_array_equal(
            outcomes['label'], SOURCES['digits']('valid').take(np.arange(360))['label']
        )
        return {'highest': float(outcomes['probability'].max())}


@pytest.mark.parametrize(('batch_size', 'devices'), [(64, 1), (56, 8)])
def test_scores_see_each_example_once_in_order_and_no_padding(batch_size, devices):
    settings, plain = parts('configs/digits_mlp.py:tiny', batch_size=batch_size)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    task = Scored(**fields)
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
    batches, _ = experiment.training_batches(settings, task, experiment.training_sources(settings))
    shapes = program.shapes_of_batch(batches[0], batch_size)
    state = program.make_program(settings, task, mesh, shapes).init_state(0)
    measured = figures(settings, task, state, mesh)
    images = SOURCES['digits']('valid').take(np.arange(360))
    inputs = task.preprocess(images)['inputs']
    logits = task.model.apply({'params': jax.tree.map(np.asarray, state.params)}, inputs)
    assert measured['valid/highest'] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-5)
    assert {'valid/loss', 'valid/accuracy'} < set(measured)


@pytest.mark.parametrize('spec', ['configs/digits_mlp.py:tiny'])
@pytest.mark.parametrize(('batch_size', 'devices'), [(64, 1), (56, 8), (14, 2), (352, 4)])
def test_equals_a_plain_sum_over_every_example(spec, batch_size, devices):
    settings, task = parts(spec, batch_size=batch_size)
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
    batches, _ = experiment.training_batches(settings, task, experiment.training_sources(settings))
    shapes = program.shapes_of_batch(batches[0], batch_size)
    state = program.make_program(settings, task, mesh, shapes).init_state(0)
    measured = figures(settings, task, state, mesh)

    source = SOURCES['digits']('valid')
    assert len(source) % batch_size  # the size does not divide
    examples = [task.preprocess(source[i]) for i in range(len(source))]
    inputs = np.stack([example['inputs'] for example in examples])
    targets = np.stack([example['targets'] for example in examples])
    params = jax.tree.map(np.asarray, state.params)
    logits = np.asarray(task.model.apply({'params': params}, inputs), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -log_probabilities[np.arange(len(targets)), targets].mean()
    np.testing.assert_allclose(measured['valid/loss'], loss, rtol=1e-5)
    assert measured['valid/accuracy'] == pytest.approx((logits.argmax(-1) == targets).mean())


def test_bits_per_byte_do_not_depend_on_the_tokenizer_s_granularity(tmp_path):
    """A uniform model over V tokens of known byte lengths, counted by hand."""
    text = 'aß\n' * 400
    path = tmp_path / 'text.txt'
    path.write_text(text)
    _, task = parts(f'configs/shakespeare.py:{path}')
    weights = np.ones((1, 6), np.float32)
    targets = task.vocabulary.encode('aß\naß\n')[None]
    zeros = jax.tree.map(np.zeros_like, task.init(jax.random.key(0), {'inputs': targets})['params'])
    _, (pairs, _) = task.loss_fn(
        zeros,
        {},
        {'inputs': targets, 'targets': targets, 'weights': weights},
        jax.random.key(0),
        train=False,
    )
    bits = np.log2(task.model.vocab_size) * 6 / len('aß\naß\n'.encode())
    np.testing.assert_allclose(metrics.mean(pairs['bits_per_byte']), bits, rtol=1e-5)


def test_pictures_that_nothing_draws_are_refused(tmp_path, monkeypatch, capsys):
    options = [f'--workdir={tmp_path}', f'--pictures={tmp_path / "pictures"}']
    monkeypatch.setattr('sys.argv', ['evaluate', *options])
    with monkeypatch.context() as patch:
        run = types.SimpleNamespace(task=object(), config={'task': {'name': 'forecasting'}})
        patch.setattr(runs, 'open_run', lambda *_, **__: run)
        with pytest.raises(errors.UserError, match="task 'forecasting', which draws no pictures"):
            evaluate.main()
    # A task that draws some, but of figures that its config does not ask for.
    config = config_lib.load(str(commands.ROOT / 'configs/digits_mlp.py:tiny'))
    final = train_lib.train(config, tmp_path)
    capsys.readouterr()
    with pytest.raises(errors.UserError, match=r'has drawn no pictures: .* task\.report'):
        evaluate.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed == pytest.approx({'step': 20, **final}, rel=1e-5)


@pytest.mark.slow
def test_the_command_repeats_the_figures_of_the_run_and_draws(tmp_path):
    overrides = ['ema_decay=0.9', "task.report=('f1', 'roc_auc')"]
    config = config_lib.load(str(commands.ROOT / 'configs/digits_mlp.py:tiny'), overrides)
    final = train_lib.train(config, tmp_path)
    assert {'valid/f1', 'valid/roc_auc'} < set(final)
    options = [f'--workdir={tmp_path}', f'--pictures={tmp_path / "pictures"}']
    status, out, err = commands.run('bigmodels.evaluate', *options, devices=4)
    assert status == 0, err
    printed = json.loads(out)
    assert printed.pop('step') == 20
    assert printed == pytest.approx(final, rel=1e-5)
    assert [path.name for path in (tmp_path / 'pictures').iterdir()] == ['valid_confusion.png']
