"""The OpenAPI 3.1 document of a server, made of its endpoints and of the forms that validate."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pydantic
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bigmodels.deploy.server.forms import Form

_REFERENCE = '#/components/schemas/{model}'
_ERROR = {
    'type': 'object',
    'required': ['error'],
    'properties': {
        'error': {
            'type': 'object',
            'required': ['message', 'type', 'param', 'code'],
            'properties': {
                'message': {'type': 'string'},
                'type': {'type': 'string'},
                'param': {'type': ['string', 'null']},
                'code': {'type': ['string', 'null']},
            },
        }
    },
}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One path of a server.

    Fields:
      method: of HTTP.
      answer: the endpoint's function.
      form: the model of a JSON body, None for none.
      upload: (fields of a form, the names of its files) that may be sent as well, or instead.
      returns: the media types of good answers.
    """

    path: str
    method: str
    summary: str
    answer: Callable[[Request], Awaitable[Response]]
    form: type[Form] | None = None
    upload: tuple[type[Form] | None, Sequence[str]] | None = None
    returns: Sequence[str] = ('application/json',)

    def route(self) -> Route:
        """For the router."""
        return Route(self.path, self.answer, methods=[self.method])


def describe(
    endpoints: Sequence[Endpoint], names: Sequence[str], needs_key: bool
) -> dict[str, Any]:
    """The document of a server of models of these names."""
    forms = {form for e in endpoints for form in (e.form, (e.upload or [None])[0]) if form}
    _, schemas = pydantic.json_schema.models_json_schema(
        [(form, 'validation') for form in sorted(forms, key=lambda form: form.__name__)],
        ref_template=_REFERENCE,
    )
    for schema in schemas.get('$defs', {}).values():
        if 'model' in schema.get('properties', {}):
            schema['properties']['model']['enum'] = names
    paths: dict[str, dict] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint)
        if '{model}' in endpoint.path:
            operation['parameters'] = [
                {'name': 'model', 'in': 'path', 'required': True, 'schema': {'enum': names}}
            ]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    components = {'schemas': {**schemas.get('$defs', {}), 'Error': _ERROR}}
    document = {
        'openapi': '3.1.0',
        'info': {'title': f'bigmodels: {names[0]}', 'version': '1'},
        'paths': paths,
        'components': components,
    }
    if needs_key:
        components['securitySchemes'] = {'key': {'type': 'http', 'scheme': 'bearer'}}
        document['security'] = [{'key': []}]
    return document


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    good = {kind: {'schema': {}} for kind in endpoint.returns}
    operation = {
        'summary': endpoint.summary,
        'responses': {
            '200': {'description': 'The answer.', 'content': good},
            'default': {
                'description': 'What went wrong.',
                'content': {'application/json': {'schema': _reference('Error')}},
            },
        },
    }
    content = {}
    if endpoint.form is not None:
        content['application/json'] = {'schema': _reference(endpoint.form.__name__)}
    if endpoint.upload is not None:
        content['multipart/form-data'] = {'schema': _form_schema(*endpoint.upload)}
    if content:
        operation['requestBody'] = {'required': True, 'content': content}
    return operation


def _form_schema(form: type[Form] | None, files: Sequence[str]) -> Mapping[str, Any]:
    uploads = {
        'type': 'object',
        'required': list(files),
        'properties': {name: {'type': 'string', 'format': 'binary'} for name in files},
    }
    if form is None:
        return uploads
    fields = form.model_json_schema()
    return {
        **uploads,
        'required': [*files, *fields.get('required', ())],
        'properties': uploads['properties'] | fields['properties'],
    }


def _reference(name: str) -> dict[str, str]:
    return {'$ref': _REFERENCE.format(model=name)}
