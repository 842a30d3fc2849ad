"""Connections: uvicorn, with a time limit for the head of a request, until a signal ends it."""

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
DRAINING = 7  # seconds that requests at hand may take to end


class _Protocol(H11Protocol):
    """Closes connections whose clients are silent, or send a head byte by byte."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(IDLE, self._close_if_idle, None)

    def _close_if_idle(self, before) -> None:
        """`before`: the latest request when this was last looked at."""
        if self.transport.is_closing():
            return
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
            return
        self.loop.call_later(IDLE, self._close_if_idle, self.cycle)


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
