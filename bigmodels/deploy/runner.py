"""A thread that steps an engine while requests come from others, as those of a server do."""

import threading
from collections.abc import Callable, Sequence

from bigmodels import errors
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Event, Request, Settings


class QueueFull(errors.UserError):
    """As many requests wait as may: try again later."""


class Runner:
    """Answers requests of any thread, until it is closed; `with` closes it.

    If the engine or a listener raises, the other requests end with 'failed', and `submit`, `drain`
    and `close` raise from what was raised.
    """

    def __init__(self, engine: Engine, most_waiting: int = 256):
        """Starts the thread; most_waiting: of requests without a slot."""
        self._engine = engine
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._listeners: dict[Request, Callable[[Event], None]] = {}
        self._is_draining = False
        self._failure: Exception | None = None
        self._told: Request | None = None  # whose listener is at work
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    def __enter__(self) -> 'Runner':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def submit(
        self,
        tokens: Sequence[int],
        settings: Settings,
        *,
        listener: Callable[[Event], None],
    ) -> Request:
        """Takes a request, whose events the runner's thread gives to `listener`, up to its finish.

        The listener must be quick and raise nothing: all requests wait for it. That of an asyncio
        server is `lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)`.

        Raises:
          QueueFull: if too many wait.
          UserError: see `Engine.submit`; or if no more are taken.
        """
        with self._changed:
            self._raise_failure()
            if self._is_draining:
                raise errors.UserError('The engine is being closed and takes no more requests.')
            if self._engine.num_waiting >= self._most_waiting:
                raise QueueFull(
                    f'{self._most_waiting} requests are waiting, as many as may: try again later.'
                )
            request = self._engine.submit(tokens, settings)
            self._listeners[request] = listener
            self._changed.notify()
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request; its listener still gets the finish. Nothing if it has ended."""
        self._engine.cancel(request)

    @property
    def has_failed(self) -> bool:
        """Whether the engine or a listener has raised."""
        return self._failure is not None

    def drain(self) -> None:
        """Takes no more requests, and returns when all have ended."""
        with self._changed:
            self._is_draining = True
            self._changed.notify()
        self._thread.join()
        self._raise_failure()

    def close(self) -> None:
        """Cancels all requests, and returns when they have ended."""
        with self._changed:
            for request in self._listeners:
                self._engine.cancel(request)
        self.drain()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError('The engine has failed.') from self._failure

    def _run(self) -> None:
        try:
            while self._has_work():
                for event in self._engine.step():
                    self._deliver(event)
        except Exception as error:  # told by every later call
            self._fail(error)

    def _has_work(self) -> bool:
        """Waits for requests; False when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._listeners or self._is_draining)
            return bool(self._listeners)

    def _deliver(self, event: Event) -> None:
        with self._changed:
            listener = self._listeners[event.request]
            if event.finish is not None:
                del self._listeners[event.request]
        self._told = event.request
        listener(event)
        self._told = None

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            left, self._listeners = self._listeners, {}
        left.pop(self._told, None)  # its listener is what raised
        for request, listener in left.items():
            listener(Event(request, finish='failed'))
