"""Exported runs give what the runs give, of any size, where nothing but JAX and NumPy is."""

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bigmodels import config, errors, experiment, runs, train, trees
from bigmodels.deploy import export
from tests import commands

# What a user without this package types; the batch and what is expected are in files.
ALONE = """
import sys
import jax, jax.export, numpy as np
program = jax.export.deserialize(open('exported/program.bin', 'rb').read())
params = dict(np.load('exported/params.npz'))
for i in range(2):
    answers = program.call(params, {'inputs': np.load(f'inputs{i}.npy')})
    np.testing.assert_allclose(answers, np.load(f'expected{i}.npy'), atol=1e-5)
assert 'bigmodels' not in sys.modules and 'flax' not in sys.modules
"""


def trained(folder, spec):
    train.train(config.load(str(commands.ROOT / spec), ['total_steps=3']), folder)
    return runs.open_run(folder)


@pytest.fixture(scope='module')
def text_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('text') / 'run', 'configs/transformer.py:tiny')


@pytest.fixture(scope='module')
def digits_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('digits') / 'run', 'configs/digits_mlp.py:tiny')


def test_a_language_model_of_any_batch_and_length_without_this_package(text_run, tmp_path):
    description = export.export(text_run, 'stablehlo', tmp_path / 'exported')
    assert description['inputs'] == {'inputs': 'int32[b,l]'}
    assert json.loads((tmp_path / 'exported' / 'export.json').read_text()) == {
        **description, 'platforms': list(export.PLATFORMS)
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for i, shape in enumerate(((1, 5), (3, 70))):
        inputs = rng.integers(0, 256, shape, np.int32)
        np.save(tmp_path / f'inputs{i}.npy', inputs)
        logits = text_run.model.apply({'params': text_run.params}, jnp.asarray(inputs))
        np.save(tmp_path / f'expected{i}.npy', np.asarray(logits))
    subprocess.run([sys.executable, '-c', ALONE], cwd=tmp_path, check=True)


def test_a_classifier_with_its_preprocessing(digits_run, tmp_path):
    description = export.export(digits_run, 'stablehlo', tmp_path / 'to')
    assert description['inputs'] == {'inputs': 'float32[b,8,8]'}
    assert description['outputs'] == {'answer': 'float32[b,10]'}
    program = jax.export.deserialize((tmp_path / 'to' / export.PROGRAM).read_bytes())
    assert program.platforms == export.PLATFORMS
    images = np.random.default_rng(0).normal(size=(7, 8, 8)).astype(np.float32)
    answers = program.call(dict(np.load(tmp_path / 'to' / export.PARAMS)), {'inputs': images})
    expected = digits_run.task.predict(
        digits_run.params, digits_run.model_state, {'inputs': images}
    )
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert (tmp_path / 'to' / 'config.json').read_bytes() == (
        digits_run.workdir / 'config.json'
    ).read_bytes()
    assert (tmp_path / 'to' / 'preprocessing').is_dir()


@pytest.mark.parametrize(
    ('spec', 'shape'),
    [
        ('mnist_lenet', (28, 28)),
        ('cifar10_resnet', (16, 16, 3)),
        ('cifar10_vit', (16, 16, 3)),
        ('sst2_lstm', None),
    ],
)
def test_families_take_batches_of_any_size(spec, shape, monkeypatch):
    """Without a trained run: what an untrained model gives, by the artefact and by itself."""
    settings = experiment.from_config(config.load(f'{commands.ROOT}/configs/{spec}.py:tiny'))
    task = experiment.make_task(settings)
    if shape:
        shapes = {'inputs': jax.ShapeDtypeStruct((1, *shape), 'float32')}
    else:
        shapes = {
            name: jax.ShapeDtypeStruct((1, *one.shape), one.dtype)
            for name, one in task.example_shapes().items()
        }
    batch = {name: jnp.zeros(one.shape, one.dtype) for name, one in shapes.items()}
    model_state = dict(jax.jit(task.init)(jax.random.key(0), batch))
    params = model_state.pop('params')
    run = types.SimpleNamespace(
        workdir=None, task=task, model=task.model, params=params, model_state=model_state
    )
    monkeypatch.setattr(export.rundir, 'batch_shapes', lambda workdir, size: shapes)
    program = export.exported_program(run)
    rng = np.random.default_rng(0)
    three = {
        name: rng.normal(size=(3, *shape)).astype(np.float32)
        if shape
        else np.ones((3, 7), one.dtype)
        for name, one in export.input_shapes(run).items()
    }
    expected = task.predict(params, model_state, three)
    found = program.call(export.variables_of(run), three)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tensors_are_those_of_the_run(digits_run, tmp_path):
    export.export(digits_run, 'safetensors', tmp_path / 'to')
    written = load_file(tmp_path / 'to' / export.TENSORS)
    assert trees.first_difference(written, export.variables_of(digits_run)) is None


def test_shapes_that_are_numbers(text_run):
    shapes = export.input_shapes(text_run, 4, 16)
    assert {name: shape.shape for name, shape in shapes.items()} == {'inputs': (4, 16)}
    program = export.exported_program(text_run, 4, 16)
    assert program.out_avals[0].shape[:2] == (4, 16)


def test_a_folder_that_is_there_is_left_alone(digits_run, tmp_path):
    with pytest.raises(errors.UserError, match='exists: choose another --to'):
        export.export(digits_run, 'stablehlo', tmp_path)
