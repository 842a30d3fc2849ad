"""A copy is complete or seen not to be, opens as a run, and goes on as one when copied back."""

import shutil

import pytest

from bigmodels import checkpoint, errors, rundir, runs, trees, writers
from bigmodels import train as train_lib
from bigmodels.checkpoint import copies
from tests import test_train


def config(target, **values):
    config = test_train.digits_config(**values)
    with config.unlocked():
        config.checkpoint.copy_to = str(target)
    return config


def test_a_copy_opens_as_a_run_and_goes_on_when_copied_back(tmp_path):
    run, copy, back = tmp_path / 'run', tmp_path / 'far' / 'copy', tmp_path / 'back'
    figures = train_lib.train(config(copy), run)
    assert checkpoint.newest_good(copy / rundir.CHECKPOINTS) == (20, {})
    opened = [runs.open_run(workdir) for workdir in (run, copy)]
    assert trees.first_difference(opened[0].params, opened[1].params) is None
    shutil.copytree(copy, back)
    shutil.rmtree(run)
    assert train_lib.train(config(copy), back) == figures
    assert writers.read_metrics(back / 'metrics.jsonl') == []  # no step was made again


def test_copies_are_pruned_with_their_steps_but_not_those_of_others(tmp_path):
    other = tmp_path / 'copy' / rundir.CHECKPOINTS / '7'
    other.mkdir(parents=True)
    values = {'checkpoint.every': 5, 'checkpoint.keep_last': 1, 'checkpoint.best_metric': ''}
    train_lib.train(config(tmp_path / 'copy', **values), tmp_path / 'run')
    assert checkpoint.steps(other.parent) == [7, 20]
    again = config(tmp_path / 'copy', total_steps=30, **values)
    train_lib.train(again, tmp_path / 'run', resume='changed')
    assert checkpoint.steps(other.parent) == [7, 30]


def test_a_copy_that_fails_is_told_and_made_up_for(tmp_path, monkeypatch, capsys):
    real = copies._copy

    def broken(source, target):
        if source.name == checkpoint.MANIFEST:
            raise ConnectionError('the network is down')
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(copies, '_copy', broken)
        train_lib.train(config(tmp_path / 'copy'), tmp_path / 'run')
    said = capsys.readouterr().err
    assert 'WARNING: ' in said
    assert 'step 20 was not copied to' in said
    assert 'ConnectionError: the network is down' in said
    with pytest.raises(errors.UserError, match='damaged'):  # cut short, and seen to be
        checkpoint.newest_good(tmp_path / 'copy' / rundir.CHECKPOINTS)
    (tmp_path / 'run' / 'summary.json').unlink()
    train_lib.train(config(tmp_path / 'copy'), tmp_path / 'run')
    assert checkpoint.newest_good(tmp_path / 'copy' / rundir.CHECKPOINTS) == (20, {})


def test_a_new_run_leaves_the_copy_of_another_as_it_is(tmp_path):
    run, copy = tmp_path / 'run', tmp_path / 'copy'
    figures = train_lib.train(config(copy), run)
    with pytest.raises(errors.UserError, match='has a copy of another run than .* up to step 20'):
        train_lib.train(config(copy), run, resume='restart')
    shutil.copytree(copy, run, dirs_exist_ok=True)
    assert train_lib.train(config(copy), run) == figures


def test_all_steps_of_a_run_are_copied_whenever_it_is_asked_for(tmp_path):
    values = {'checkpoint.every': 10, 'checkpoint.keep_last': 2}
    train_lib.train(test_train.digits_config(**values), tmp_path / 'run')
    (tmp_path / 'run' / 'summary.json').unlink()
    train_lib.train(config(tmp_path / 'copy', **values), tmp_path / 'run')
    assert checkpoint.steps(tmp_path / 'copy' / rundir.CHECKPOINTS) == [10, 20]


def test_a_target_that_cannot_be_written_is_a_mistake(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(errors.UserError, match='copy_to = .* cannot be written'):
        train_lib.train(config(tmp_path / 'file' / 'copy'), tmp_path / 'run')


def test_what_a_save_took_is_logged(tmp_path):
    train_lib.train(test_train.digits_config(log_every=1, total_steps=400), tmp_path)
    rows = writers.read_metrics(tmp_path / 'metrics.jsonl')
    noted = [row for row in rows if 'perf/seconds_saving' in row]
    assert noted
    assert all(row['perf/seconds_saving'] > 0 for row in noted)
    files = (tmp_path / rundir.CHECKPOINTS / '400').rglob('*')
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    assert noted[0]['perf/megabytes_saved'] == pytest.approx(megabytes, rel=0.2)
