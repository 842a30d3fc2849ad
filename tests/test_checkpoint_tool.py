"""python -m bigmodels.checkpoint: what is saved, whether it is good, averages, values."""

import json
import math
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bigmodels import checkpoint, errors, evaluate, rundir, runs, trees
from bigmodels import config as config_lib
from bigmodels import train as train_lib
from bigmodels.checkpoint import __main__ as tool
from bigmodels.checkpoint import values
from bigmodels.deploy import generate
from bigmodels.models import transformer
from bigmodels.state import TrainState
from tests import commands


class Normed(nn.Module):
    """A classifier with BatchNorm, for what an average does with its statistics."""

    num_classes: int

    @nn.compact
    def __call__(self, inputs, *, train: bool = False):
        x = nn.Dense(16)(inputs.reshape(len(inputs), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Scanned layers, a moving average, checkpoints 5, 10, 15 and 20."""
    workdir = tmp_path_factory.mktemp('run')
    overrides = [
        'model.scan_layers=True',
        'optimizer.algorithm.name=adamw',
        'ema_decay=0.5',
        'checkpoint.every=5',
        'eval_every=10',
        'checkpoint.keep_last=4',
        'checkpoint.best_metric=valid/loss',
    ]
    config = commands.tiny_text_config(tmp_path_factory.mktemp('text'), overrides)
    train_lib.train(config, workdir)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy to harm."""
    return shutil.copytree(finished, tmp_path / 'run')


def run(*arguments: object) -> None:
    """The command, in this process."""
    options = tool.parse(list(map(str, arguments)))
    options.command(options)


def flip_a_bit(step_directory, part: str) -> str:
    """Damages a file of values; returns its name within the step."""
    file = max((step_directory / part).rglob('d/*'), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))
    return file.relative_to(step_directory).as_posix()


def mean(trees_, weights):
    """The weighted mean in float64, by hand."""
    return jax.tree.map(
        lambda *leaves: np.average([np.asarray(leaf, np.float64) for leaf in leaves], 0, weights),
        *trees_,
    )


def assert_mean(params, trees_, weights):
    expected = trees.flatten_named(mean(trees_, weights))
    for name, leaf in trees.flatten_named(params).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-7, err_msg=name)


@pytest.mark.slow
def test_each_command(copied, tmp_path, capsys):
    damaged = flip_a_bit(copied / 'checkpoints' / '10', 'opt_state')
    average, file = tmp_path / 'average', tmp_path / 'params.safetensors'
    outcomes = [
        commands.called(capsys, 'bigmodels.checkpoint', command, f'--workdir={copied}', *more)
        for command, *more in (
            ('verify',),
            ('list',),
            ('average', '--steps=5,10', f'--out={average}'),
            ('params', f'--out={file}'),
        )
    ]
    assert [status for status, _, _ in outcomes] == [1, 0, 0, 0], outcomes
    lines = outcomes[0][1].splitlines()
    assert lines[0] == 'step 5: good'
    assert lines[1] == f'step 10: DAMAGED, the checksum of {damaged} does not agree'
    assert lines[2:] == ['step 15: good', 'step 20: good']
    assert 'ema_params' in outcomes[1][1]
    assert runs.open_run(average).step == 10
    assert (
        safetensors.numpy.load_file(file).keys()
        == trees.flatten_named(runs.open_run(copied).params).keys()
    )


def test_list_tells_steps_and_what_lies_beside_them(copied, capsys):
    directory = copied / 'checkpoints'
    (directory / '15').rename(directory / '15.damaged')
    (directory / '25.orbax-checkpoint-tmp').mkdir()
    (directory / '5' / 'manifest.json').write_text('{')
    run('list', f'--workdir={copied}')
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ['step', 'date', 'size', 'parts', 'metrics']
    assert [row.split()[0] for row in rows] == ['5', '10', '20', '15.damaged:',
                                                '25.orbax-checkpoint-tmp:']  # fmt: skip
    assert 'its manifest cannot be read' in rows[0]
    metrics = json.loads((directory / '20' / 'manifest.json').read_text())['metrics']
    assert f'valid/loss {metrics["valid/loss"]:.5g}' in rows[2]
    assert 'params, opt_state, ema_params' in rows[2]
    best = checkpoint.best_step(directory, checkpoint.Settings(best_metric='valid/loss'))
    assert [step for step, row in zip((5, 10, 20), rows, strict=False) if 'best' in row] == [best]
    assert ['last' in row for row in rows[:3]] == [False, False, True]
    size = sum(path.stat().st_size for path in (directory / '20').rglob('*') if path.is_file())
    assert f'{size / 1e6:,.1f} MB' in rows[2]
    assert 'set aside as damaged' in rows[3]
    assert 'killed' in rows[4]


def test_verify_looks_at_the_step_that_is_asked_for(copied, capsys):
    flip_a_bit(copied / 'checkpoints' / '15', 'params')
    run('verify', f'--workdir={copied}', '--step=20')
    assert capsys.readouterr().out == 'step 20: good\n'
    with pytest.raises(SystemExit) as stopped:
        run('verify', f'--workdir={copied}', '--step=15')
    assert stopped.value.code == 1


@pytest.mark.parametrize('weights', [None, '1,3,0.5'])
def test_the_average_is_the_mean_of_the_evaluated_params(finished, tmp_path, weights):
    out = tmp_path / 'average'
    more = [] if weights is None else [f'--weights={weights}']
    run('average', f'--workdir={finished}', '--steps=10,20,15', f'--out={out}', *more)
    averaged, source = runs.open_run(out), runs.open_run(finished)
    assert averaged.step == 20
    assert checkpoint.damage(out / 'checkpoints', 20) is None
    saved = [runs.open_run(finished, step).params for step in (10, 20, 15)]
    assert_mean(averaged.params, saved, [1, 3, 0.5] if weights else [1, 1, 1])
    assert trees.first_difference(averaged.params, source.params)
    assert averaged.config == source.config | {'ema_decay': 0.0}
    np.testing.assert_array_equal(averaged.batches[3]['inputs'], source.batches[3]['inputs'])
    made_of = json.loads((out / 'average.json').read_text())
    assert made_of == {
        'workdir': str(finished),
        'steps': [10, 20, 15],
        'parts': ['ema_params'] * 3,
        'weights': [1, 3, 0.5] if weights else [1, 1, 1],
    }


def test_the_average_of_one_step_is_that_step(finished, tmp_path):
    run('average', f'--workdir={finished}', '--steps=15', f'--out={tmp_path / "one"}')
    one, step = runs.open_run(tmp_path / 'one'), runs.open_run(finished, 15)
    assert trees.first_difference(one.params, step.params) is None


def test_an_average_is_evaluated_and_generates(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'average'
    run('average', f'--workdir={finished}', '--steps=15,20', f'--out={out}')
    capsys.readouterr()
    monkeypatch.setattr('sys.argv', ['evaluate', f'--workdir={out}'])
    evaluate.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures['step'] == 20
    last = json.loads((finished / 'summary.json').read_text())['final']
    assert figures['valid/loss'] == pytest.approx(last['valid/loss'], rel=0.2)
    monkeypatch.setattr(
        'sys.argv', ['generate', f'--workdir={out}', '--prompt=def ', '--max_new_tokens=3']
    )
    generate.main()
    assert capsys.readouterr().out.startswith('def ')


def test_training_does_not_go_on_from_an_average(tmp_path):
    config = commands.tiny_text_config(tmp_path)
    workdir, out = tmp_path / 'run', tmp_path / 'average'
    train_lib.train(config, workdir)
    run('average', f'--workdir={workdir}', '--steps=10,20', f'--out={out}')
    for resume in ('same', 'changed'):
        with pytest.raises(errors.UserError, match='holds an average of checkpoints'):
            train_lib.train(config, out, resume)
    assert runs.open_run(out).step == 20
    train_lib.train(config, out, 'restart')
    assert not (out / 'average.json').exists()
    assert trees.first_difference(runs.open_run(out).params, runs.open_run(workdir).params) is None
    assert (tmp_path / 'average.1' / 'average.json').is_file()


def test_the_model_state_of_an_average_is_the_last_step_s(tmp_path, capsys):
    config = config_lib.load(
        f'{commands.ROOT}/configs/digits_mlp.py:tiny',
        [f'model.name={__name__}.Normed', 'model.num_classes=10'],
    )
    workdir, out = tmp_path / 'run', tmp_path / 'average'
    train_lib.train(config, workdir)
    capsys.readouterr()
    run('average', f'--workdir={workdir}', '--steps=20,10', f'--out={out}')
    assert 'BatchNorm, is that of step 20' in capsys.readouterr().out
    averaged, last, first = (
        runs.open_run(directory, step, trust=('tests',))
        for directory, step in ((out, 20), (workdir, 20), (workdir, 10))
    )
    assert trees.first_difference(averaged.model_state, last.model_state) is None
    assert trees.first_difference(averaged.model_state, first.model_state)
    assert_mean(averaged.params, [last.params, first.params], [1, 1])


def test_parameters_of_other_shapes_have_no_average(copied, tmp_path):
    directory = copied / 'checkpoints'
    saver = checkpoint.Saver(directory, checkpoint.Settings(keep_last=9))
    other = {'embed': {'embedding': jnp.ones((3, 2))}}
    saver.save(25, TrainState(jnp.asarray(25), other, {}, (), None), {})
    assert saver.close() is None
    with pytest.raises(errors.UserError, match='Steps 20 and 25 .* other names'):
        run('average', f'--workdir={copied}', '--steps=20,25', f'--out={tmp_path / "x"}')
    assert not (tmp_path / 'x').exists()


def test_a_failed_save_is_no_run(finished, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, '_sha256', full)
        patch.setattr(checkpoint, 'good_step', lambda directory, step, settings: step)
        with pytest.raises(errors.UserError, match='cannot be saved .*No space left'):
            run('average', f'--workdir={finished}', '--steps=5', f'--out={tmp_path / "x"}')
    with pytest.raises(errors.UserError, match='holds no run'):
        runs.open_run(tmp_path / 'x')


def test_params_are_told(finished, capsys):
    run('params', f'--workdir={finished}', '--step=10')
    header, *rows, last = capsys.readouterr().out.splitlines()
    params = trees.flatten_named(runs.open_run(finished, 10).params)
    assert header.split() == ['name', 'shape', 'dtype', 'count', 'norm']
    assert [row.split()[0] for row in rows] == list(params)
    for row, leaf in zip(rows, params.values(), strict=True):
        *shape, dtype, count, norm = row.split()[1:]
        assert ' '.join(shape) == ' x '.join(map(str, leaf.shape))
        assert (dtype, count) == ('float32', f'{leaf.size:,}')
        assert float(norm) == pytest.approx(float(np.linalg.norm(leaf)), rel=1e-5)
    total = math.sqrt(sum(float((leaf**2).sum()) for leaf in params.values()))
    assert last.startswith('ema_params of step 10, ')
    assert float(last.split()[-1]) == pytest.approx(total, rel=1e-5)


def test_a_safetensors_file_reads_back_bitwise(finished, tmp_path):
    path = tmp_path / 'x.safetensors'
    run('params', f'--workdir={finished}', f'--out={path}')
    params = runs.open_run(finished).params
    assert 'layers/attention/query/kernel' in trees.flatten_named(params)
    read = safetensors.numpy.load_file(path)
    assert trees.first_difference(read, trees.flatten_named(params)) is None
    run('params', f'--workdir={finished}', f'--out={path}', '--unstacked', '--step=best')
    best = runs.open_run(finished, 'best').params
    unstacked = trees.flatten_named(transformer.unstack_layers(best))
    assert 'layers_1/attention/query/kernel' in unstacked
    read = safetensors.numpy.load_file(path)
    assert trees.first_difference(read, unstacked) is None


def test_any_layout_shape_and_dtype_is_written_as_it_is(tmp_path):
    tree = {
        'transposed': np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        'strided': np.arange(10)[::3],
        'scalar': np.asarray(2.5),
        'empty': np.zeros((0, 3), np.float32),
        'short': np.asarray(jnp.arange(4, dtype=jnp.bfloat16) / 3),
    }
    values.write_safetensors(tmp_path / 'x.safetensors', tree)
    assert (
        trees.first_difference(safetensors.numpy.load_file(tmp_path / 'x.safetensors'), tree)
        is None
    )


def test_only_what_is_needed_is_read(copied, tmp_path):
    """Neither the optimiser's state, nor params that an average stands for, nor the model."""
    for part in ('opt_state', 'params'):
        shutil.rmtree(copied / 'checkpoints' / '20' / part / 'd')
    kept = config_lib.read(copied / 'config.json').to_dict()
    kept['model'] = {'name': 'no.such.Model'}
    rundir.write_json(copied / 'config.json', kept)
    read = values.read(copied / 'checkpoints', 20, 'ema_params')
    assert trees.count(read) > 0
    run('list', f'--workdir={copied}')
    run('params', f'--workdir={copied}', '--step=15')


MISTAKES = {
    'no run': (['list', '--workdir=nowhere'], ['nowhere holds no run', 'config.json']),
    'no step': (['verify', '--workdir={run}', '--step=7'], ['it has steps: 5, 10, 15, 20']),
    'no step to show': (['params', '--workdir={run}', '--step=7'], ['has steps: 5, 10, 15, 20']),
    'no number': (['params', '--workdir={run}', '--step=lst'], ['has no such checkpoint']),
    'damaged step': (['params', '--workdir={run}', '--step=10'], ['10', 'is damaged', 'checksum']),
    'another suffix': (['params', '--workdir={run}', '--out=x.npz'], ['x.npz', '.safetensors']),
    'no such folder': (
        ['params', '--workdir={run}', '--out={run}/no/x.safetensors'],
        ['x.safetensors cannot be written', 'No such file'],
    ),
    'no step to average': (
        ['average', '--workdir={run}', '--steps=5,7', '--out={run}/x'],
        ['has steps: 5, 10, 15, 20'],
    ),
    'damage to average': (
        ['average', '--workdir={run}', '--steps=5,10', '--out={run}/x'],
        ['Checkpoint 10', 'is damaged'],
    ),
    'one step twice': (
        ['average', '--workdir={run}', '--steps=5,5', '--out={run}/x'],
        ['steps 5, 5 name one twice'],
    ),
    'too few weights': (
        ['average', '--workdir={run}', '--steps=5,15', '--weights=1', '--out={run}/x'],
        ['1 weights for 2 steps'],
    ),
    'a negative weight': (
        ['average', '--workdir={run}', '--steps=5,15', '--weights=1,-1', '--out={run}/x'],
        ['weights 1.0, -1.0 must be positive'],
    ),
    'no weights': (
        ['average', '--workdir={run}', '--steps=5,15', '--weights=1,nan', '--out={run}/x'],
        ['weights 1.0, nan must be positive'],
    ),
    'a directory in use': (
        ['average', '--workdir={run}', '--steps=5,15', '--out={run}'],
        ['exists already', '--out'],
    ),
    'a directory that cannot be': (
        ['average', '--workdir={run}', '--steps=5,15', '--out={run}/config.json/x'],
        ['config.json/x cannot be written'],
    ),
    'no steps': (
        ['average', '--workdir={run}', '--steps=5;15', '--out={run}/x'],
        ["'5;15' is no list of int values such as 10,20"],
    ),
    'no command': (['--workdir={run}'], ['list|verify|average|params']),
}


@pytest.fixture(scope='module')
def harmed(finished, tmp_path_factory):
    """A run whose step 10 is damaged."""
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp('harmed') / 'run')
    flip_a_bit(workdir / 'checkpoints' / '10', 'ema_params')
    return workdir


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_gets_one_paragraph_and_status_2(harmed, monkeypatch, capsys, mistake):
    arguments, named = MISTAKES[mistake]
    arguments = [argument.format(run=harmed) for argument in arguments]
    monkeypatch.setattr('sys.argv', ['checkpoint', *arguments])
    before = sorted(harmed.rglob('*'))
    with pytest.raises(SystemExit) as stopped:
        errors.exit_on_user_error(tool.main)
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    for text in named:
        assert text in said
    assert sorted(harmed.rglob('*')) == before


def test_a_damaged_step_is_not_opened_by_its_number(harmed):
    with pytest.raises(errors.UserError, match='Checkpoint 10 .* is damaged: the checksum of'):
        runs.open_run(harmed, 10)
    assert runs.open_run(harmed, 15).step == 15


def test_a_run_without_steps(copied, capsys):
    shutil.rmtree(copied / 'checkpoints')
    run('list', f'--workdir={copied}')
    assert 'has no saved step' in capsys.readouterr().out
    with pytest.raises(errors.UserError, match='it has steps: none'):
        run('verify', f'--workdir={copied}')


def test_the_command_keeps_to_the_cpu_unless_told(finished, monkeypatch):
    chosen = jax.config.jax_platforms
    monkeypatch.setattr('sys.argv', ['checkpoint', 'list', f'--workdir={finished}'])
    try:
        for given, expected in (('cpu,tpu', 'as it was'), (None, 'cpu')):
            jax.config.update('jax_platforms', 'as it was')
            if given is None:
                monkeypatch.delenv('JAX_PLATFORMS', raising=False)
            else:
                monkeypatch.setenv('JAX_PLATFORMS', given)
            tool.main()
            assert jax.config.jax_platforms == expected
    finally:
        jax.config.update('jax_platforms', chosen)
