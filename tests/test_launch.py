"""The launcher: what it passes to its processes, and what it makes of their output and end."""

import signal
import subprocess
import sys
import time

import pytest

from bigmodels import launch
from tests import commands


def run(program: str, processes: int = 2, grace: float = 30.0) -> int:
    return launch.run([sys.executable, '-c', program], processes, devices=3, grace=grace)


def test_processes_learn_their_places_and_their_lines_are_told_apart(capfd):
    program = """if True:
        import os, sys
        names = 'JAX_NUM_PROCESSES JAX_PROCESS_ID JAX_NUM_CPU_DEVICES JAX_PLATFORMS'.split()
        print(*(os.environ[name] for name in names))
        print(os.environ['JAX_COORDINATOR_ADDRESS'], file=sys.stderr)
    """
    assert run(program) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ['[0] 2 0 3 cpu', '[1] 2 1 3 cpu']
    addresses = {line.split()[1] for line in err.splitlines() if line.startswith('[')}
    assert len(addresses) == 1
    assert addresses.pop().startswith('localhost:')


def test_the_status_is_that_of_the_first_failure(capfd):
    program = """if True:
        import os, time
        index = int(os.environ['JAX_PROCESS_ID'])
        time.sleep(2 * index)
        os._exit([0, 7, 9][index])
    """
    assert run(program, 3) == 7
    assert 'launch: process 1 ended with status 7' in capfd.readouterr().err


def test_a_process_that_ended_because_of_another_is_not_the_failure():
    program = """if True:
        import os, time
        index = int(os.environ['JAX_PROCESS_ID'])
        time.sleep(2 - 2 * index)
        os._exit([7, 75][index])
    """
    assert run(program) == 7


def test_a_process_that_outlives_a_failure_is_killed(capfd):
    program = """if True:
        import os, time
        if os.environ['JAX_PROCESS_ID'] == '0':
            os.abort()
        time.sleep(100)
    """
    began = time.monotonic()
    assert run(program, grace=1.0) == 128 + signal.SIGABRT
    assert time.monotonic() - began < 50
    err = capfd.readouterr().err
    assert 'launch: process 0 ended by SIGABRT' in err
    assert 'launch: killing processes [1]' in err


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_to_all(number):
    program = """if True:
        import sys
        from bigmodels import launch
        inner = '''if True:
            import signal, sys, time
            def stop(number, frame):
                print('got', number)
                sys.exit(0)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            print('ready')
            time.sleep(100)
        '''
        sys.exit(launch.run([sys.executable, '-c', inner], 2, 1))
    """
    process = subprocess.Popen(
        [sys.executable, '-c', program], cwd=commands.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert sorted(process.stdout.readline() for _ in range(2)) == ['[0] ready\n', '[1] ready\n']
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == [f'[0] got {int(number)}', f'[1] got {int(number)}']
    assert process.returncode == 0


def test_mistakes_in_its_options(capsys):
    status, _, err = commands.called(
        capsys, 'bigmodels.launch', '--processes=0', '--', '--config=x.py'
    )
    assert status == 2
    assert '--processes=0 must be at least 1' in err
