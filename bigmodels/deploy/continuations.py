"""What a run's language model says after texts, for `bigmodels.predict`."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bigmodels import errors, runs
from bigmodels.data.text import text_of
from bigmodels.data.tokenizers import spelling
from bigmodels.deploy import text, weights
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.generate import check_language_model
from bigmodels.deploy.requests import Settings
from bigmodels.deploy.sampling import Sampling

SHORTEST = 128  # tokens of a context that programs are compiled for


class Continuations:
    """Records with a 'prompt' -> the likeliest tokens after it, `task.sample_tokens` at most.

    A `predict.Predictor` of texts of any length: they share an engine, which a longer text
    replaces by one of twice the context or more.
    """

    record_fields: ClassVar = {'prompt': 'text'}

    def __init__(self, run: runs.Run, size: int):
        """size: the most texts that are continued at once.

        Raises:
          UserError: for a run whose model does not continue text, or is to say nothing.
        """
        check_language_model(run)
        self._task, self._size = run.task, size
        if self._task.sample_tokens < 1:
            raise errors.UserError(
                f'config.task.sample_tokens = {self._task.sample_tokens} of an answer must be at '
                'least 1: --config.task.sample_tokens=100 asks for others.'
            )
        self._packed = weights.packed(self._task.model, run.params)
        self._engine = None

    def example(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{'inputs': token ids [L]} of a record.

        Raises:
          UserError: for a prompt that is no text, or leaves no room in the context.
        """
        ids = self._task.prompt(text_of(record, 'prompt'))
        longest = self._task.model.max_length
        if len(ids) >= longest:
            raise errors.UserError(
                f'A prompt of {len(ids)} tokens leaves no room in the context of {longest}: '
                'shorten it.'
            )
        return {'inputs': text.begun(self._task.vocabulary, ids)}

    def kind(self, example: Mapping[str, np.ndarray]) -> Hashable:
        """Any examples go together."""

    def answers(self, examples: Sequence[Mapping[str, np.ndarray]], size: int) -> list:
        """{'text'} of each."""
        task = self._task
        prompts = [example['inputs'] for example in examples]
        counts = [min(task.sample_tokens, task.model.max_length - len(ids)) for ids in prompts]
        needed = max(len(ids) + count for ids, count in zip(prompts, counts, strict=True))
        if self._engine is None or self._engine.length < needed:
            length = min(max(SHORTEST, 1 << (needed - 1).bit_length()), task.model.max_length)
            self._engine = Engine(*self._packed, slots=self._size, length=length)
        ends = () if task.end is None else ((task.end,),)
        requests = [
            self._engine.submit(ids, Settings(count, Sampling(temperature=0), ends))
            for ids, count in zip(prompts, counts, strict=True)
        ]
        while self._engine.num_waiting + self._engine.num_active:
            self._engine.step()
        spelt = spelling(task.vocabulary, task.model.vocab_size)
        return [{'text': text.spelt_text(spelt, r.new_tokens, task.end)} for r in requests]
