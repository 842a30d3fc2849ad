"""What spoke for the answers to images and texts, by integrated gradients."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bigmodels import errors, runs
from bigmodels.deploy.server import records
from bigmodels.deploy.server.answering import Answering
from bigmodels.deploy.server.batching import Batcher
from bigmodels.deploy.server.description import Endpoint
from bigmodels.interpret import explanations, report

PATH = '/v1/attributions'
METHOD = 'integrated_gradients'


def offered(task: Any) -> bool:
    """Whether a task's answers are explained here."""
    try:
        return explanations.kind_of(task) in ('image', 'text')
    except errors.UserError:
        return False


class Attributing:
    """The endpoint of a run that classifies images or texts."""

    def __init__(self, run: runs.Run, answering: Answering, batcher: Batcher):
        self._task, self._answering, self._batcher = run.task, answering, batcher
        self._explainer = explanations.Explainer(run, [METHOD])

    def endpoint(self, files: Sequence[str]) -> Endpoint:
        """As the server lists it; `files` may be uploaded."""
        return Endpoint(
            PATH, 'POST', 'What spoke for the answer to each record.', self.answer,
            form=self._answering.form, upload=(None, files) if files else None,
        )  # fmt: skip

    def warm(self) -> None:
        """Compiles its program."""
        self._batcher.warm(self._one_by_one, self._answering.blank())

    async def answer(self, request: Request) -> Response:
        """For each record the answer, the class's attributions, and a picture of them or tokens."""
        examples = await self._answering.examples(request)
        found = await self._batcher.answers(self._one_by_one, examples)
        shown = await asyncio.to_thread(lambda: list(map(self._shown, examples, found)))
        return JSONResponse({'method': METHOD, 'attributions': shown})

    def _one_by_one(self, examples: Sequence[Mapping[str, np.ndarray]], size: int) -> list:
        # Gradients of many at once would make the device wait for long.
        return [self._explainer.attributions([example], 1)[0] for example in examples]

    def _shown(self, example: Mapping[str, np.ndarray], found: Mapping[str, Any]) -> dict:
        shown, values = found['shown'], found['maps'][METHOD]
        answer = self._task.postprocess(found['prediction'])
        if self._explainer.kind == 'text':
            ids = example['inputs'][: int(example['segment_ids'].sum())].tolist()
            about = {'tokens': [self._task.vocabulary.decode([id]) for id in ids]}
            values = values[: len(ids)]
        else:
            pixels = report.scaled(np.atleast_2d(shown))
            about = {'picture': report.data_url(report.over(pixels, np.atleast_2d(values)))}
        return records.plain({'answer': answer, 'values': values.tolist(), **about})
