"""What a run's task can do, as one ASGI app."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from bigmodels import errors, rundir, runs, trees
from bigmodels.data import inputs
from bigmodels.deploy.server import attributions, forms, page, telemetry
from bigmodels.deploy.server.answering import Answering, Embedding, check_model
from bigmodels.deploy.server.batching import Batcher
from bigmodels.deploy.server.completions import Completions
from bigmodels.deploy.server.description import Endpoint, describe
from bigmodels.deploy.server.failures import Failure
from bigmodels.deploy.server.generation import Generation, generates
from bigmodels.deploy.server.limits import Admission, Limits
from bigmodels.deploy.server.scoring import Scoring
from bigmodels.tasks.speech_to_text import SpeechToText
from bigmodels.tasks.transcription import Transcription

COMPLETIONS = '/v1/completions', '/v1/chat/completions'


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is served.

    Fields:
      name: of the model, for clients.
      batch_size: examples, or texts that go on, that are computed together at most.
      batch_wait: seconds that one waits at most for others.
      waiting: texts that wait to be gone on with at most.
      weights: how kernels are kept while texts go on, see `weights.packed`.
      max_pixels: of all images, or frames of videos, of a request.
    """

    name: str
    batch_size: int = 8
    batch_wait: float = 0.003
    waiting: int = 256
    weights: str | None = None
    max_pixels: int = 16_000_000

    def __post_init__(self):
        for name in ('batch_size', 'max_pixels'):
            if getattr(self, name) < 1:
                raise errors.UserError(f'{name} = {getattr(self, name)} must be at least 1.')


class Server:
    """A run behind its routes.

    Fields:
      app: the ASGI app.
      is_ready: whether everything is compiled and requests are answered.
    """

    def __init__(
        self,
        run: runs.Run,
        settings: Settings,
        limits: Limits,
        api_key: str | None,
        adapted: Mapping[str, runs.Run] = {},
    ):
        """Compiles nothing yet; `warm` does.

        Args:
          adapted: further runs by name, which differ in their adapters alone from `run`, see
            `common_base.of_one_base`.
        """
        self.run, self._settings = run, settings
        self._runs = {settings.name: run, **adapted}
        self.is_ready = False
        metrics = self._metrics = telemetry.Metrics()
        self._batcher = Batcher(settings.batch_size, settings.batch_wait, metrics.batches.observe)
        self._generation: Generation | None = None
        self._warm: list[Callable[[], None]] = []
        self._endpoints = self._offered()
        self._models = [self._described(name, run) for name, run in self._runs.items()]
        served = [*self._endpoints, *self._common()]
        self._document = describe(served, list(self._runs), api_key is not None)
        own = [
            Route('/', page.answer),
            Route('/healthz', self._health),
            Route('/readyz', self._readiness),
            Route('/metrics', metrics.answer),
            Route('/openapi.json', self._description),
        ]
        routes = [*own, *(endpoint.route() for endpoint in served)]
        router = Router(routes, default=self._not_offered, redirect_slashes=False)
        paths = frozenset(route.path for route in routes)
        self.app = telemetry.Observed(
            Admission(self._when_ready(router), limits, api_key), metrics, paths
        )

    def _offered(self) -> list[Endpoint]:
        """The endpoints of the task; each adds what is to be compiled for it."""
        task, name = self.run.task, self._settings.name
        found = self._completions() if generates(self.run) else []
        if hasattr(task, 'record_fields'):
            answering = Answering(self.run, name, self._batcher, self._settings.max_pixels)
            self._warm.append(answering.warm)
            files = ['file'] if inputs.only_kind(task.record_fields) in ('image', 'audio') else []
            found.append(
                Endpoint(
                    '/v1/predict', 'POST', 'The answer to each record.', answering.predict,
                    form=answering.form, upload=(None, files) if files else None,
                )
            )  # fmt: skip
            if attributions.offered(task):
                attributing = attributions.Attributing(self.run, answering, self._batcher)
                self._warm.append(attributing.warm)
                found.append(attributing.endpoint(files))
            if isinstance(task, Transcription | SpeechToText):
                found.append(
                    Endpoint(
                        '/v1/audio/transcriptions', 'POST', 'The text of a recording.',
                        answering.transcribe, upload=(forms.Transcription, ['file']),
                        returns=('application/json', 'text/plain'),
                    )
                )  # fmt: skip
        if hasattr(task, 'embed_texts'):
            embedding = Embedding(self.run, name, self._batcher)
            self._warm.append(embedding.warm)
            found.append(
                Endpoint(
                    '/v1/embeddings', 'POST', 'A vector for each text.', embedding.embed,
                    form=forms.Embeddings,
                )
            )  # fmt: skip
        if not found:
            raise errors.UserError(
                f'{self.run.workdir} holds a {type(task).__name__}, which answers nothing.'
            )
        return found

    def _completions(self) -> list[Endpoint]:
        settings = self._settings
        self._generation = Generation(
            self._runs, settings.batch_size, settings.waiting, settings.weights
        )
        scoring = Scoring(self._generation, self._batcher)
        self._warm += [self._generation.warm, scoring.warm]
        asked = Completions(self._generation, scoring, self._metrics)
        returns = 'application/json', 'text/event-stream'
        return [
            Endpoint(
                COMPLETIONS[0], 'POST', 'Texts that go on.', asked.complete,
                form=forms.Completion, returns=returns,
            ),
            Endpoint(
                COMPLETIONS[1], 'POST', 'The next message of a chat.', asked.chat,
                form=forms.Chat, returns=returns,
            ),
        ]  # fmt: skip

    def _common(self) -> Sequence[Endpoint]:
        return (
            Endpoint('/v1/models', 'GET', 'The models that are served.', self._all_models),
            Endpoint('/v1/models/{model}', 'GET', 'The same of one.', self._one_model),
        )

    def warm(self) -> None:
        """Compiles everything, which takes a while; then the server is ready."""
        for warm in self._warm:
            try:
                warm()
            except errors.UserError as error:
                logging.getLogger(telemetry.LOGGER).warning(
                    'Nothing is compiled before the first request, as a blank one is refused: %s',
                    error,
                )
        self.is_ready = True

    def close(self, timeout: float = 1.0) -> None:
        """Ends what computes, waiting so many seconds for it."""
        self.is_ready = False
        self._batcher.close(timeout)
        if self._generation is not None:
            self._generation.close()

    def _when_ready(self, app: Any):
        async def asked(scope, receive, send):
            if scope['path'].startswith('/v1/') and scope['method'] == 'POST' and not self.is_ready:
                raise Failure(
                    503, 'The model is being compiled.', code='not_ready',
                    headers={'Retry-After': '1'},
                )  # fmt: skip
            await app(scope, receive, send)

        return asked

    async def _not_offered(self, scope, receive, send) -> None:
        offered = ', '.join(endpoint.path for endpoint in self._endpoints)
        raise Failure(
            404,
            f'There is nothing at {scope["path"][:100]}; a {type(self.run.task).__name__} is asked '
            f'at {offered}.',
            code='unknown_url',
        )

    async def _health(self, request: Request) -> Response:
        if self._generation is not None and self._generation.has_failed:
            return PlainTextResponse('failed\n', 503)
        return PlainTextResponse('alive\n')

    async def _readiness(self, request: Request) -> Response:
        if not self.is_ready:
            return PlainTextResponse('not ready\n', 503)
        alive = await self._health(request)
        return alive if alive.status_code != 200 else PlainTextResponse('ready\n')

    async def _description(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def _all_models(self, request: Request) -> Response:
        return JSONResponse({'object': 'list', 'data': self._models})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params['model']
        check_model(name, self._runs)
        return JSONResponse(next(model for model in self._models if model['id'] == name))

    def _described(self, name: str, run: runs.Run) -> dict[str, Any]:
        """As the OpenAI API lists models; what the page shows of it, in addition."""
        task = run.task
        return {
            'id': name,
            'object': 'model',
            'created': int((run.workdir / rundir.CONFIG).stat().st_mtime),
            'owned_by': 'bigmodels',
            'task': run.config['task']['name'],
            'step': run.step,
            'parameters': trees.count(run.params),
            'facts': task.facts(),
            'fields': dict(getattr(task, 'record_fields', {})),
            'endpoints': [
                endpoint.path
                for endpoint in self._endpoints
                if run is self.run or endpoint.path in COMPLETIONS
            ],
        }
