"""A server process of a run, and requests to it as any client may send them."""

import contextlib
import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from tests import commands


class Served:
    """A server that is ready: its process, address and log."""

    def __init__(self, workdir: pathlib.Path, log: pathlib.Path, *options: str, key: str = ''):
        self._log = log
        with log.open('w') as stream, pytest.MonkeyPatch.context() as patch:
            patch.setenv('BIGMODELS_API_KEY', key)
            self.process = commands.start(
                'bigmodels.deploy.serve', f'--workdir={workdir}', '--port=0', *options,
                stderr=stream,
            )  # fmt: skip
        line = self.process.stdout.readline()
        assert 'http://' in line, log.read_text()
        self.url = 'http://' + line.split('http://')[1].strip()
        self.host, self.port = urllib.parse.urlsplit(self.url).netloc.split(':')
        self.address = self.host, int(self.port)
        deadline = time.monotonic() + 60
        while self.ask('GET', '/readyz')[0] != 200:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def ask(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict, bytes]:
        """(status, headers in lower case, body) of one request; a dict is sent as JSON."""
        headers = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body)
            headers.setdefault('Content-Type', 'application/json')
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()

    def post(self, path: str, body, headers=None) -> tuple[int, dict]:
        """(status, answer) of JSON."""
        status, _, answer = self.ask('POST', path, body, headers)
        return status, json.loads(answer)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(self.address, timeout=30)

    def logged(self) -> list[dict]:
        """The lines of the log."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def stop(self) -> int:
        """Asks the server to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stdout.close()


@contextlib.contextmanager
def served(workdir: pathlib.Path, log: pathlib.Path, *options: str, key='') -> Iterator[Served]:
    """A server for a while; it ends by SIGTERM with status 0, having logged no fault."""
    server = Served(workdir, log, *options, key=key)
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0
    assert not [line for line in server.logged() if line['level'] == 'error']


def check_description(server: Served, key: str = '') -> None:
    """What /openapi.json says is there: paths that answer, and schemas."""
    document = json.loads(server.ask('GET', '/openapi.json')[2])
    assert ('security' in document) == bool(key)
    for path, operations in document['paths'].items():
        for method in operations:
            headers = {'Authorization': f'Bearer {key}'}
            status = server.ask(method.upper(), path, b'', headers)[0]
            assert status in ((200, 404) if method == 'get' else (415,)), path
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert {'Error'} < {*names} <= {*document['components']['schemas']}


@contextlib.contextmanager
def browsed(server: Served) -> Iterator:
    """The server's page in a browser, which must not find anything wrong with it."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs pip install playwright')
    path = shutil.which('chromium') or shutil.which('google-chrome')
    if path is None:
        pytest.skip('needs the browser Chromium')
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=['--no-sandbox'])
        page = browser.new_page()
        faults = []
        page.on('pageerror', lambda error: faults.append(error))
        page.goto(server.url)
        yield page
        browser.close()
    assert not faults
