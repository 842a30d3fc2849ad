"""Who may ask, how much may be sent, how many are answered at once, and how long one may take.

Pure ASGI around the routes: the body of a request is read here, within its limits, so that what
follows has it whole and learns at once when the client leaves.
"""

import asyncio
import dataclasses
import hmac
from typing import Any

from starlette.datastructures import Headers

from bigmodels import errors
from bigmodels.deploy.server.failures import ClientLeft, Failure

OPEN = ('/', '/healthz', '/readyz', '/openapi.json')  # to everyone, always


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of a server.

    Fields:
      body: bytes of a request.
      concurrent: requests that are answered at once.
      queued: more of them that wait for that.
      timeout: seconds that one may take.
      sending: seconds in which its body must have come.
    """

    body: int = 20 * 2**20
    concurrent: int = 32
    queued: int = 64
    timeout: float = 120.0
    sending: float = 30.0

    def __post_init__(self):
        for name, least in (('body', 1), ('concurrent', 1), ('queued', 0), ('timeout', 1e-3)):
            if not getattr(self, name) >= least:
                raise errors.UserError(
                    f'The limit {name} = {getattr(self, name)} must be at least {least}.'
                )


class Admission:
    """Lets requests within the limits through to `app`, and stops those whose client leaves."""

    def __init__(self, app: Any, limits: Limits, api_key: str | None):
        self.app, self.limits = app, limits
        self._api_key = api_key
        self._admitted = 0
        self._running = asyncio.Semaphore(limits.concurrent)

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http' or scope['path'] in OPEN:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._check_key(headers)
        if scope['path'] == '/metrics':  # to be seen when there are too many requests
            await self.app(scope, receive, send)
            return
        if self._admitted >= self.limits.concurrent + self.limits.queued:
            raise Failure(
                429,
                f'{self._admitted} requests are being answered or wait, as many as may: try again.',
                code='too_many_requests',
                headers={'Retry-After': '1'},
            )
        self._admitted += 1
        try:
            body = await self._read(headers, receive)
            async with asyncio.timeout(self.limits.timeout), self._running:
                await self._answer(scope, body, receive, send)
        except TimeoutError as error:
            raise Failure(
                504, f'The answer took over {self.limits.timeout:g} s.', code='timeout'
            ) from error
        finally:
            self._admitted -= 1

    def _check_key(self, headers: Headers) -> None:
        if self._api_key is None:
            return
        scheme, _, key = headers.get('authorization', '').partition(' ')
        same = hmac.compare_digest(key.strip().encode(), self._api_key.encode())
        if scheme.lower() != 'bearer' or not same:
            raise Failure(
                401,
                'The header Authorization must be: Bearer, and the API key of this server.',
                code='invalid_api_key',
                headers={'WWW-Authenticate': 'Bearer'},
            )

    async def _read(self, headers: Headers, receive) -> bytes:
        """The body, refused as soon as it is known to be too large."""
        most = self.limits.body
        length = headers.get('content-length', '0')
        if length.isdecimal() and int(length[:20]) > most:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.sending):
                while True:
                    message = await receive()
                    if message['type'] == 'http.disconnect':
                        raise ClientLeft
                    parts.append(message.get('body', b''))
                    size += len(parts[-1])
                    if size > most:
                        raise self._too_large()
                    if not message.get('more_body', False):
                        return b''.join(parts)
        except TimeoutError as error:
            raise Failure(
                408,
                f'The body of the request has not come within {self.limits.sending:g} s.',
                code='timeout',
            ) from error

    def _too_large(self) -> Failure:
        return Failure(
            413,
            f'The body of the request has over {self.limits.body:,} bytes.',
            code='body_too_large',
        )

    async def _answer(self, scope, body: bytes, receive, send) -> None:
        """The app, which is cancelled if the client leaves before the answer is whole."""
        left, is_complete, given = asyncio.Event(), False, False

        async def receive_body():
            nonlocal given
            if given:
                await left.wait()
                return {'type': 'http.disconnect'}
            given = True
            return {'type': 'http.request', 'body': body, 'more_body': False}

        async def send_noted(message):
            nonlocal is_complete
            await send(message)
            if message['type'] == 'http.response.body' and not message.get('more_body', False):
                is_complete = True

        async def watch():
            while (await receive())['type'] != 'http.disconnect':
                pass
            left.set()

        answering = asyncio.ensure_future(self.app(scope, receive_body, send_noted))
        watching = asyncio.ensure_future(watch())
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not is_complete:
                raise ClientLeft
            await answering
        finally:
            watching.cancel()
            answering.cancel()
            # What they end with is of no use any more.
            await asyncio.gather(answering, watching, return_exceptions=True)
