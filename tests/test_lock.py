"""One run at a time in a directory, however the one before it ended."""

import json
import os
import socket
import time

import pytest

from bigmodels import errors, lock, rundir
from bigmodels import train as train_lib
from tests import commands, test_train

HOLDER = f'process {os.getpid()} on {socket.gethostname()}, since 20'


@pytest.mark.parametrize('resume', ['same', 'changed', 'restart'])
def test_a_second_run_is_told_who_is_there(digits_run, resume):
    config = test_train.digits_config()
    before = sorted(digits_run.iterdir())
    with (
        rundir.held(digits_run, 'same'),
        pytest.raises(errors.UserError, match=f'under way in .*{HOLDER}.*--workdir'),
    ):
        train_lib.train(config, digits_run, resume)
    assert sorted(digits_run.iterdir()) == before
    assert not digits_run.with_name(digits_run.name + '.1').exists()


def test_is_released_at_the_end_and_after_an_error(tmp_path):
    wrong = test_train.digits_config(**{'optimizer.schedule.warmup_steps': 50})
    with pytest.raises(errors.UserError, match='warmup_steps'):
        train_lib.train(wrong, tmp_path)
    with rundir.held(tmp_path, 'same'):
        assert json.loads((tmp_path / lock.NAME).read_text())['pid'] == os.getpid()


def test_the_lock_alone_is_no_run(tmp_path):
    for _ in range(2):
        with rundir.held(tmp_path, 'restart'):
            assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    assert not tmp_path.with_name(tmp_path.name + '.1').exists()


def test_a_restart_holds_the_new_directory(digits_run):
    with rundir.held(digits_run, 'restart'):
        assert [path.name for path in digits_run.iterdir()] == [lock.NAME]
        with pytest.raises(errors.UserError, match=HOLDER), rundir.held(digits_run, 'same'):
            pass
    with rundir.held(digits_run.with_name(digits_run.name + '.1'), 'same'):
        pass


def test_a_start_that_meets_a_restart_holds_what_has_the_name_then(tmp_path, monkeypatch):
    workdir, aside = tmp_path / 'run', tmp_path / 'run.1'
    workdir.mkdir()
    real = lock.fcntl.flock

    def late(file, operation):
        if not aside.exists():
            workdir.rename(aside)
        real(file, operation)

    monkeypatch.setattr(lock.fcntl, 'flock', late)
    taken = lock.Lock(workdir)
    with pytest.raises(errors.UserError, match=HOLDER):
        lock.Lock(workdir)
    lock.Lock(aside).release()
    taken.release()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, capsys):
    def unsupported(file, operation):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr(lock.fcntl, 'flock', unsupported)
    train_lib.train(test_train.digits_config(), tmp_path)
    assert 'cannot be locked (Operation not supported)' in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock_and_a_running_one_does(tmp_path):
    arguments = [
        '--config=configs/digits_mlp.py:tiny',
        '--config.total_steps=100000',
        f'--workdir={tmp_path / "run"}',
    ]
    process = commands.start('bigmodels.main', *arguments)
    for line in process.stderr:
        if line.startswith('step 20/'):
            break
    status, _, err = commands.train(*arguments, '--resume=restart')
    assert status == 2
    assert f'process {process.pid} on {socket.gethostname()}' in err
    assert 'Traceback' not in err
    process.kill()
    process.wait()
    time.sleep(0.1)  # the kernel closes its files
    with rundir.held(tmp_path / 'run', 'same'):
        assert (tmp_path / 'run' / rundir.CONFIG).is_file()
