"""Stopping on request without losing a step: SIGTERM, as machines are taken away, and Ctrl-C.

Within the loop a signal is only noted; the loop asks after every step and before every batch of
an evaluation, saves the step at hand and ends.
A watching thread ends the process if this takes longer than the deadline, since a machine that is
taken away does not wait, and a save that hangs in the storage cannot be interrupted otherwise.
Before and after the loop nothing is lost by stopping at once, so there a signal does; while a
command still imports its modules, SIGTERM has its usual effect.

With several processes JAX's own notifier catches SIGTERM, tells all processes, and names the
place at which all of them stop.
"""

import contextlib
import os
import pathlib
import queue
import signal
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from bigmodels import checkpoint, errors

RESUME_HINT = 'The same command goes on from there.'


class Signals:
    """The handlers of SIGTERM and SIGINT while a run is under way; a context manager.

    Outside of the main thread, where Python allows no handlers, it never asks to stop.

    Args:
      deadline: seconds from a request to the end of the loop.
      checkpoints: the directory of the run's saved steps, for messages.
    """

    def __init__(self, deadline: float, checkpoints: pathlib.Path):
        self._deadline = deadline
        self._checkpoints = checkpoints
        self._several = jax.process_count() > 1
        self._previous = {}
        self._deferring = False
        self._asked = 0  # how often, which is the same in all processes
        self._number = signal.SIGTERM
        self.requested = False  # agreed by all processes
        # A SimpleQueue, as its put may be called by a handler that interrupts another put.
        self._noted, self._ended = queue.SimpleQueue(), threading.Event()

    def __enter__(self) -> 'Signals':
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
            self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals are noted in here, and the deadline holds; outside they stop the run at once."""
        threading.Thread(target=self._watch, daemon=True).start()
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            self._ended.set()
            self._noted.put(None)

    def reached(self) -> bool:
        """Whether to stop here. All processes must ask equally often, at the same places."""
        if self._several and not self.requested:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self._request()
        return self.requested

    def stopped(self, step: int) -> errors.Stopped:
        """The error that ends a run which was to stop after `step`: whether that was saved."""
        saved = max(checkpoint.steps(self._checkpoints), default=None)
        if saved == step:
            status = 130 if self._number == signal.SIGINT else 0
            return errors.Stopped(f'{self._by()}: step {step} is saved. {RESUME_HINT}', status)
        return errors.Stopped(f'{self._by()}, but step {step} is not saved. {_last(saved)}', 1)

    def _receive(self, number: int, _frame) -> None:
        self._number = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process
        if not self._deferring:
            status = 130 if number == signal.SIGINT else 0
            saved = max(checkpoint.steps(self._checkpoints), default=None)
            raise errors.Stopped(f'{self._by()}, outside of the steps. {_last(saved)}', status)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's notifier tells the other processes
        else:
            self._request()

    def _request(self) -> None:
        self.requested = True
        self._noted.put(self._number)

    def _watch(self) -> None:
        """Ends the process when the deadline passes after a request."""
        if self._noted.get() is None or self._ended.wait(self._deadline):
            return
        saved = max(checkpoint.steps(self._checkpoints), default=None)
        print(
            f'error: {self._by()}, but the current step was not saved within '
            f'config.checkpoint.deadline = {self._deadline:g} s. {_last(saved)}',
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread may hang in a system call

    def _by(self) -> str:
        return f'Stopped by {self._number.name}'


def _last(saved: int | None) -> str:
    if saved is None:
        return 'No step was saved yet; the same command starts again.'
    return f'The last saved step is {saved}. {RESUME_HINT}'
