"""Explanations say what a run would do, for meshes larger than this machine, and do nothing."""

import jax
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment, explain, main, sharding, train
from tests import commands

TINY = f'{commands.ROOT}/configs/transformer.py:tiny'
DIGITS = f'{commands.ROOT}/configs/digits_mlp.py:tiny'


def settings(spec: str, *overrides: str) -> experiment.Experiment:
    return experiment.from_config(config_lib.load(spec, overrides))


def row(text: str, name: str) -> list[str]:
    """The cells of the table row that begins with a name."""
    [line] = [line for line in text.splitlines() if line.startswith(f'{name} ')]
    cells = line.removeprefix(name).split('  ')
    return [cell.strip() for cell in cells if cell.strip()]


def test_8b_on_256_devices_is_told_by_a_machine_without_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = f'--config={commands.ROOT}/configs/transformer.py:8b'
    mesh = ['--config.mesh.fsdp=64', '--config.mesh.tensor=4']
    monkeypatch.setattr('sys.argv', ['main', spec, *mesh, '--explain=sharding'])
    before = sum(array.nbytes for array in jax.live_arrays())
    main.main()
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1e6
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert 'Mesh: fsdp 64 x tensor 4.' in said
    size = 4 * 32 * 4096 * 14336
    expected = ['32 x 4096 x 14336', '-, fsdp, tensor', f'{size:,}', f'{size // 256:,}']
    assert row(said, 'layers/mlp/up/kernel') == expected
    # Matrices are split 256 ways; the 32 * 2 + 1 norm scales of 4096 are whole everywhere.
    scales = 4 * 65 * 4096
    total = 4 * 6_981_685_248
    each = (total - scales) // 256 + scales
    assert row(said, 'parameters')[:2] == [f'{total:,}', f'{each:,}']
    assert row(said, 'gradients') == row(said, 'parameters')
    assert f'Whole on every device: {scales:,} bytes in layers/attention_norm/scale' in said
    assert 'the mesh is of 256 devices; this machine has 8' in said
    assert 'config.mesh.data = -1 is taken as 1' in said
    assert '= 32 does not divide over the 64 devices' in said


@pytest.mark.parametrize(
    ('spec', 'algorithm'), [(TINY, 'muon'), (TINY, 'adafactor'), (DIGITS, 'adamw')]
)
def test_what_is_told_is_what_devices_hold(spec, algorithm):
    planned = explain.plan(
        settings(
            spec,
            f'optimizer.algorithm.name={algorithm}',
            'mesh.fsdp=4',
            'mesh.data=2',
            'ema_decay=0.9',
        )
    )
    held = sum(
        array.addressable_shards[3].data.nbytes for array in jax.tree.leaves(planned.init_state(0))
    )
    assert explain.device_bytes(planned.state_shapes) == held


def test_what_could_not_be_split_is_noted():
    said = explain.explain_sharding(
        settings(TINY, 'mesh.tensor=3', 'mesh.fsdp=1', 'mesh.data=1', 'model.mlp_dim=96')
    )
    assert 'Note: layers_0/attention/query/kernel: 64 does not divide by tensor 3' in said
    assert '64 x 96' in said
    assert 'Note: layers_0/mlp/up/kernel' not in said


@pytest.mark.parametrize(
    ('shape', 'expected', 'num_notes'),
    [
        (dict(), dict(data=8, fsdp=1, tensor=1), 0),
        (dict(fsdp=2), dict(data=4, fsdp=2, tensor=1), 0),
        (dict(data=2, fsdp=4), dict(data=2, fsdp=4, tensor=1), 0),
        (dict(data=1), dict(data=1, fsdp=1, tensor=1), 1),
        (dict(fsdp=3), dict(data=1, fsdp=3, tensor=1), 2),
        (dict(data=16, fsdp=64), dict(data=16, fsdp=64, tensor=1), 1),
    ],
)
def test_the_mesh_is_the_run_s_or_a_planned_one(shape, expected, num_notes):
    mesh, notes = explain.planned_mesh(sharding.MeshShape(**shape))
    assert {axis: size for axis, size in mesh.shape.items() if axis in expected} == expected
    assert mesh.size == np.prod(list(expected.values()))
    assert isinstance(mesh, jax.sharding.Mesh) == (num_notes == 0)
    assert len(notes) == num_notes


@pytest.mark.parametrize('shape', [dict(fsdp=-1), dict(fsdp=0), dict(tensor=-2)])
def test_sizes_that_no_machine_has(shape):
    with pytest.raises(errors.UserError, match='sizes are positive, and one may be -1'):
        explain.planned_mesh(sharding.MeshShape(**shape))


@pytest.mark.parametrize('packing', ['chunks', 'documents'])
def test_a_task_knows_the_shapes_of_its_examples(tmp_path, packing):
    config = commands.tiny_text_config(tmp_path, [f'task.packing={packing}'])
    run = experiment.from_config(config)
    task = experiment.make_task(run)
    [(source, _)] = experiment.training_sources(run)
    example = task.fit(source).examples(source, tmp_path, train=True)[0]
    shapes = {name: (array.shape, array.dtype) for name, array in example.items()}
    known = {name: (shape.shape, shape.dtype) for name, shape in task.example_shapes().items()}
    assert known == shapes


def test_a_text_task_is_explained_without_its_data(tmp_path):
    config = commands.tiny_text_config(tmp_path)
    (tmp_path / 'input.txt').unlink()
    assert 'embed/embedding' in explain.explain('sharding', config)


@pytest.mark.parametrize(
    'spec', ['detect:tiny', 'arithmetic:tiny_policy', 'bert:tiny', 'translate:tiny', 'chat:tiny']
)
def test_the_step_of_a_task_is_traced_without_its_data(spec, tmp_path, monkeypatch):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    file, variant = spec.split(':')
    planned = settings(f'{commands.ROOT}/configs/{file}.py:{variant}')
    mesh, _ = explain.planned_mesh(planned.mesh)
    _, run = explain.abstract_program(planned, mesh)
    _, figures = jax.eval_shape(run.train_step, run.state_shapes, run.batch_shapes)
    assert figures['loss'][0].shape == ()


def test_a_text_task_with_a_teacher_of_the_same_words_is_explained(tmp_path):
    changes = ['task.tokenizer.name=characters', 'data.train.fraction=(0.0, 1.0)']
    changes += ['total_steps=4', 'checkpoint.every=4', 'task.sample_tokens=0']
    train.train(commands.tiny_text_config(tmp_path, changes), tmp_path / 'teacher')
    learner = commands.tiny_text_config(
        tmp_path, [*changes, f'distill.teacher={tmp_path / "teacher"}']
    )
    assert 'embed/embedding' in explain.explain('sharding', learner)


def test_an_unknown_explanation():
    with pytest.raises(errors.UserError, match="'shardin'.*Did you mean 'sharding'"):
        explain.explain('shardin', config_lib.load(TINY))


def test_the_command_prints_and_leaves_nothing(tmp_path):
    workdir = tmp_path / 'run'
    status, out, err = commands.train(
        f'--config={DIGITS}', '--config.mesh.fsdp=16', '--explain=sharding', f'--workdir={workdir}'
    )
    assert status == 0, err
    assert row(out, 'Linear_0/kernel') == ['64 x 128', '-, fsdp', '32,768', '2,048']
    assert 'Parameters: 17,226 in 6 arrays.' in out
    assert not workdir.exists()
