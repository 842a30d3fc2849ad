"""What clients may send: models that validate requests, and of which the description is made.

A field that is not here is refused by name. Of the OpenAI API are also taken, and not looked at,
those fields that change no answer, such as `user`; others only with a value that asks for nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from bigmodels.deploy.requests import MOST_ALTERNATIVES

MOST_INPUTS = 256  # records or texts of one request
MOST_CHOICES = 16
MOST_UNKNOWN = 10  # fields of one object that are refused by name
FIRST = Field(fail_fast=True)  # of a list the first fault is told: a body has room for millions
_INT64 = dict(ge=-(2**63), lt=2**63)

Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(**_INT64)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Cell = str | Whole | Finite | bool | None
File = Annotated[
    str,
    Field(description='a file in base64, or its data URL', json_schema_extra={'format': 'byte'}),
]
# The types of a record's fields, by the kinds of `data.inputs`.
KINDS = {
    'image': File,
    'video': File,
    'audio': File,
    'text': str,
    'value': Cell,
    'ids': str | Whole | Annotated[list[str | Whole], FIRST] | None,
    'series': Annotated[list[Cell], FIRST],
    'array': Annotated[
        list[Annotated[list[Whole], FIRST] | Annotated[list[Whole | Finite], FIRST]], FIRST
    ],
}


class Form(pydantic.BaseModel):
    """Of exact types, and no fields besides."""

    model_config = ConfigDict(extra='forbid', strict=True)

    @pydantic.model_validator(mode='before')
    @classmethod
    def _with_few_unknown(cls, asked: Any) -> Any:
        """Without most of the fields that are not here, each of which would be a fault."""
        if not isinstance(asked, dict):
            return asked
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in asked if name not in known]
        many = set(unknown[MOST_UNKNOWN:])
        return {name: asked[name] for name in asked if name not in many} if many else asked


def _first_that_asks(bias: Any) -> Any:
    """Of a logit bias only the first entry that changes an answer, if there is one."""
    entries = bias.items() if isinstance(bias, dict) else ()
    return next(({token: x} for token, x in entries if type(x) is not int or x), bias)


class OpenAIForm(Form):
    """What all requests of the OpenAI API have; a field that is null is as one not given."""

    model: str = Field(description='as /v1/models names it')
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @pydantic.model_validator(mode='before')
    @classmethod
    def _without_nulls(cls, asked: Any) -> Any:
        if not isinstance(asked, dict):
            return asked
        return {name: asked[name] for name in asked
                if asked[name] is not None or name not in cls.model_fields}  # fmt: skip


class Embeddings(OpenAIForm):
    """Texts, or their token ids."""

    input: (
        str
        | Annotated[list[TokenId], Field(min_length=1), FIRST]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS), FIRST]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1), FIRST]],
            Field(min_length=1, max_length=MOST_INPUTS),
            FIRST,
        ]
    )
    encoding_format: Literal['float', 'base64'] = 'float'
    dimensions: int | None = Field(None, description='those of the model, if at all')


class Transcription(OpenAIForm):
    """The fields beside the `file`, of a form."""

    model_config = ConfigDict(extra='forbid', strict=False)  # of a form all are texts

    response_format: Literal['json', 'text'] = 'json'
    temperature: float = Field(0.0, ge=0, le=1, description='not looked at: decoding draws nothing')
    language: str | None = Field(None, description='looked at where a model is told it')
    prompt: Any = None
    stream: Literal[False, 'false'] = False


class _Sampled(OpenAIForm):
    """How a text goes on."""

    temperature: float = Field(1.0, ge=0, le=2, description='0 for the most probable tokens')
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, lt=2**31, description='0 for all')
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    seed: Whole | None = Field(None, description='the same gives the same texts')
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: 'StreamOptions | None' = None
    logit_bias: (
        Annotated[dict[str, Literal[0]], pydantic.BeforeValidator(_first_that_asks)] | None
    ) = None
    response_format: 'AnyFormat | None' = Field(None, description='what a text must be')


class StreamOptions(Form):
    """Of a stream."""

    include_usage: bool = False
    include_obfuscation: Any = None


class Completion(_Sampled):
    """A text to go on with, or its token ids, or several of either."""

    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1), FIRST]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES), FIRST]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1), FIRST]],
            Field(min_length=1, max_length=MOST_CHOICES),
            FIRST,
        ]
    ) = ''
    max_tokens: int = Field(16, ge=1, lt=2**31)
    logprobs: int | None = Field(
        None, ge=0, le=MOST_ALTERNATIVES, description='of each token, and of as many others'
    )
    echo: bool = Field(False, description='whether the prompt comes before the text')
    best_of: Literal[1] | None = None
    suffix: None = None


class TextPart(Form):
    """A part of a message."""

    type: Literal['text']
    text: str


class Message(Form):
    """Of a chat; what an answer's message has besides may be sent back with it."""

    role: Literal['system', 'developer', 'user', 'assistant']
    content: str | Annotated[list[TextPart], FIRST]
    name: str | None = None
    refusal: None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class TextFormat(Form):
    """Any text."""

    type: Literal['text']


class JsonFormat(Form):
    """A JSON object."""

    type: Literal['json_object']


class JsonSchema(Form):
    """Of JSON values; texts keep to it whether it is called strict or not."""

    name: str
    schema_: dict[str, Any] = Field(alias='schema')
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Form):
    """A JSON value that a schema describes."""

    type: Literal['json_schema']
    json_schema: JsonSchema


class RegexFormat(Form):
    """A text that a regular expression matches whole; not of the OpenAI API."""

    type: Literal['regex']
    pattern: str


AnyFormat = Annotated[
    TextFormat | JsonFormat | JsonSchemaFormat | RegexFormat, Field(discriminator='type')
]


class Chat(_Sampled):
    """Messages, which the model's own follows."""

    messages: Annotated[list[Message], FIRST] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description='the same')
    logprobs: bool = False
    top_logprobs: int | None = Field(
        None, ge=0, le=MOST_ALTERNATIVES, description='others beside each token'
    )
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal['none', 'auto'] | None = None
    parallel_tool_calls: Any = None


def record_form(fields: Mapping[str, str]) -> type[Form]:
    """The model of a task's records, of its `record_fields`."""
    # Names of columns need be no names of Python.
    return pydantic.create_model(
        'Record',
        __base__=Form,
        **{
            f'field_{i}': (KINDS[kind], Field(alias=name, description=kind))
            for i, (name, kind) in enumerate(fields.items())
        },
    )


def prediction_form(record: type[Form]) -> type[Form]:
    """The model of a request to /v1/predict."""
    inputs = Annotated[list[record], Field(min_length=1, max_length=MOST_INPUTS), FIRST]
    return pydantic.create_model('Prediction', __base__=Form, inputs=(inputs, ...))
