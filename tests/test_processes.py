"""Runs of several processes: exact, elastic, and over for all when one is gone."""

import os
import re
import shutil
import signal
import socket
import sys
import time

import pytest

from bigmodels import (
    checkpoint,
    config,
    errors,
    experiment,
    launch,
    main,
    processes,
    rundir,
    writers,
)
from bigmodels import train as train_lib
from bigmodels.herald import Herald
from tests import commands

DIGITS = f'--config={commands.ROOT}/configs/digits_mlp.py:tiny'


def launched(count: int, devices: int, *arguments: str) -> str:
    """Standard error of a run of several processes that must succeed."""
    status, out, err = commands.run(
        'bigmodels.launch', f'--processes={count}', f'--devices={devices}', '--', *arguments
    )
    assert status == 0, out + err
    return err


def assert_same_figures(one, other) -> None:
    """The same rows and losses, but for the order of sums over devices."""
    rows = [writers.read_metrics(workdir / 'metrics.jsonl') for workdir in (one, other)]
    assert [row['step'] for row in rows[0]] == [row['step'] for row in rows[1]]
    compared = 0
    for mine, theirs in zip(*rows, strict=True):
        for name in {'train/loss', 'eval/valid/loss'} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), (mine, theirs)
            compared += 1
    assert compared == 22  # twenty steps, two evaluations


def ended_at_step_10(workdir, copy):
    """A copy of a run of 20 steps as it was after step 10."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / rundir.CHECKPOINTS / '20')
    (copy / 'summary.json').unlink()
    return copy


@pytest.fixture(scope='module')
def by_one(tmp_path_factory):
    """A run by one process, and its config: (directory, path, overrides)."""
    folder = tmp_path_factory.mktemp('one')
    path, overrides = commands.tiny_text(folder)
    overrides += ['log_every=1', 'eval_every=10']
    train_lib.train(config.load(path, overrides), folder / 'run')
    return folder / 'run', path, overrides


@pytest.mark.slow
def test_any_number_of_processes_trains_evaluates_and_resumes_as_one(by_one, tmp_path):
    one, path, overrides = by_one
    arguments = [f'--config={path}', *(f'--config.{override}' for override in overrides)]
    two, four = tmp_path / 'two', tmp_path / 'four'

    err = launched(2, 2, *arguments, f'--workdir={two}', '--config.mesh.fsdp=2')
    assert '[0] step 20/20' in err
    assert not re.search(r'^\[1\] (step|devices|loss) ', err, re.MULTILINE)
    assert_same_figures(one, two)

    typed = experiment.from_config(config.load(path, overrides))
    task = experiment.make_task(typed).restored(one / rundir.PREPROCESSING)
    held_out = experiment.evaluation_sets(typed, task)['valid']
    assert not held_out[len(held_out) - 1]['weights'].all()  # its size does not divide

    alone = ended_at_step_10(two, tmp_path / 'alone')
    train_lib.train(config.load(path, [*overrides, 'mesh.fsdp=4']), alone)
    assert_same_figures(one, alone)

    ended_at_step_10(two, four)
    err = launched(4, 1, *arguments, f'--workdir={four}', '--config.mesh.fsdp=2')
    assert 'resumed at step 10' in err
    assert_same_figures(one, four)


@pytest.mark.slow
def test_several_processes_learn_from_a_teacher_as_one(by_one, tmp_path):
    teacher, path, overrides = by_one
    one, two = tmp_path / 'one', tmp_path / 'two'
    overrides = [*overrides, f'distill.teacher={teacher}', 'model.num_layers=1']
    train_lib.train(config.load(path, overrides), one)
    arguments = [f'--config={path}', *(f'--config.{override}' for override in overrides)]
    launched(2, 2, *arguments, f'--workdir={two}', '--config.mesh.fsdp=2')
    assert_same_figures(one, two)


@pytest.mark.slow
def test_processes_feed_whatever_rows_their_devices_hold(capfd):
    status = launch.run([sys.executable, '-m', 'tests.feeding'], processes=2, devices=2)
    out, err = capfd.readouterr()
    assert status == 0, err
    assert {'[0] as fed by one process', '[1] as fed by one process'} <= set(out.splitlines())


def start_endless(workdir, *arguments: str):
    """A launched run of two processes that has made 6 steps: (the launcher, pids)."""
    process = commands.start(
        'bigmodels.launch', '--processes=2', '--', DIGITS, f'--workdir={workdir}',
        '--config.total_steps=1000000', '--config.log_every=2', *arguments,
    )  # fmt: skip
    pids = {}
    for line in process.stderr:
        if started := re.match(r'launch: process (\d) is pid (\d+)', line):
            pids[int(started[1])] = int(started[2])
        if line.startswith('[0] step 6/'):
            return process, pids
    raise AssertionError(f'the run ended with status {process.wait()} before step 6')


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP], ids=['kill', 'stop'])
def test_a_process_that_dies_or_hangs_ends_the_others_by_name(tmp_path, number, victim):
    """While they save at every step, so that mostly they are in the middle of it."""
    process, pids = start_endless(tmp_path / 'run', '--timeout=6', '--config.checkpoint.every=1')
    os.kill(pids[victim], number)
    began = time.monotonic()
    for line in process.stderr:
        if 'stops too' in line:
            break
    assert time.monotonic() - began < 30
    assert line.startswith(f'[{1 - victim}] error: process {victim} of 2 ')
    assert f', pid {pids[victim]})' in line
    assert 'ended or does not answer' in line
    assert f'process {1 - victim} of 2 ' in line
    assert re.search(rf'{tmp_path}/run is step \d+; the same command resumes there\.$', line)
    if number == signal.SIGSTOP:
        ended = next(line for line in process.stderr if line.startswith('launch:'))
        assert ended == f'launch: process {1 - victim} ended with status {processes.EXIT_STATUS}\n'
        os.kill(pids[victim], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    step, damaged = checkpoint.newest_good(tmp_path / 'run' / rundir.CHECKPOINTS)
    assert step >= 4
    assert not damaged


@pytest.mark.slow
def test_a_save_that_fails_in_one_process_ends_the_others(tmp_path):
    path = tmp_path / 'full.py'
    path.write_text(
        'import os\n'
        'from bigmodels import checkpoint\n'
        'from configs import digits_mlp\n'
        'def full(manager, step, *arguments, real=checkpoint._Manager.save, **options):\n'
        '    if step == 10 and os.environ["JAX_PROCESS_ID"] == "0":\n'
        '        raise OSError(28, "No space left on device")\n'
        '    return real(manager, step, *arguments, **options)\n'
        'def get_config(variant):\n'
        '    checkpoint._Manager.save = full\n'
        '    return digits_mlp.get_config("tiny")\n'
    )
    status, _, err = commands.run(
        'bigmodels.launch', '--processes=2', '--', f'--config={path}',
        f'--workdir={tmp_path}/run', '--timeout=60', '--config.checkpoint.every=5',
        '--config.checkpoint.best_metric=',
    )  # fmt: skip
    assert status == 2
    assert '[0] error: ' in err
    assert 'No space left on device' in err
    assert re.search(r'\[1\] error: process 0 of 2 \(.*\) stopped: ', err), err
    assert f'{tmp_path}/run is step 5; the same command resumes there.' in err
    assert 'Traceback' not in err


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_a_mistake_in_one_process_ends_the_others(tmp_path, failing):
    path = tmp_path / 'uneven.py'
    path.write_text(
        'import os\n'
        'from configs import digits_mlp\n'
        'def get_config(variant):\n'
        '    config = digits_mlp.get_config("tiny")\n'
        f'    if os.environ["JAX_PROCESS_ID"] == "{failing}":\n'
        '        config.batch_size = 65\n'
        '    return config\n'
    )
    status, _, err = commands.run(
        'bigmodels.launch', '--processes=2', '--',
        f'--config={path}', f'--workdir={tmp_path}/run', '--timeout=20',
    )  # fmt: skip
    assert status == 2
    assert f'[{failing}] error: config.batch_size / accumulate = 65 does not divide' in err
    told = rf'\[{1 - failing}\] error: process {failing} of 2 \(.*\) stopped: UserError: config.bat'
    assert re.search(told, err), err
    assert f'There is no checkpoint in {tmp_path}/run yet' in err
    assert 'Traceback' not in err


@pytest.mark.slow
def test_processes_that_do_not_come_are_not_waited_for_forever(tmp_path, monkeypatch):
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        address = f'localhost:{probe.getsockname()[1]}'
    for name, value in ((processes.ADDRESS, address), (processes.COUNT, '2')):
        monkeypatch.setenv(name, value)
    for index in ('0', '1'):
        monkeypatch.setenv(processes.INDEX, index)
        status, _, err = commands.train(
            DIGITS, f'--workdir={tmp_path}', '--distributed', '--timeout=1'
        )
        assert status == processes.EXIT_STATUS
        assert re.match(f'error: after 3 s this process, {index} of 2 on .* at {address}', err)


@pytest.mark.parametrize(
    ('address', 'count', 'index'),
    [('host:1', '2', '2'), ('host:1', 'two', '0'), ('host', '2', '0'), ('host:1', '', '0')],
)
def test_a_place_that_cannot_be(monkeypatch, address, count, index):
    for name, value in (('ADDRESS', address), ('COUNT', count), ('INDEX', index)):
        monkeypatch.setenv(getattr(processes, name), value)
    message = f"JAX_COORDINATOR_ADDRESS='{address}', JAX_NUM_PROCESSES='{count}'.*must be HOST:PORT"
    with (
        pytest.raises(errors.UserError, match=message),
        processes.together(10, lambda: ''),
    ):
        raise AssertionError('it joined')


def test_a_timeout_is_at_least_a_second(capsys):
    with pytest.raises(SystemExit):
        main.parse([DIGITS, '--timeout=0.5'])
    assert '--timeout=0.5 must be at least 1 second' in capsys.readouterr().err


def test_where_no_cluster_is_found_the_command_says_so(tmp_path):
    status, _, err = commands.train(DIGITS, f'--workdir={tmp_path}/run', '--distributed')
    assert status == 2
    assert 'error: --distributed finds no cluster here: coordinator_address should' in err
    assert 'JAX_PROCESS_ID' in err
    assert not (tmp_path / 'run').exists()


def test_one_process_acts_for_itself():
    assert processes.on_first(lambda: [1, None]) == [1, None]


@pytest.mark.parametrize('other', ['train (digits)', 'evals.valid'])
def test_other_data_than_in_the_first_process_are_named(monkeypatch, other):
    def check(name, source, real=processes.check_same):
        first = [source.fingerprint() + 'x' * name.endswith(other), len(source), 'others']
        monkeypatch.setattr(processes, '_broadcast', lambda value: [True, first])
        real(name, source)

    monkeypatch.setattr(processes, 'check_same', check)
    monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
    settings = experiment.from_config(config.load(DIGITS.partition('=')[2]))

    def opened():
        sources, task = experiment.training_sources(settings), experiment.make_task(settings)
        experiment.training_batches(settings, task, sources)
        experiment.evaluation_sets(settings, task)

    message = f'^config.data.{re.escape(other)} in process 0 of 2 on .* and others .*Give all'
    with pytest.raises(errors.UserError, match=message):
        opened()


def dying_program(address: str, last: str) -> list[str]:
    program = f"""if True:
        import os
        from bigmodels.herald import Herald
        herald = Herald('{address}')
        herald.tell('an earlier word')
        herald.tell('{last}')
        os.abort()
    """
    return [sys.executable, '-c', program]


def test_the_herald_speaks_only_if_the_coordinator_is_gone(capfd):
    with socket.create_server(('localhost', 0)) as coordinator:
        address = f'localhost:{coordinator.getsockname()[1]}'
        launch.run(dying_program(address, 'last words'), 1, 1)
        assert 'word' not in capfd.readouterr().err
    launch.run(dying_program(address, 'last words'), 1, 1)
    err = capfd.readouterr().err
    assert '[0] last words' in err
    assert 'earlier' not in err
    launch.run(dying_program(address, ''), 1, 1)
    assert 'word' not in capfd.readouterr().err


def test_a_herald_that_is_closed_keeps_quiet(capfd):
    herald = Herald('localhost:1')
    herald.tell('last words')
    herald.close()
    assert capfd.readouterr().err == ''
