"""What goes wrong with a request, in the shape of the OpenAI API."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from bigmodels import errors

_TYPES = {401: 'authentication_error', 404: 'not_found_error', 429: 'rate_limit_error'}
_TYPE = re.compile(r'(str|int|float|bool|none)$|(list|literal|constrained|nullable|function)[\[-]')
MOST_NAMED = 5  # faults of a request that are told at once
LONGEST = 200  # characters of one, which may quote what came


class Failure(Exception):
    """A request that is not answered as it was asked for.

    Fields:
      status: of HTTP.
      param: the field of the request that is at fault, None for no single one.
      code: a word for programs.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = {},
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """{'error': {'message', 'type', 'param', 'code'}}."""
        usual = 'invalid_request_error' if self.status < 500 else 'server_error'
        kind = _TYPES.get(self.status, usual)
        return {
            'error': {'message': self.message, 'type': kind, 'param': self.param, 'code': self.code}
        }

    def answer(self) -> JSONResponse:
        """The same as a response."""
        return JSONResponse(self.body(), self.status, dict(self.headers))


class ClientLeft(Exception):
    """The client has closed its connection: nobody waits for the answer."""


def of(error: Exception) -> Failure:
    """The failure that an error of a handler is; of an unforeseen one nothing is told."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, errors.UserError):
        return Failure(400, str(error))
    if isinstance(error, HTTPException):
        return Failure(error.status_code, error.detail, headers=error.headers or {})
    return Failure(500, 'The server failed; its log has the request by its id.', code='internal')


def of_validation(error: pydantic.ValidationError, within: Sequence[str | int] = ()) -> Failure:
    """The failure that names the fields of a request that are not as they may be.

    All faults are formatted, so that `forms` must find few, whatever comes.

    Args:
      within: where in the request what was validated is.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [_told(fault['type'], _name((*within, *fault['loc'])), fault['msg']) for fault in found]
    where = _name((*within, *found[0]['loc']))
    return Failure(
        400,
        '; '.join(told[:MOST_NAMED]) + ('; and more' if len(told) > MOST_NAMED else '') + '.',
        param=where or None,
        code=found[0]['type'],
    )


def _told(kind: str, name: str, message: str) -> str:
    if kind == 'extra_forbidden':
        return f'Unknown field {name!r}'
    if kind == 'missing':
        return f'The field {name!r} is missing'
    return (f'{name}: ' if name else '') + message[:LONGEST]


def _name(location: Sequence[str | int]) -> str:
    """Of a field, without the types that were tried for it."""
    parts = (str(part)[:LONGEST] for part in location)
    return '.'.join(part for part in parts if not _TYPE.match(part))[:LONGEST]
