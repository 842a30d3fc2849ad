"""Several processes of the training command on this machine, for tests and for learning.

python -m bigmodels.launch --processes=2 --devices=2 -- --config=configs/transformer.py:tiny

Each process simulates a host with CPU devices. docs/launch.md has the commands for clusters.
"""

import argparse
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from bigmodels.processes import ADDRESS, COUNT, EXIT_STATUS, INDEX

GRACE = 150.0  # seconds: more than processes take to find out that another one ended


def run(command: Sequence[str], processes: int, devices: int, grace: float = GRACE) -> int:
    """Runs `processes` copies of `command` that find each other; returns when all have ended.

    Each line of their output is printed with the index of its process. SIGINT and SIGTERM are
    passed on to all.

    Args:
      devices: CPU devices of each process.
      grace: seconds that the others have to end by themselves once one has failed; then they
        are killed.

    Returns:
      0, or the exit status of the first process that failed, where possible of one that did not
      end because of another; as in a shell, 128 + the signal for one that a signal ended.
    """
    port = _free_port()
    children, printers = [], []
    with _passed_on(children):
        for index in range(processes):
            place = {ADDRESS: f'localhost:{port}', COUNT: str(processes), INDEX: str(index)}
            child = _start(command, place | _cpu(devices))
            children.append(child)
            print(f'launch: process {index} is pid {child.pid}', file=sys.stderr, flush=True)
            for stream, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                printers.append(threading.Thread(target=_print_lines, args=(index, stream, target)))
                printers[-1].start()
        status = _wait(children, grace)
    for printer in printers:
        printer.join()
    return status


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        env={**os.environ, 'PYTHONUNBUFFERED': '1', **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        start_new_session=True,  # an interrupt from the keyboard comes once, from here
    )


def _cpu(devices: int) -> dict[str, str]:
    return {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def _print_lines(index: int, stream: TextIO, target: TextIO) -> None:
    for line in stream:
        target.write(f'[{index}] {line}')  # one call, so that lines do not mix
        target.flush()


@contextlib.contextmanager
def _passed_on(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """SIGINT and SIGTERM go to the children; what they do decides."""

    def pass_on(number, _):
        for child in children:
            child.send_signal(number)  # does nothing for one that has ended

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen], grace: float) -> int:
    """The exit status of the first child that fails, once all have ended."""
    running = dict(enumerate(children))
    first, deadline, killed = 0, math.inf, False
    while running:
        for index, child in list(running.items()):
            code = child.poll()
            if code is None:
                continue
            del running[index]
            if code:
                deadline = min(deadline, time.monotonic() + grace)
                if first in (0, EXIT_STATUS):
                    first = code if code > 0 else 128 - code
                how = f'by {signal.Signals(-code).name}' if code < 0 else f'with status {code}'
                print(f'launch: process {index} ended {how}', file=sys.stderr, flush=True)
        if time.monotonic() > deadline and not killed:
            killed = True
            print(f'launch: killing processes {list(running)}', file=sys.stderr, flush=True)
            for child in running.values():
                child.kill()
        time.sleep(0.05)
    return first


def main() -> None:
    """The command: everything after -- is for bigmodels.main."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.launch',
        description='Trains in several processes of this machine, on CPU devices.',
        usage='%(prog)s [--processes=N] [--devices=D] [--grace=SECONDS] -- --config=... ...',
        allow_abbrev=False,
    )
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--devices', type=int, default=1, help='of each process')
    parser.add_argument('--grace', type=float, default=GRACE, help='of the others if one fails')
    parser.add_argument('arguments', nargs='*', help='of bigmodels.main')
    options = parser.parse_args()
    for name in ('processes', 'devices'):
        if getattr(options, name) < 1:
            parser.error(f'--{name}={getattr(options, name)} must be at least 1')
    command = [sys.executable, '-m', 'bigmodels.main', '--distributed', *options.arguments]
    sys.exit(run(command, options.processes, options.devices, options.grace))


if __name__ == '__main__':
    main()
