"""The loop at a user's distance: trains, learns, resumes exactly, stops for a reason."""

import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from bigmodels import checkpoint, errors, rundir, runs, trees, writers
from bigmodels import config as config_lib
from bigmodels import train as train_lib
from tests import commands

DIGITS = 'configs/digits_mlp.py:tiny'


def digits_config(**values):
    config = config_lib.load(str(commands.ROOT / DIGITS))
    config.update_from_flattened_dict(values)
    return config


def same_metrics(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs logged the same rows, but for their speed."""
    rows = [
        [
            {key: value for key, value in row.items() if not key.startswith('perf/')}
            for row in writers.read_metrics(workdir / 'metrics.jsonl')
        ]
        for workdir in (one, other)
    ]
    return rows[0] == rows[1] and len(rows[0]) > 0


def test_digits_are_learnt_to_over_95_percent(tmp_path):
    config = digits_config(total_steps=300)
    config.optimizer.schedule.warmup_steps = 20
    figures = train_lib.train(config, tmp_path)
    assert figures['valid/accuracy'] > 0.95
    assert {path.name for path in tmp_path.iterdir()} >= {
        'config.json',
        'checkpoints',
        'metrics.jsonl',
        'tensorboard',
        'curves.png',
        'summary.json',
    }
    assert (tmp_path / 'curves.png').read_bytes()[:4] == b'\x89PNG'
    startup = json.loads((tmp_path / 'summary.json').read_text())['startup_seconds']
    assert list(startup) == ['devices', 'data', 'program', 'compilation', 'state']
    assert list((tmp_path / 'tensorboard').glob('events*'))
    run = runs.open_run(tmp_path)
    assert run.step == 300
    images = np.stack([run.task.preprocess({'image': np.full((8, 8), 7)})['inputs']])
    assert run.task.predict(run.params, run.model_state, {'inputs': images}).shape == (1, 10)


def test_a_finished_run_says_so_and_gives_its_figures(tmp_path, capsys):
    first = train_lib.train(digits_config(), tmp_path)
    capsys.readouterr()
    before = (tmp_path / 'metrics.jsonl').read_bytes()
    assert train_lib.train(digits_config(), tmp_path) == first
    assert 'is complete at step 20' in capsys.readouterr().out
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before


def test_stopping_and_resuming_equals_going_through(tmp_path):
    through, stopped = tmp_path / 'through', tmp_path / 'stopped'
    settings = {'ema_decay': 0.9, 'checkpoint.every': 6, 'eval_every': 6, 'log_every': 1}
    train_lib.train(digits_config(**settings), through)
    shutil.copytree(through, stopped)
    (stopped / 'summary.json').unlink()
    for step in checkpoint.steps(stopped / rundir.CHECKPOINTS)[1:]:
        shutil.rmtree(stopped / rundir.CHECKPOINTS / str(step))
    train_lib.train(digits_config(**settings), stopped)
    assert trees.first_difference(*(commands.arrays(run, 20) for run in (through, stopped))) is None
    assert same_metrics(through, stopped)


@pytest.mark.slow
def test_killed_at_random_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    """SIGKILL, dropout, EMA, every state in the checkpoint: bit for bit."""
    monkeypatch.setenv('PYTHONPATH', str(commands.ROOT / 'experiments'))
    process = commands.start('chaos', '--kills=2', f'--results={tmp_path}')
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, out + err
    report = json.loads((tmp_path / 'chaos.json').read_text())
    assert report['differences_from_the_uninterrupted_run'] == []
    assert report['damaged_checkpoints_found'] == 0
    assert sum(report['fell'].values()) == report['kills'] == 2
    assert report['runs_completed'] > 0


def test_a_run_of_before_there_was_a_setting_goes_on(digits_run):
    shutil.rmtree(digits_run / rundir.CHECKPOINTS / '20')
    kept = json.loads((digits_run / rundir.CONFIG).read_text())
    del kept['compress'], kept['privacy'], kept['adapter']['alpha']
    (digits_run / rundir.CONFIG).write_text(json.dumps(kept))
    train_lib.train(digits_config(), digits_run)
    assert checkpoint.steps(digits_run / rundir.CHECKPOINTS)[-1] == 20


def test_another_config_is_refused_unless_asked_for(digits_run):
    longer = digits_config(total_steps=24)
    with pytest.raises(errors.UserError, match=r'total_steps: 20 -> 24[^$]*--resume=changed'):
        train_lib.train(longer, digits_run)
    train_lib.train(longer, digits_run, resume='changed')
    assert checkpoint.steps(digits_run / rundir.CHECKPOINTS)[-1] == 24
    train_lib.train(digits_config(log_every=2), digits_run, resume='restart')
    assert checkpoint.steps(digits_run / rundir.CHECKPOINTS)[-1] == 20
    assert (digits_run.with_name(digits_run.name + '.1') / 'summary.json').is_file()


def test_a_folder_without_a_name_is_not_moved_aside(digits_run, monkeypatch):
    monkeypatch.chdir(digits_run)
    with pytest.raises(errors.UserError, match='cannot be moved aside: run from the folder above'):
        train_lib.train(digits_config(log_every=2), pathlib.Path(), resume='restart')
    train_lib.train(digits_config(), pathlib.Path())


@pytest.mark.parametrize(
    ('mistyped', 'told'),
    [
        ('optimizer.learningrate=1', "Unknown key in config.optimizer 'learningrate'.*_rate"),
        ('optimizer.algorithm.beta=1', "Unknown key in config.optimizer.algorithm 'beta'"),
        (
            'optimizer.schedule.warmup=1',
            "Unknown key in config.optimizer.schedule 'warmup'.*warmup_steps",
        ),
        ('optimizer.learning_rate=fast', "learning_rate = 'fast' has the wrong type"),
    ],
)
def test_what_is_mistyped_is_not_another_config(digits_run, mistyped, told):
    config = digits_config()
    config_lib.set_fields(config, [mistyped])
    with pytest.raises(errors.UserError, match=f'(?s){told}'):
        train_lib.train(config, digits_run)


def test_execution_settings_may_change_on_resume(digits_run):
    (digits_run / 'summary.json').unlink()
    changed = digits_config(log_every=3, **{'mesh.data': 2, 'mesh.fsdp': -1, 'data.threads': 0})
    train_lib.train(changed, digits_run)
    assert (digits_run / 'summary.json').is_file()
    assert not list(digits_run.parent.glob(f'{digits_run.name}.*'))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = digits_config(
        **{'optimizer.learning_rate': 1e38, 'optimizer.clip_norm': None, 'checkpoint.every': 1}
    )
    with pytest.raises(errors.UserError, match=r'At step \d+ \(batch \d+\) the loss is') as raised:
        train_lib.train(config, tmp_path)
    step, damaged = checkpoint.newest_good(tmp_path / rundir.CHECKPOINTS)
    assert not damaged
    assert (step or 0) == int(str(raised.value).split()[2]) - 1
    if step is not None:
        values = commands.arrays(tmp_path, step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values['params']))


def test_saving_goes_on_after_a_full_disk(tmp_path, monkeypatch, capsys):
    real, failed = checkpoint._sha256, []

    def full_once(path):
        if '10.' in str(path) and not failed:
            failed.append(path)
            raise OSError(28, 'No space left on device')
        return real(path)

    monkeypatch.setattr(checkpoint, '_sha256', full_once)
    train_lib.train(digits_config(), tmp_path)
    assert 'WARNING: step 10 was not saved' in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / rundir.CHECKPOINTS) == [20]


def test_any_step_can_be_computed_alone(tmp_path):
    """batch(t) and rng(t) are functions of (config, seed, t): step 11 from checkpoint 10."""
    train_lib.train(digits_config(**{'log_every': 1}), tmp_path)
    logged = {
        row['step']: row
        for row in writers.read_metrics(tmp_path / 'metrics.jsonl')
        if 'train/loss' in row
    }
    run = runs.open_run(tmp_path)
    program = run.program()
    state = checkpoint.restore(tmp_path / rundir.CHECKPOINTS, 10, program.state_shapes)
    _, metrics = jax.jit(program.train_step)(state, run.batches[10])
    np.testing.assert_allclose(
        metrics['loss'][0] / metrics['loss'][1], logged[11]['train/loss'], rtol=1e-6
    )
    assert json.loads((tmp_path / 'summary.json').read_text())['step'] == 20


def test_a_sequence_split_over_devices(tmp_path, capsys):
    overrides = ['total_steps=4', 'mesh.data=2', 'mesh.sequence=4']
    config = commands.tiny_text_config(tmp_path, overrides)
    split = train_lib.train(config, tmp_path / 'split')
    words = 'attention ring (auto: the sequence is split over 4 devices)'
    assert words in ' '.join(capsys.readouterr().err.split())
    config.mesh.data, config.mesh.sequence = -1, 1
    whole = train_lib.train(config, tmp_path / 'whole')
    np.testing.assert_allclose(split['valid/loss'], whole['valid/loss'], rtol=1e-5)
    config.mesh.sequence, config.task.sequence_length = 4, 36
    with pytest.raises(errors.UserError, match='A sequence of 36 tokens does not split'):
        train_lib.train(config, tmp_path / 'uneven')


def test_a_mistake_leaves_no_run_behind(tmp_path):
    """A key that only the optimiser would miss, mended, starts as if nothing had been."""
    with pytest.raises(errors.UserError, match='clip_nrm'):
        train_lib.train(
            config_lib.load(str(commands.ROOT / DIGITS), ['optimizer.clip_nrm=1.0']), tmp_path
        )
    assert not (tmp_path / 'config.json').exists()
    train_lib.train(digits_config(), tmp_path)


def test_a_config_that_does_not_fit_the_checkpoint_changes_nothing(digits_run):
    first = train_lib.train(digits_config(), digits_run)
    wider = digits_config(**{'model.hidden_dims': (16, 16), 'total_steps': 30})
    with pytest.raises(errors.UserError, match='does not fit the config'):
        train_lib.train(wider, digits_run, resume='changed')
    assert train_lib.train(digits_config(), digits_run) == first


def test_other_training_data_is_refused_on_resume(tmp_path):
    config = commands.tiny_text_config(tmp_path)
    train_lib.train(config, tmp_path / 'run')
    (tmp_path / 'run' / 'summary.json').unlink()
    with (tmp_path / 'input.txt').open('a') as file:
        file.write('one more line\n')
    with pytest.raises(errors.UserError, match='not what the run .* began with'):
        train_lib.train(config, tmp_path / 'run')
    train_lib.train(config, tmp_path / 'run', resume='changed')


def test_the_figures_of_a_shorter_run_are_not_taken_for_those_of_a_longer(digits_run):
    summary = (digits_run / 'summary.json').read_text()
    figures = train_lib.train(digits_config(total_steps=24), digits_run, resume='changed')
    (digits_run / 'summary.json').write_text(summary)  # as if killed before the new one
    assert train_lib.train(digits_config(total_steps=24), digits_run) == figures


def test_the_best_step_is_kept(tmp_path):
    config = digits_config(
        **{
            'total_steps': 60,
            'eval_every': 10,
            'optimizer.learning_rate': 3e-3,
            'checkpoint.every': 1000,
            'checkpoint.keep_last': 1,
            'checkpoint.best_metric': 'valid/loss',
            'checkpoint.best_mode': 'max',
        }
    )
    train_lib.train(config, tmp_path)  # the first is the worst, kept as the best of 'max'
    assert checkpoint.steps(tmp_path / rundir.CHECKPOINTS) == [10, 60]
    assert runs.open_run(tmp_path, 'best').step == 10
    config.checkpoint.best_metric = 'valid/los'
    with pytest.raises(errors.UserError, match="'valid/loss'"):
        train_lib.train(config, tmp_path, resume='restart')


def test_a_set_that_does_not_fit_is_named_before_the_first_step(tmp_path):
    np.savez(tmp_path / 'other.npz', image=np.zeros((4, 6, 6), np.uint8), label=np.arange(4))
    config = digits_config()
    with config.unlocked():
        config.data.evals.other = dict(name='npz', path=str(tmp_path / 'other.npz'))
    message = r'evals\.other does not fit .* inputs \[8, 8\].* It has inputs \[6, 6\]'
    with pytest.raises(errors.UserError, match=message):
        train_lib.train(config, tmp_path / 'run')
    assert not checkpoint.steps(tmp_path / 'run' / rundir.CHECKPOINTS)


def test_a_stop_waits_for_the_save_under_way(tmp_path, monkeypatch):
    real = checkpoint._sha256

    def slow(path):
        time.sleep(0.02)
        return real(path)

    monkeypatch.setattr(checkpoint, '_sha256', slow)
    monkeypatch.setattr(writers.Reporter, '_read', _stop_at_12(writers.Reporter._read))
    with pytest.raises(errors.UserError, match='stopped'):
        train_lib.train(digits_config(), tmp_path)
    assert checkpoint.newest_good(tmp_path / rundir.CHECKPOINTS) == (10, {})


def _stop_at_12(read):
    def reading(self, step, metrics):
        read(self, step, metrics if step < 12 else metrics | {'param_norm': np.float32(np.nan)})

    return reading
