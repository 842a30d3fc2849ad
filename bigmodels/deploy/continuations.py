"""What a run's language model says after texts, for `bigmodels.predict`."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bigmodels import errors, runs
from bigmodels.data.text import text_of
from bigmodels.deploy import weights
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.generate import check_language_model
from bigmodels.deploy.requests import Settings
from bigmodels.deploy.sampling import Sampling


class Continuations:
    """Records with a 'prompt' -> the likeliest tokens after it, `task.sample_tokens` at most.

    A `predict.Predictor` of texts of any length: an engine's programs are of every length.
    """

    record_fields: ClassVar = {'prompt': 'text'}

    def __init__(self, run: runs.Run, size: int):
        """size: the most texts that are continued at once.

        Raises:
          UserError: for a run whose model does not continue text, or is to say nothing.
        """
        check_language_model(run)
        self._task = run.task
        if self._task.sample_tokens < 1:
            raise errors.UserError(
                f'config.task.sample_tokens = {self._task.sample_tokens} of an answer must be at '
                'least 1: --config.task.sample_tokens=100 asks for others.'
            )
        self._engine = Engine(*weights.packed(self._task.model, run.params), slots=size)

    def example(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{'inputs': token ids [L]} of a record.

        Raises:
          UserError: for a prompt that is no text, or leaves no room in the context.
        """
        ids = self._task.prompt(text_of(record, 'prompt'))
        if len(ids) >= self._engine.length:
            raise errors.UserError(
                f'A prompt of {len(ids)} tokens leaves no room in the context of '
                f'{self._engine.length}: shorten it.'
            )
        return {'inputs': ids if len(ids) else np.asarray([self._task.vocabulary.end_of_text])}

    def kind(self, example: Mapping[str, np.ndarray]) -> Hashable:
        """Any examples go together."""

    def answers(self, examples: Sequence[Mapping[str, np.ndarray]], size: int) -> list:
        """{'text'} of each."""
        ends = () if self._task.end is None else ((self._task.end,),)
        requests = []
        for prompt in (example['inputs'] for example in examples):
            count = min(self._task.sample_tokens, self._engine.length - len(prompt))
            settings = Settings(count, Sampling(temperature=0), ends)
            requests.append(self._engine.submit(prompt, settings))
        while self._engine.num_waiting + self._engine.num_active:
            self._engine.step()
        return [{'text': self._text(request.new_tokens)} for request in requests]

    def _text(self, tokens: Sequence[int]) -> str:
        ended = len(tokens) > 0 and tokens[-1] == self._task.end
        return self._task.vocabulary.decode(tokens[:-1] if ended else tokens)
