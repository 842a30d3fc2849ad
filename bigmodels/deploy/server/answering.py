"""What a run answers in one go: predictions, embeddings and transcriptions."""

import asyncio
import base64
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pydantic
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from bigmodels import errors, predict, rundir, runs
from bigmodels.data.tokenizers import document
from bigmodels.deploy.server import forms, records
from bigmodels.deploy.server.batching import Batcher
from bigmodels.deploy.server.failures import Failure, of_validation
from bigmodels.tasks.speech_to_text import SpeechToText

MOST_PARTS = 64  # of an upload, files or texts


async def parsed(request: Request, form: type[forms.Form]) -> Any:
    """The body of a request as a form.

    Raises:
      Failure: for another type of content, what is no JSON, and naming the fields that are wrong.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        raise Failure(415, f'The body is {kind or "of no type"}, wanted application/json.')
    body = await request.body()
    try:
        return await asyncio.to_thread(form.model_validate_json, body)
    except pydantic.ValidationError as error:
        raise of_validation(error) from error


async def uploaded(request: Request) -> tuple[FormData, dict[UploadFile, bytes]]:
    """A form, and what its files hold; its limits are those of a body, see `limits`.

    Raises:
      Failure: for what is no form, or one that is said to be in another charset than UTF-8.
    """
    _, options = parse_options_header(request.headers['content-type'])
    charset = options.get(b'charset', b'utf-8').decode('latin-1').lower()
    if charset not in ('utf-8', 'utf8'):  # in some of them texts are what UTF-8 cannot be
        raise Failure(415, f'The form is in the charset {charset[:40]!r}, wanted utf-8.')
    size = len(await request.body())
    try:
        form = await request.form(
            max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=max(size, 1)
        )
    except (MultiPartException, UnicodeDecodeError, ValueError) as error:
        raise Failure(400, f'The body is no form as it says: {error}.') from error
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    return form, {file: await file.read() for file in files}


def is_upload(request: Request) -> bool:
    """Whether the body is a form with files."""
    return request.headers.get('content-type', '').lower().startswith('multipart/form-data')


class Answering:
    """The endpoints of a run that answers records.

    Fields:
      form: the model of a request to `predict`.
    """

    def __init__(self, run: runs.Run, name: str, batcher: Batcher, max_pixels: int):
        self._task, self._name, self._batcher = run.task, name, batcher
        self._trained = rundir.batch_shapes(run.workdir, 1)
        if getattr(self._task, 'any_size', False):  # each size is computed as it comes
            trained = np.prod(self._trained['inputs'].shape[1:3])
            max_pixels = min(max_pixels, 16 * int(trained))
        self._predictor = predict.Predictor(run)
        self._reader = records.Reader(self._task, max_pixels)
        self.form = forms.prediction_form(self._reader.form)

    def warm(self) -> None:
        """Compiles what can be known before a record comes, by answering a blank one."""
        fields = self._task.record_fields
        if 'array' in fields.values():  # graphs are of any shape
            return
        self._batcher.warm(self._predictor.answers, self.blank())

    def blank(self) -> dict[str, np.ndarray]:
        """The example of a record that says nothing."""
        fields = self._task.record_fields
        return self._predictor.example({name: self._blank(kind) for name, kind in fields.items()})

    def _blank(self, kind: str) -> Any:
        shape = self._trained['inputs'].shape[1:]
        if kind == 'image':
            return np.zeros((*shape[:2], 3), np.uint8)
        if kind == 'video':
            return np.zeros((*shape[:3], 3), np.uint8)
        if kind == 'audio':
            return np.zeros(shape, np.float32)
        if kind == 'text':
            return _some_text(self._task.vocabulary)
        return [0.0] * shape[0] if kind == 'series' else 0

    async def predict(self, request: Request) -> Response:
        """The task's answer to each record, in their order; pictures are data URLs."""
        examples = await self.examples(request)
        answers = await self._batcher.answers(self._predictor.answers, examples)
        return await asyncio.to_thread(_as_response, answers)

    async def examples(self, request: Request) -> list[Mapping[str, np.ndarray]]:
        """Those of the records that a request holds, as JSON or as files."""
        if is_upload(request):
            read = functools.partial(self._reader.of_files, *await uploaded(request))
        else:
            form = await parsed(request, self.form)
            read = functools.partial(self._of_json, form.inputs)
        return await asyncio.to_thread(self._examples, read)

    def _of_json(self, inputs: Sequence[pydantic.BaseModel]) -> list[dict]:
        read, files = [], self._reader.files()
        for i, record in enumerate(inputs):
            try:
                read.append(self._reader.of_json(record, f'inputs.{i}', files))
            except errors.UserError as error:
                raise Failure(400, str(error), param=f'inputs.{i}') from error
        return read

    def _examples(self, read) -> list[Mapping[str, np.ndarray]]:
        examples = []
        for i, record in enumerate(read()):
            try:
                examples.append(self._predictor.example(record))
            except errors.UserError as error:
                raise Failure(400, f'inputs.{i}: {error}', param=f'inputs.{i}') from error
        return examples

    async def transcribe(self, request: Request) -> Response:
        """The text of the recording in the part `file`."""
        if not is_upload(request):
            raise Failure(415, 'A recording is sent as a form, multipart/form-data.')
        form, files = await uploaded(request)
        texts = {name: value for name, value in form.items() if name != 'file'}
        try:
            asked = forms.Transcription.model_validate(texts)
        except pydantic.ValidationError as error:
            raise of_validation(error) from error
        check_model(asked.model, [self._name])
        if len(files) != 1 or not isinstance(form.get('file'), UploadFile):
            raise Failure(400, "The form needs one file, the part 'file'.", param='file')
        [data] = files.values()

        def read() -> list[dict]:
            [name] = self._task.record_fields
            record = {name: records.recording(data, 'file', self._task.sample_rate)}
            if isinstance(self._task, SpeechToText) and asked.language:
                record[self._task.language_key] = asked.language
            return [record]

        examples = await asyncio.to_thread(self._examples, read)
        [text] = await self._batcher.answers(self._predictor.answers, examples)
        if asked.response_format == 'text':
            return PlainTextResponse(text + '\n')
        return JSONResponse({'text': text})


class Embedding:
    """The endpoint of a run that embeds texts, by its task's `text_example` and `embed_texts`."""

    def __init__(self, run: runs.Run, name: str, batcher: Batcher):
        self._task, self._name, self._batcher = run.task, name, batcher
        self._program = predict.Program(run.task.embed_texts, run.params, run.model_state)

    def warm(self) -> None:
        """Compiles what short texts take; longer ones are compiled as they come."""
        ids = self._task.vocabulary.encode(_some_text(self._task.vocabulary))
        self._batcher.warm(self._program, self._task.text_example(ids))

    async def embed(self, request: Request) -> Response:
        """A vector for each text, as numbers or as float32 in base64."""
        asked = await parsed(request, forms.Embeddings)
        check_model(asked.model, [self._name])
        vocabulary = self._task.vocabulary
        texts = await asyncio.to_thread(as_token_ids, asked.input, vocabulary, 'input')
        examples = [self._task.text_example(ids) for ids in texts]
        vectors = await self._batcher.answers(self._program, examples)
        vectors = [np.asarray(vector, '<f4') for vector in vectors]
        if asked.dimensions not in (None, len(vectors[0])):
            raise Failure(
                400, f'The model has {len(vectors[0])} dimensions, and no other number of them.',
                param='dimensions',
            )  # fmt: skip
        if asked.encoding_format == 'base64':
            shown = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
        else:
            shown = [records.plain(vector.tolist()) for vector in vectors]
        count = sum(map(len, texts))
        return JSONResponse(
            {
                'object': 'list',
                'data': [
                    {'object': 'embedding', 'index': i, 'embedding': vector}
                    for i, vector in enumerate(shown)
                ],
                'model': self._name,
                'usage': {'prompt_tokens': count, 'total_tokens': count},
            }
        )


def as_token_ids(
    given: str | Sequence, vocabulary: Any, param: str, empty: Sequence[int] = ()
) -> list[np.ndarray]:
    """The token ids of a document, of several, or these ids themselves.

    Args:
      param: what they are called in errors.
      empty: what stands for an empty text; none are allowed by default.

    Raises:
      Failure: for a text without a token, and ids that are none.
    """
    one = isinstance(given, str) or isinstance(given[0], int)
    found = []
    for i, item in enumerate([given] if one else given):
        where = param if one else f'{param}.{i}'
        try:
            ids = np.asarray(document(vocabulary, item) if isinstance(item, str) else item)
            ids = ids if len(ids) else np.asarray(empty)
        except errors.UserError as error:
            raise Failure(400, f'{where}: {error}', param=where) from error
        if not len(ids):
            raise Failure(400, f'{where} is empty.', param=where)
        if ids.max() >= vocabulary.vocab_size:
            raise Failure(
                400, f'{where} has the token {ids.max()}: there are 0 to '
                f'{vocabulary.vocab_size - 1}.', param=where,
            )  # fmt: skip
        found.append(ids.astype(np.int32))
    return found


def check_model(asked: str, names: Collection[str]) -> None:
    """Raises Failure for a model that is not served here."""
    if asked not in names:
        served = ', '.join(map(repr, names))
        raise Failure(
            404, f'There is no model {asked[:100]!r} here, but {served}.', param='model',
            code='model_not_found',
        )  # fmt: skip


def _some_text(vocabulary: Any) -> str:
    """The first text that is a token of it, other than blanks."""
    texts = (vocabulary.decode([id]) for id in range(vocabulary.vocab_size))
    return next(t for t in texts if t.strip() and '\ufffd' not in t and len(vocabulary.encode(t)))


def _as_response(answers: Sequence[Any]) -> JSONResponse:
    shown = [
        predict.as_plain(answer, lambda _, suffix, file: records.as_data_url(suffix, file))
        for answer in answers
    ]
    return JSONResponse({'answers': records.plain(shown)})
