"""Connections: uvicorn, until a signal ends it, with time limits for clients.

A head must come, and an answer be read, in time.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bigmodels.deploy.server.app import Server

MOST = 1000  # connections; further requests are answered by 503
IDLE = 20.0  # seconds after which a connection is closed on which no request has begun
UNREAD = 60.0  # seconds in which a client must take SLOWEST bytes of what waits for it, or the rest
SLOWEST = 2**16
DRAINING = 7  # seconds that requests at hand may take to end


class _Protocol(H11Protocol):
    """Closes connections whose clients are silent, send a head byte by byte, or do not read."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._unread: tuple[int, float] | None = None  # bytes that wait, and since when
        self._looking = self.loop.call_later(IDLE, self._look, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = None

    def _look(self, before) -> None:
        """`before`: the latest request when this was last looked at."""
        self._looking = self.loop.call_later(IDLE, self._look, self.cycle)
        is_idle = self.cycle is before and (before is None or before.response_complete)
        if self._is_unread():
            self.transport.abort()  # to close it would wait for the client
        elif is_idle and not self.transport.is_closing():
            self.transport.close()

    def _is_unread(self) -> bool:
        """Whether an answer waits for a client that takes none of it, or next to none."""
        if not self.flow.write_paused and not self.transport.is_closing():
            self._unread = None
            return False
        size, now = self.transport.get_write_buffer_size(), self.loop.time()
        if self._unread is None or size <= self._unread[0] - SLOWEST:
            self._unread = size, now
        return now - self._unread[1] >= UNREAD


class _Uvicorn(uvicorn.Server):
    """Leaves signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(server: Server, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; requests at hand may then end, at most `DRAINING` seconds.

    Raises:
      Exception: what compiling the model raised.
    """
    config = uvicorn.Config(
        server.app,
        http=_Protocol,
        ws='none',
        lifespan='off',
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST,
        timeout_graceful_shutdown=DRAINING,
    )
    connections = _Uvicorn(config)
    faults = []

    def end(number: int, frame) -> None:
        server.is_ready = False
        connections.should_exit = True

    def warm() -> None:
        try:
            server.warm()
        except Exception as error:  # raised below, by the main thread
            faults.append(error)
            connections.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    threading.Thread(target=warm, daemon=True).start()
    asyncio.run(connections.serve(sockets=[listening]))
    server.close()
    if faults:
        raise faults[0]
