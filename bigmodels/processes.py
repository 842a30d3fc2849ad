"""Everything between processes: they join, act as one, watch each other and end together.

What JAX does by itself when a process of a run dies or hangs: the collectives of the others fail
at once or never; and after a timeout its runtime aborts them, with a stack trace that names a
number. So the processes here give signs of life in the key-value store of JAX's coordination
service, which process 0 holds. A process that is silent for `timeout` seconds is dead to all
others: they say which it was and end. So does whoever is told that another one stopped.

This bounds every wait for another process, in collectives and in the barriers of a save too. It
does not find a process that is alive but never gets to where the others wait for it. One that reads
other data would be such a process, or train on them: `check_same` finds it before the first step.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from bigmodels import errors, peers
from bigmodels.herald import Herald

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong here, the same command may succeed
# What tells a process its place where no cluster does; JAX itself reads only the first.
ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
_KEYS = 'bigmodels/processes'
_JOINING = 3  # timeouts that joining may take: machines of a cluster do not start together
_BEATS = 10  # signs of life in a timeout
# JAX gives up on a coordinator that hangs after half of its own timeout: it must be we who speak.
_HEARTBEAT = 4  # timeouts
# Statuses with which JAX reports that another process does not take part.
_NO_PEER = re.compile('(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ')


@contextlib.contextmanager
def together(timeout: float, last_checkpoint: Callable[[], str]) -> Iterator[None]:
    """Joins the other processes of a run; the body runs among them, and all leave together.

    A process whose body raises tells the others, reports as `errors.exit_on_user_error` does and
    ends at once: the regular end would wait for processes that may be waiting for this one.

    Args:
      timeout: seconds of silence after which another process counts as dead.
      last_checkpoint: says where a run can go on, in a clause for the message of an end.

    Raises:
      UserError: if this process is told to be one of several and finds no others.
    """
    _join(timeout)
    watch = _Watch(timeout, last_checkpoint)
    try:
        yield
    except SystemExit as error:
        if error.code:
            watch.fail(error)
        watch.finish()
        raise
    except BaseException as error:
        watch.fail(error)
    else:
        watch.finish()


def on_first(action: Callable[[], Any]) -> Any:
    """The result of `action` on the first process, which alone runs it, on all processes.

    Args:
      action: returns what JSON can hold.

    Raises:
      UserError: on all processes, if the action raised one.
    """
    failed, result = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except errors.UserError as error:
            failed = error
    if jax.process_count() > 1:
        told, result = _broadcast([failed is None, result])
        if not told and failed is None:
            raise errors.UserError('The first process stopped; its message says why.')
    if failed:
        raise failed
    return result


def check_same(name: str, source: Any) -> None:
    """Raises UserError in a process that reads other data than the first one, as from its own disk.

    All processes must call it.

    Args:
      name: of the source.
    """
    if jax.process_count() == 1:
        return
    here = [source.fingerprint(), len(source), source.describe()]
    first = on_first(lambda: here)
    if here[:2] != first[:2]:
        listed = ' and '.join(
            f'{described} ({records:,} records, fingerprint {fingerprint[:12]})'
            for fingerprint, records, described in (here, first)
        )
        raise errors.UserError(
            f'{name} in process {jax.process_index()} of {jax.process_count()} on '
            f'{socket.gethostname()} is not the data of the first process: {listed}. Give all '
            f'processes the same files.'
        )


def _broadcast(value: Any) -> Any:
    """The first process's value, through JSON, on all."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    if jax.process_index() != 0:
        text = np.zeros(length, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())


def _join(timeout: float) -> None:
    """`jax.distributed.initialize`, for the place that the environment or the cluster gives."""
    place = {}
    if COUNT in os.environ or INDEX in os.environ:
        place = _place_of_environment()
    seconds = math.ceil(_JOINING * timeout)
    where = place.get('coordinator_address', "the cluster's first process")

    def give_up():
        print(
            f'error: after {seconds} s this process, {place.get("process_id", "one")} of '
            f'{place.get("num_processes", "several")} on {socket.gethostname()}, has not joined '
            f'the others at {where}. See that all of them were started, that they can reach that '
            f'address, and what they say; --timeout sets how long to wait.',
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STATUS)  # the main thread is inside JAX, and no exception reaches it there

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **place,
            # Later than ours, so that it is we who speak.
            initialization_timeout=2 * seconds,
            heartbeat_timeout_seconds=math.ceil(_HEARTBEAT * timeout),
            shutdown_timeout_seconds=math.ceil(timeout),
        )
    except (ValueError, RuntimeError) as error:
        raise errors.UserError(
            f'--distributed finds no cluster here: {error} Start the processes by the launcher of '
            f'a cluster, or set {ADDRESS}, {COUNT} and {INDEX}.'
        ) from error
    finally:
        timer.cancel()


def _place_of_environment() -> dict[str, Any]:
    values = {name: os.environ.get(name, '') for name in (ADDRESS, COUNT, INDEX)}
    try:
        count, index = int(values[COUNT]), int(values[INDEX])
    except ValueError:
        count, index = 0, 0
    if not (0 <= index < count and re.fullmatch(r'.+:\d+', values[ADDRESS])):
        given = ', '.join(f'{name}={value!r}' for name, value in values.items())
        raise errors.UserError(
            f'{given}: must be HOST:PORT of the first process, the number of processes and the '
            f"index of this one, from 0; or none of them, for a cluster's own."
        )
    return {
        'coordinator_address': values[ADDRESS],
        'num_processes': count,
        'process_id': index,
        'cluster_detection_method': 'deactivate',
    }


class _Watch:
    """Gives this process's signs of life, reads the others' and ends this process with them."""

    def __init__(self, timeout: float, last_checkpoint: Callable[[], str]):
        state = distributed.global_state  # JAX has no public way to its key-value store
        self._client, index = state.client, state.process_id
        self._timeout, self._interval = timeout, timeout / _BEATS
        self._last_checkpoint = last_checkpoint
        self._sign = peers.Sign(index, socket.gethostname(), os.getpid())
        now = time.monotonic()
        self._peers = peers.Peers(index, state.num_processes, timeout, now)
        self._peers.read([self._sign], now)  # names itself, also when it fails before the first
        self._lock = threading.Lock()  # of the two above
        self._ending = threading.Lock()  # taken once, by whoever ends the process
        self._wake, self._told, self._stopped = (threading.Event() for _ in range(3))
        self._herald = Herald(state.coordinator_address) if index != 0 else None
        # Two threads, because giving a sign hangs while process 0 does.
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._beat, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits until all are done: leaving earlier would look like an end to the others."""
        self._leave('')
        while not (self._told.is_set() and self._ask(self._peers.all_done)):
            time.sleep(self._interval / 10)
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        if self._herald:
            self._herald.close()

    def fail(self, error: BaseException) -> NoReturn:
        """Reports an exception of this process, tells the others and ends."""
        [line, *_] = str(error).splitlines() or ['']
        if isinstance(error, ValueError | RuntimeError) and _NO_PEER.match(line):
            self._print(f'{line[:300]}\nWaiting {self._timeout:g} s to learn if a process is gone.')
            time.sleep(self._timeout + 2 * self._interval)  # _judge ends the process meanwhile
        self._ending.acquire()
        status = _report(error)
        name = self._ask(lambda: self._peers.name(self._sign.index))
        self._exit(f'{name} stopped: {type(error).__name__}: {line[:300]}', status)

    def _ask(self, question: Callable[[], Any]) -> Any:
        with self._lock:
            return question()

    def _leave(self, why: str) -> None:
        with self._lock:
            self._sign = dataclasses.replace(self._sign, ended=why)
        self._wake.set()

    def _beat(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                self._sign = sign = dataclasses.replace(self._sign, beat=self._sign.beat + 1)
            # An error means that process 0 cannot be reached, which `trouble` finds if it lasts.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(
                    f'{_KEYS}/{sign.index}', json.dumps(dataclasses.asdict(sign)), True
                )
                found = self._client.key_value_dir_get(_KEYS)
                now = time.monotonic()
                with self._lock:
                    self._peers.read([peers.Sign(**json.loads(value)) for _, value in found], now)
                if sign.ended is not None:
                    self._told.set()
            self._wake.wait(self._interval)
            self._wake.clear()

    def _judge(self) -> None:
        while not self._stopped.wait(self._interval):
            why = self._ask(lambda: self._peers.trouble(time.monotonic()))
            if why:
                self._ending.acquire()
                self._print(self._last_words(why))
                self._exit(why, EXIT_STATUS)
            if self._herald:
                name = self._ask(lambda: self._peers.name(0))
                self._herald.tell(
                    self._last_words(f'{name}, which coordinates, ended or does not answer')
                )

    def _last_words(self, why: str) -> str:
        name = self._ask(lambda: self._peers.name(self._sign.index))
        return f'error: {why}; {name} stops too. {self._last_checkpoint()}'

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _exit(self, why: str, status: int) -> NoReturn:
        """Tells the others and ends, without the shutdown of JAX, which waits for the dead."""
        self._leave(why)
        if self._herald:
            self._told.wait(2 * self._interval)
            self._herald.tell('')
        else:  # the others read from this process: it must be the last to go
            deadline = time.monotonic() + self._timeout / 2
            while not self._ask(self._peers.all_gone) and time.monotonic() < deadline:
                time.sleep(self._interval / 10)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _report(error: BaseException) -> int:
    """Prints an exception as a command that ends with it does; returns the exit status."""

    def command():
        raise error

    try:
        errors.exit_on_user_error(command)
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1
