"""The tokens of an engine, as streams of text for one request each."""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from bigmodels import errors, runs
from bigmodels.data.tokenizers import spelling
from bigmodels.deploy import weights as weights_lib
from bigmodels.deploy.constraints import Grammars
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Event, Matcher, Settings
from bigmodels.deploy.runner import QueueFull, Runner
from bigmodels.deploy.server import forms
from bigmodels.deploy.server.failures import Failure
from bigmodels.deploy.server.texts import Assembler
from bigmodels.models.transformer import Transformer
from bigmodels.tasks.language_modeling import LanguageModeling


class Piece(NamedTuple):
    """A token of an answer, and the text that is certain with it.

    Fields:
      log_prob: None of a token that nothing is before.
      finish: why nothing follows; None where something does.
      alternatives: see `requests.Event`.
    """

    text: str
    token: int
    log_prob: float | None
    finish: Literal['stop', 'length'] | None
    alternatives: tuple[tuple[int, float], ...] = ()


def generates(run: runs.Run) -> bool:
    """Whether a run's model continues texts."""
    is_causal = isinstance(run.model, Transformer) and run.model.causal
    return is_causal and isinstance(run.task, LanguageModeling)


class Generation:
    """The engine of a run, or of several whose adapters have one base, and its streams.

    Fields:
      tasks: by the names of the models.
      length: the most tokens of a prompt and its answer.
      spelling: the bytes of each token the model may give.
      packed: the model and its params as the engine has them, once it is warm.
    """

    def __init__(
        self,
        served: Mapping[str, runs.Run],
        slots: int,
        most_waiting: int,
        weights: str | None,
    ):
        self.tasks = {name: run.task for name, run in served.items()}
        self._params = [run.params for run in served.values()]
        self._slots, self._most_waiting, self._weights = slots, most_waiting, weights
        self._runner: Runner | None = None
        self.packed: tuple[Transformer, Mapping] | None = None
        self.length = min(run.model.max_length for run in served.values())
        first = next(iter(served.values()))
        self._model, self._vocabulary = first.model, first.task.vocabulary
        self.spelling = spelling(self._vocabulary, self._model.vocab_size)

    def warm(self) -> None:
        """Compiles the engine and starts it."""
        model, params = weights_lib.packed_together(self._model, self._params, self._weights)
        self.packed = model, params
        engine = Engine(model, params, slots=self._slots, length=self.length)
        self._runner = Runner(engine, self._most_waiting)

    def close(self) -> None:
        """Ends what is being generated."""
        if self._runner is not None:
            self._runner.close()

    @property
    def has_failed(self) -> bool:
        """Whether the engine has raised: it answers nothing any more."""
        return self._runner is not None and self._runner.has_failed

    def adapter(self, model: str) -> int:
        """The place of a model among those that are served."""
        return list(self.tasks).index(model)

    @functools.cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._vocabulary)

    def matcher(self, asked: forms.AnyFormat) -> Callable[[], Matcher]:
        """What keeps an answer to a format other than text; may take a second.

        Raises:
          UserError: for what is no schema or expression, or cannot be kept to here.
        """
        if isinstance(asked, forms.RegexFormat):
            return self._grammars.regex(asked.pattern)
        if isinstance(asked, forms.JsonSchemaFormat):
            return self._grammars.json_schema(asked.json_schema.schema_)
        return self._grammars.json_schema({'type': 'object'})

    def submit(
        self, ids: np.ndarray, model: str, settings: Settings, stop: Sequence[str]
    ) -> 'Stream':
        """Takes a prompt, int32 [n]; its answer ends before a stop string.

        Args:
          settings: but for what ends a text of the model, and which adapter it is.

        Raises:
          Failure: if too many wait.
          UserError: if the prompt or the settings cannot be.
        """
        if '' in stop:
            raise errors.UserError('A stop string is empty: it would end every text at once.')
        end = self.tasks[model].end
        if settings.matcher is not None:  # for a grammar it always ends a text
            end = self._vocabulary.end_of_text
        stops = settings.stops if end is None else (*settings.stops, (end,))
        settings = dataclasses.replace(settings, stops=stops, adapter=self.adapter(model))
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def listener(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # of a loop that is closed: nobody waits
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            request = self._runner.submit(ids.tolist(), settings, listener=listener)
        except QueueFull as error:
            raise Failure(
                429, str(error), code='too_many_requests', headers={'Retry-After': '1'}
            ) from error
        assembler = Assembler(self.spelling, stop)
        return Stream(events, assembler, end, lambda: self._runner.cancel(request))


class Stream:
    """The pieces of one answer, as they come; `cancel` ends it, which is idle afterwards."""

    def __init__(self, events: asyncio.Queue, assembler: Assembler, end: int | None, cancel):
        self._events, self._assembler, self._end, self.cancel = events, assembler, end, cancel

    async def pieces(self) -> AsyncIterator[Piece]:
        """Each of them; who stops asking has it cancelled."""
        try:
            finish = None
            while finish is None:
                event = await self._events.get()
                if event.finish == 'unmatched':
                    raise Failure(
                        400, 'No token of the model goes on with what the format wants.',
                        param='response_format', code='unmatched',
                    )  # fmt: skip
                if event.token is None:
                    raise RuntimeError(f'The engine ended an answer with {event.finish!r}.')
                text = self._assembler.add(event.token) if event.token != self._end else ''
                finish = 'stop' if self._assembler.is_stopped else event.finish
                if finish is not None:
                    text += self._assembler.end()
                yield Piece(text, event.token, event.log_prob, finish, event.alternatives)
        finally:
            self.cancel()
