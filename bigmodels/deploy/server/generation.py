"""The tokens of an engine, as streams of text for one request each."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from bigmodels import errors, runs
from bigmodels.deploy import weights as weights_lib
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Event, Settings
from bigmodels.deploy.runner import QueueFull, Runner
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.server.failures import Failure
from bigmodels.deploy.server.texts import Assembler
from bigmodels.models.transformer import Transformer
from bigmodels.tasks.language_modeling import LanguageModeling


class Piece(NamedTuple):
    """A token of an answer, and the text that is certain with it.

    Fields:
      finish: why nothing follows; None where something does.
    """

    text: str
    token: int
    log_prob: float
    finish: Literal['stop', 'length'] | None


def generates(run: runs.Run) -> bool:
    """Whether a run's model continues texts."""
    is_causal = isinstance(run.model, Transformer) and run.model.causal
    return is_causal and isinstance(run.task, LanguageModeling)


class Generation:
    """A run's engine, and its streams.

    Fields:
      length: the most tokens of a prompt and its answer.
      spelling: the bytes of each token.
    """

    def __init__(self, run: runs.Run, slots: int, most_waiting: int, weights: str | None):
        self._run, self._slots, self._most_waiting = run, slots, most_waiting
        self._weights = weights
        self._runner: Runner | None = None
        self.length = run.model.max_length
        vocabulary = run.task.vocabulary
        self.spelling = vocabulary.token_bytes()
        self._end = vocabulary.end_of_text if run.task.append_end_of_text else None

    def warm(self) -> None:
        """Compiles the engine and starts it."""
        model, params = weights_lib.packed(self._run.model, self._run.params, self._weights)
        self._runner = Runner(Engine(model, params, slots=self._slots), self._most_waiting)

    def close(self) -> None:
        """Ends what is being generated."""
        if self._runner is not None:
            self._runner.close()

    def submit(
        self,
        ids: np.ndarray,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        stop: Sequence[str],
    ) -> 'Stream':
        """Takes a prompt, int32 [n]; its answer ends before a stop string.

        Raises:
          Failure: if too many wait.
          UserError: if the prompt or the settings cannot be.
        """
        if '' in stop:
            raise errors.UserError('A stop string is empty: it would end every text at once.')
        stops = () if self._end is None else ((self._end,),)
        settings = Settings(max_new_tokens, sampling, stops, seed)
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
        return Stream(events, assembler, self._end, lambda: self._runner.cancel(request))


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
                if event.token is None:
                    raise RuntimeError(f'The engine ended an answer with {event.finish!r}.')
                text = self._assembler.add(event.token) if event.token != self._end else ''
                finish = 'stop' if self._assembler.is_stopped else event.finish
                if finish is not None:
                    text += self._assembler.end()
                yield Piece(text, event.token, event.log_prob, finish)
        finally:
            self.cancel()
