"""What a server tells of itself: a log line for each request, metrics, and failures as answers."""

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from typing import Any

import prometheus_client as prometheus
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response

from bigmodels.deploy.server import failures

LOGGER = 'bigmodels.serve'
CLIENT_LEFT = 499  # what is logged for it, as nginx does; nobody receives it
_GOOD_ID = re.compile(r'[\w.-]{1,64}', re.ASCII)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What is counted, in a registry of its own, in Prometheus' text format at /metrics."""

    def __init__(self):
        registry = self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.requests = prometheus.Counter(
            'bigmodels_requests', 'Requests, by route and status.', ('route', 'status'),
            registry=registry,
        )  # fmt: skip
        self.seconds = prometheus.Histogram(
            'bigmodels_request_seconds', 'From the head of a request to the end of its answer.',
            ('route',), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = prometheus.Gauge(
            'bigmodels_requests_in_flight', 'Requests that are being answered or wait.',
            registry=registry,
        )  # fmt: skip
        self.batches = prometheus.Histogram(
            'bigmodels_batch_examples', 'Examples that were computed together.',
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry,
        )  # fmt: skip
        self.tokens = prometheus.Counter(
            'bigmodels_tokens', 'Tokens, of prompts or completions.', ('kind',), registry=registry
        )

    async def answer(self, request: Request) -> Response:
        """The endpoint."""
        text = prometheus.generate_latest(self.registry)
        return Response(text, headers={'Content-Type': CONTENT_TYPE_LATEST})


class Observed:
    """Around all else: a request's id, its log line and its metrics; what is raised as an answer.

    Args:
      routes: the paths that metrics name; all others are 'other'.
    """

    def __init__(self, app: Any, metrics: Metrics, routes: frozenset[str]):
        self.app, self.metrics, self._routes = app, metrics, routes

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        began, sender = time.perf_counter(), _Sender(send, _request_id(scope))
        scope['app'] = self  # so that routes raise what is wrong rather than answer it
        fault = None
        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, sender)
        except failures.ClientLeft:
            sender.status = CLIENT_LEFT
        except asyncio.CancelledError:  # the server ends
            sender.status = 503
            raise
        except Exception as error:
            failure = failures.of(error)
            fault = error if failure.status >= 500 else None
            await sender.fail(failure, scope, receive)
        finally:
            self.metrics.in_flight.dec()
            self._record(scope, sender, time.perf_counter() - began, fault)

    def _record(self, scope, sender: '_Sender', seconds: float, fault: Exception | None) -> None:
        route = scope['path'] if scope['path'] in self._routes else 'other'
        self.metrics.requests.labels(route, sender.status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        logging.getLogger(LOGGER).log(
            logging.ERROR if fault else logging.INFO,
            'request',
            exc_info=fault,
            extra={
                'fields': {
                    'id': sender.request_id,
                    'method': scope['method'],
                    'path': scope['path'],
                    'status': sender.status,
                    'seconds': round(seconds, 4),
                    'sent_bytes': sender.sent,
                    'client': (scope.get('client') or ('',))[0],
                }
            },
        )


def _request_id(scope) -> str:
    """The client's X-Request-Id, if it is a plain word, or a new one."""
    given = Headers(scope=scope).get('x-request-id', '')
    return given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex


class _Sender:
    """Sends an answer with the headers that all have, and notes what was sent."""

    def __init__(self, send, request_id: str):
        self._send, self.request_id = send, request_id
        self.status, self.sent, self._kind = 0, 0, ''

    async def __call__(self, message) -> None:
        if message['type'] == 'http.response.start':
            self.status = message['status']
            headers = MutableHeaders(raw=message['headers'])
            headers['X-Request-Id'] = self.request_id
            headers['X-Content-Type-Options'] = 'nosniff'
            self._kind = headers.get('content-type', '')
        self.sent += len(message.get('body', b''))
        await self._send(message)

    async def fail(self, failure: failures.Failure, scope, receive) -> None:
        """Answers a failure; behind a part of an answer, as far as that can still be told."""
        if self.status:
            if self._kind.startswith('text/event-stream'):
                event = f'data: {json.dumps(failure.body())}\n\n'.encode()
                await self({'type': 'http.response.body', 'body': event})
            self.status = failure.status
            return
        answer = failure.answer()
        unread = failure.status in (401, 408, 413, 429)
        if unread:
            answer.headers['Connection'] = 'close'
        headers = answer.raw_headers
        await self({'type': 'http.response.start', 'status': failure.status, 'headers': headers})
        await self({'type': 'http.response.body', 'body': answer.body, 'more_body': True})
        if unread:
            await _linger(receive)
        await self({'type': 'http.response.body', 'body': b''})


async def _linger(receive) -> None:
    """Throws away what still comes of a body, for a second: a client that is sending does not read,
    and a connection that is closed meanwhile loses the answer.
    """
    try:
        async with asyncio.timeout(1):
            while (await receive()).get('more_body', False):
                pass
    except TimeoutError:
        return


class JsonLines(logging.Formatter):
    """Log records as JSON objects: time, level, message, what a record adds, its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            'time': self.formatTime(record, '%Y-%m-%dT%H:%M:%S%z'),
            'level': record.levelname.lower(),
            'message': record.getMessage(),
            **getattr(record, 'fields', {}),
        }
        if record.exc_info:
            line['traceback'] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """All logs and Python's warnings as JSON lines; for the command, once."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(logging.INFO)
