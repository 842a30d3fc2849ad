"""A run that is asked to stop saves its step, says so, and goes on as if nothing had been."""

import os
import re
import signal
import threading
import time

import pytest

from bigmodels import checkpoint, errors, rundir, trees
from bigmodels import train as train_lib
from tests import commands, test_processes, test_train

SETTINGS = {'total_steps': 40, 'log_every': 1, 'checkpoint.every': 15, 'eval_every': 12}


def config(**values):
    return test_train.digits_config(**(SETTINGS | {'ema_decay': 0.9} | values))


def signal_at(monkeypatch, where: str, number: signal.Signals, call: int = 1):
    """Sends this process a signal in the middle of a call of one of the loop's parts."""
    owner, name = {
        'step': (train_lib.writers.Reporter, 'add'),
        'save': (checkpoint.Saver, 'save'),
        'evaluation': (train_lib.evaluate.sharding, 'put_batch'),
        'restore': (checkpoint, 'restore'),
        'summary': (train_lib.writers, 'plot_curves'),
    }[where]
    real, calls = getattr(owner, name), []

    def wrapped(*arguments, **named):
        calls.append(name)
        result = real(*arguments, **named)
        if len(calls) == call:
            signal.raise_signal(number)
        return result

    monkeypatch.setattr(owner, name, wrapped)


def saved(workdir):
    return checkpoint.steps(workdir / rundir.CHECKPOINTS)


@pytest.fixture(scope='module')
def through(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('through')
    train_lib.train(config(), workdir)
    return workdir


# Batches are put on the devices by steps and evaluations: 13 is in the evaluation after step 12,
# 58 in the one after step 40.
@pytest.mark.parametrize(
    ('where', 'call', 'stopped_at'),
    [('step', 20, 20), ('step', 12, 12), ('evaluation', 13, 12), ('save', 2, 16), ('step', 40, 40)],
)
def test_the_step_is_saved_and_the_resumed_run_equals_the_uninterrupted(
    through, tmp_path, monkeypatch, where, call, stopped_at
):
    with monkeypatch.context() as patch:
        signal_at(patch, where, signal.SIGTERM, call)
        with pytest.raises(errors.Stopped, match=f'SIGTERM: step {stopped_at} is saved') as stopped:
            train_lib.train(config(), tmp_path)
    assert stopped.value.code == 0
    assert saved(tmp_path)[-1] == stopped_at
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train_lib.train(config(), tmp_path)
    expected, values = (commands.arrays(workdir, 40) for workdir in (through, tmp_path))
    assert trees.first_difference(expected, values) is None
    assert test_train.same_metrics(through, tmp_path)
    names = [(workdir / 'summary.json').read_text() for workdir in (through, tmp_path)]
    finals = [text[: text.index('"seconds"')] for text in names]
    assert finals[0] == finals[1]


def test_stops_at_once_before_the_first_step_and_after_the_last(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 'summary', signal.SIGTERM)
        with pytest.raises(errors.Stopped, match='The last saved step is 40') as stopped:
            train_lib.train(config(), tmp_path)
    assert stopped.value.code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 'restore', signal.SIGINT)
        with pytest.raises(errors.Stopped, match='SIGINT.*The last saved step is 40') as stopped:
            train_lib.train(config(), tmp_path)
    assert stopped.value.code == 130
    assert not (tmp_path / 'summary.json').exists()
    train_lib.train(config(), tmp_path)
    assert (tmp_path / 'summary.json').exists()


def test_a_figure_of_an_evaluation_made_up_for_counts_for_the_best_step(tmp_path, monkeypatch):
    values = {'checkpoint.best_metric': 'valid/loss', 'checkpoint.best_mode': 'max'}
    with monkeypatch.context() as patch:
        signal_at(patch, 'evaluation', signal.SIGTERM, 13)
        with pytest.raises(errors.Stopped):
            train_lib.train(config(**values), tmp_path)
    directory = tmp_path / rundir.CHECKPOINTS
    assert checkpoint.figures(directory, 12) == {}
    train_lib.train(config(**values), tmp_path)
    assert checkpoint.figures(directory, 12)['valid/loss'] > 1
    assert saved(tmp_path)[0] == 12  # the worst, kept as the best of 'max'


def test_a_save_that_fails_is_told_and_the_status_is_not_0(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, 'No space left on device')

    signal_at(monkeypatch, 'step', signal.SIGTERM, 3)
    monkeypatch.setattr(checkpoint, '_sha256', full)
    with pytest.raises(errors.Stopped, match='step 3 is not saved. No step was saved') as stopped:
        train_lib.train(config(), tmp_path)
    assert stopped.value.code == 1


def test_no_handlers_in_other_threads(tmp_path):
    """Python allows them in the main thread only; training works without."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train_lib.train(config(total_steps=3), tmp_path))
    )
    thread.start()
    thread.join()
    assert results[0].keys() == {'valid/loss', 'valid/accuracy'}


def until_step(process, step: int) -> None:
    """Reads a run's lines until it has logged a step."""
    for line in process.stderr:
        if line.startswith(f'step {step}/'):
            return
    raise AssertionError(f'the run ended before step {step}')


LONG = ['--config=configs/digits_mlp.py:tiny', '--config.total_steps=100000']


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_ends_with_a_message(tmp_path, number, status):
    workdir = tmp_path / 'run'
    process = commands.start('bigmodels.main', *LONG, f'--workdir={workdir}')
    until_step(process, 100)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert f'{number.name}: step {saved(workdir)[-1]} is saved. The same command goes on' in err
    assert 'Traceback' not in err


def hanging_run(workdir, deadline: int):
    """A run after Ctrl-C, in a save that does not end; step 10 is saved."""
    process = commands.start(
        'tests.hanging_save', *LONG, '--config.checkpoint.every=10',
        f'--config.checkpoint.deadline={deadline}', f'--workdir={workdir}',
    )  # fmt: skip
    until_step(process, 15)
    process.send_signal(signal.SIGINT)
    return process


def test_the_deadline_ends_a_save_that_hangs(tmp_path):
    process = hanging_run(tmp_path, deadline=3)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'not saved within config.checkpoint.deadline = 3 s. The last saved step is 10' in err
    assert checkpoint.newest_good(tmp_path / rundir.CHECKPOINTS) == (10, {})


def test_a_second_interrupt_ends_a_save_that_hangs(tmp_path):
    process = hanging_run(tmp_path, deadline=3600)
    time.sleep(1)
    assert process.poll() is None
    while process.poll() is None:  # on a busy machine two signals may arrive as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    process.communicate()
    assert process.returncode == -signal.SIGINT  # of which shells make 130
    assert checkpoint.newest_good(tmp_path / rundir.CHECKPOINTS) == (10, {})


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    process, pids = test_processes.start_endless(tmp_path / 'run', '--config.log_every=1')
    os.kill(pids[1], signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    step, damaged = checkpoint.newest_good(tmp_path / 'run' / rundir.CHECKPOINTS)
    assert step > 6
    assert not damaged
    assert f'step {step}/' in err
    assert f'step {step + 1}/' not in err
    for index in range(2):
        assert f'[{index}] Stopped by SIGTERM: step {step} is saved' in err


@pytest.mark.slow
def test_a_signal_cuts_an_evaluation_of_two_processes_short(tmp_path):
    path = tmp_path / 'long.py'
    path.write_text(
        'import time\n'
        'from bigmodels import evaluate\n'
        'from configs import digits_mlp\n'
        'def slow(eval_step, task, params, state, sets, mesh, stop, real=evaluate.evaluate):\n'
        '    def asked():\n'
        '        print("evaluates", flush=True)\n'
        '        time.sleep(0.1)\n'
        '        return stop()\n'
        '    many = {str(i): batches for i in range(10_000) for batches in sets.values()}\n'
        '    return real(eval_step, task, params, state, many, mesh, stop=asked)\n'
        'def get_config(variant):\n'
        '    evaluate.evaluate = slow\n'
        '    return digits_mlp.get_config("tiny")\n'
    )
    process = commands.start(
        'bigmodels.launch', '--processes=2', '--', f'--config={path}', '--config.eval_every=8',
        f'--workdir={tmp_path}/run', '--config.checkpoint.best_metric=',
    )  # fmt: skip
    pids = []
    for line in process.stderr:
        if found := re.match(r'launch: process \d is pid (\d+)', line):
            pids.append(int(found[1]))
        if len(pids) == 2:
            break
    for line in process.stdout:
        if 'evaluates' in line:
            break
    os.kill(pids[1], signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    for index in range(2):
        assert f'[{index}] Stopped by SIGTERM: step 8 is saved' in err
