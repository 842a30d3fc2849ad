"""What the storage can do to a run: a message, the last good step, and nothing good deleted."""

import resource
import shutil
import time

import pytest

from bigmodels import checkpoint, errors, rundir, trees
from bigmodels import train as train_lib
from tests import commands, test_train


def saved(workdir) -> list[int]:
    return checkpoint.steps(workdir / rundir.CHECKPOINTS)


def same_end(finished, workdir) -> bool:
    values = [commands.arrays(one, 20) for one in (finished, workdir)]
    return trees.first_difference(*values) is None and test_train.same_metrics(finished, workdir)


def truncate(step):
    largest = max((step / 'opt_state').rglob('*'), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])


def remove(step):
    (step / 'params' / 'manifest.ocdbt').unlink()


def remove_manifest(step):
    (step / checkpoint.MANIFEST).unlink()


def flip(step):
    file = next((step / 'params' / 'd').iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize('harm', [truncate, flip, remove, remove_manifest, empty])
def test_a_damaged_step_is_told_set_aside_and_made_again(finished_digits, digits_run, harm, capsys):
    harm(digits_run / rundir.CHECKPOINTS / '20')
    train_lib.train(test_train.digits_config(log_every=1), digits_run)
    said = capsys.readouterr()
    assert 'WARNING: checkpoint 20 is damaged and was set aside: ' in said.out
    assert 'resumed at step 10' in said.err
    assert (digits_run / rundir.CHECKPOINTS / '20.damaged').is_dir()
    assert same_end(finished_digits, digits_run)
    checkpoint.set_aside(digits_run / rundir.CHECKPOINTS, 20)
    assert (digits_run / rundir.CHECKPOINTS / '20.2.damaged').is_dir()


def test_what_a_killed_save_left_is_no_step(finished_digits, digits_run, capsys):
    checkpoints = digits_run / rundir.CHECKPOINTS
    (checkpoints / '20').rename(checkpoints / '20.orbax-checkpoint-tmp')
    train_lib.train(test_train.digits_config(log_every=1), digits_run)
    assert 'resumed at step 10' in capsys.readouterr().err
    assert sorted(path.name for path in checkpoints.iterdir()) == ['10', '20']
    assert same_end(finished_digits, digits_run)


def test_when_every_step_is_damaged_nothing_is_touched(digits_run):
    for step in saved(digits_run):
        remove_manifest(digits_run / rundir.CHECKPOINTS / str(step))
    before = sorted(digits_run.rglob('*'))
    with pytest.raises(errors.UserError, match='Every checkpoint.*Nothing was deleted'):
        train_lib.train(test_train.digits_config(log_every=1), digits_run)
    assert sorted(digits_run.rglob('*')) == before


def test_a_directory_that_nobody_can_write():
    with pytest.raises(errors.UserError, match='work directory /proc/run cannot be written'):
        train_lib.train(test_train.digits_config(), '/proc/run')


def test_every_save_has_a_time_limit(tmp_path, monkeypatch):
    real, given = checkpoint.ocp.options.AsyncOptions, []

    def recorded(**options):
        given.append(options)
        return real(**options)

    monkeypatch.setattr(checkpoint.ocp.options, 'AsyncOptions', recorded)
    checkpoint.Saver(tmp_path, checkpoint.Settings(timeout=7)).close()
    assert [options['timeout_secs'] for options in given] == [7]


def test_a_failed_save_is_told_at_the_next_step(tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(28, 'No space left on device')

    begin = checkpoint.Saver.save

    def to_its_end(self, *arguments):
        problem = begin(self, *arguments)
        while self._manager.is_saving_in_progress():
            time.sleep(0.01)
        return problem

    monkeypatch.setattr(checkpoint.Saver, 'save', to_its_end)
    monkeypatch.setattr(checkpoint, '_sha256', full)
    config = test_train.digits_config(
        log_every=1, total_steps=30, **{'checkpoint.every': 10, 'checkpoint.best_metric': ''}
    )
    with pytest.raises(errors.UserError, match='last step, 30, was not saved'):
        train_lib.train(config, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    [told] = [i for i, line in enumerate(lines) if 'step 10 was not saved' in line]
    # Lines of steps come two steps late, but for the one that is saved.
    assert lines[told - 1].startswith('step 10/')
    assert saved(tmp_path) == []


def command(workdir, largest_file: int = resource.RLIM_INFINITY) -> tuple[int, str, str]:
    """The same run by the command; it may write no larger file, as on a disk that is full."""
    arguments = (f'--config={test_train.DIGITS}', '--config.log_every=1', f'--workdir={workdir}')
    process = commands.start('bigmodels.main', *arguments, devices=8)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_the_command_on_a_disk_that_is_full_for_a_save(finished_digits, digits_run):
    shutil.rmtree(digits_run / rundir.CHECKPOINTS / '20')
    status, out, err = command(digits_run, largest_file=40_000)
    assert status == 2
    assert 'WARNING: step 20 was not saved' in err
    assert 'File too large' in err
    assert err.splitlines()[-1].startswith('error: The last step, 20, was not saved')
    assert 'Traceback' not in out + err
    assert saved(digits_run) == [10]
    status, _, err = command(digits_run)
    assert status == 0, err
    assert same_end(finished_digits, digits_run)


@pytest.mark.slow
def test_the_command_on_a_disk_that_is_full_for_the_plot(finished_digits, digits_run):
    (digits_run / 'summary.json').unlink()
    status, out, err = command(digits_run, largest_file=8_000)
    assert status == 2
    assert 'File too large' in err
    assert 'step 20 is the last' in err
    assert 'Traceback' not in out + err
    status, _, err = command(digits_run)
    assert status == 0, err
    assert same_end(finished_digits, digits_run)
    assert (digits_run / 'summary.json').is_file()
