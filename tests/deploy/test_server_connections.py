"""Connections of a server by themselves: clients that do not read what they asked for."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from uvicorn.server import ServerState

from bigmodels.deploy.server import connections

SIZE = 2**26  # bytes of an answer, more than sockets hold


async def whole(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': bytes(SIZE)})


async def streamed(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    for _ in range(SIZE // 2**16):
        await send({'type': 'http.response.body', 'body': bytes(2**16), 'more_body': True})
    await send({'type': 'http.response.body', 'body': b''})


@contextlib.asynccontextmanager
async def asked(app, head):
    """A connection of a client that has sent `head`, and the state of its server."""
    config = uvicorn.Config(app, lifespan='off', log_config=None, timeout_keep_alive=60)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    protocol = lambda: connections._Protocol(config, state, {})
    server = await loop.create_server(protocol, '127.0.0.1', 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(head)
            client.setblocking(False)
            yield client, state


@pytest.mark.parametrize('app', [whole, streamed])
@pytest.mark.parametrize('end', ['', 'Connection: close\r\n'])
def test_an_answer_that_nobody_reads_ends_with_its_connection(app, end, monkeypatch):
    monkeypatch.setattr(connections, 'IDLE', 0.05)
    monkeypatch.setattr(connections, 'UNREAD', 0.2)

    async def wait():
        head = f'GET / HTTP/1.1\r\nHost: a\r\n{end}\r\n'.encode()
        async with asked(app, head) as (_, state), asyncio.timeout(10):
            while not state.connections:
                await asyncio.sleep(0.01)
            while state.connections or state.tasks:  # for ever, were the connection kept
                await asyncio.sleep(0.01)
            return len(state.connections), len(state.tasks)

    assert asyncio.run(wait()) == (0, 0)


def test_who_reads_slowly_gets_all_of_it(monkeypatch):
    monkeypatch.setattr(connections, 'IDLE', 0.05)
    monkeypatch.setattr(connections, 'UNREAD', 3.0)

    async def read():
        loop, size = asyncio.get_running_loop(), 0
        head = b'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
        async with asked(whole, head) as (client, _):
            while part := await loop.sock_recv(client, 2**21):
                size += len(part)
                await asyncio.sleep(0.03)
        return size

    assert asyncio.run(read()) > SIZE
