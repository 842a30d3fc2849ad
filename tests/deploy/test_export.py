"""Exported runs give what the runs give, of any size, where nothing but JAX and NumPy is."""

import dataclasses
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
from bigmodels.data import tokenizers
from bigmodels.deploy import export, onnx_export
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


def untrained(spec, shape):
    """A run of a config that has learnt nothing, without a directory; shape: of an image."""
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
    return run, shapes


@pytest.mark.parametrize('spec', ['bert', 'wavenet'])
def test_what_training_gives_is_enough_to_know_the_inputs(spec, monkeypatch):
    run, shapes = untrained(spec, None)
    if spec == 'bert':
        run.task = dataclasses.replace(run.task, vocabulary=tokenizers.Bytes())
    monkeypatch.setattr(export.rundir, 'batch_shapes', lambda workdir, size: shapes)
    wanted = {'bert': {'inputs'}, 'wavenet': {'targets', 'speakers', 'seeds'}}
    assert export.input_shapes(run).keys() == wanted[spec]


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
    run, shapes = untrained(spec, shape)
    monkeypatch.setattr(export.rundir, 'batch_shapes', lambda workdir, size: shapes)
    program = export.exported_program(run)
    rng = np.random.default_rng(0)
    three = {
        name: rng.normal(size=(3, *shape)).astype(np.float32)
        if shape
        else np.ones((3, 7), one.dtype)
        for name, one in export.input_shapes(run).items()
    }
    expected = jax.jit(run.task.predict)(run.params, run.model_state, three)
    found = program.call(export.variables_of(run), three)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_library_of_onnx_may_be_missing(digits_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jax2onnx', None)
    with pytest.raises(errors.UserError, match='pip install --no-deps jax2onnx'):
        export.export(digits_run, 'onnx', tmp_path / 'to')
    assert not (tmp_path / 'to').exists()


@pytest.mark.parametrize(
    ('spec', 'shape'),
    [('digits_mlp', (8, 8)), ('mnist_lenet', (28, 28)), ('transformer', None)],
)
@pytest.mark.slow  # the library takes long to be imported
def test_onnx_of_any_batch_gives_what_the_run_gives(spec, shape, monkeypatch, tmp_path):
    for library in ('jax2onnx', 'onnxruntime'):
        pytest.importorskip(library, reason=f'needs {library}: see deploy/onnx_export.py')
    run, shapes = untrained(spec, shape)
    monkeypatch.setattr(export.rundir, 'batch_shapes', lambda workdir, size: shapes)
    described, files = export.FORMATS['onnx'](run, 0, 0 if shape else 24)
    files[export.ONNX](tmp_path / export.ONNX)
    session = sys.modules['onnxruntime'].InferenceSession(tmp_path / export.ONNX)
    rng = np.random.default_rng(1)
    for count in (1, 5):
        inputs = (
            rng.normal(size=(count, *shape)).astype(np.float32)
            if shape
            else rng.integers(0, 256, (count, 24)).astype(np.int32)
        )
        [found] = session.run(None, {'inputs': inputs})
        wanted = run.task.predict(run.params, run.model_state, {'inputs': inputs})
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert list(described['inputs']) == ['inputs']
    assert described['outputs']['answer'].startswith('float32[b,')


def test_what_cannot_be_converted_is_told(monkeypatch):
    pytest.importorskip('jax2onnx', reason='needs jax2onnx: see deploy/onnx_export.py')
    shapes = {'x': jax.ShapeDtypeStruct((3,), 'float32')}
    both = lambda batch: jax.lax.platform_dependent(batch['x'], cpu=jnp.sin, default=jnp.cos)
    with pytest.raises(errors.UserError, match='cannot convert this program, NotImpl.*platform'):
        onnx_export.converted(both, shapes)
    monkeypatch.setattr(onnx_export, 'TOLERANCE', -1.0)
    with pytest.raises(errors.UserError, match='another program of this one: answer differs'):
        onnx_export.converted(lambda batch: batch['x'] * 2, shapes)


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
