"""A run as the library lm_eval asks a model; `interop.lm_eval` is the command."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from bigmodels import errors, runs
from bigmodels.data.tokenizers import spelling
from bigmodels.deploy import scoring, weights
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Settings
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.server.texts import Assembler

# What tasks say of generation that changes nothing here.
_IGNORED = ('use_cache', 'max_length')
_MOST = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')


class Model(TemplateLM):
    """A run that continues texts, for `lm_eval.simple_evaluate(model=Model(run), tasks=[...])`.

    Texts are read as they are, also by a run of chats. What is longer than the context loses its
    beginning.

    Args:
      run: of `generate.open_language_model`.
      batch_size: texts that are computed together.
      max_new_tokens: of a generated text, where its task says nothing.
    """

    def __init__(self, run: runs.Run, batch_size: int = 8, max_new_tokens: int = 256):
        super().__init__()
        if batch_size < 1:
            raise errors.UserError(f'batch_size = {batch_size} must be at least 1.')
        self._task, self._params, self._batch_size = run.task, run.params, batch_size
        self._max_new_tokens = max_new_tokens
        self._length = run.model.max_length
        self._engine: Engine | None = None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self._task.vocabulary.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text comes after."""
        begin = self._task.vocabulary.begin_of_text
        return self.eot_token_id if begin is None else begin

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text, behind the token that begins a document, if there is one."""
        ids = self._task.vocabulary.encode(string).tolist()
        begin = self._task.vocabulary.begin_of_text
        return ids if begin is None or add_special_tokens is False else [begin, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for (_, text), before, after in requests:
            room = self._length + 1 - len(after)
            if room < 1:
                raise errors.UserError(
                    f'{text[:40]!r}... has {len(after)} tokens, more than the context of '
                    f'{self._length}.'
                )
            pairs.append((before[-room:], after))
        found = scoring.log_likelihoods(self._task.model, self._params, pairs, self._batch_size)
        return [(float(nats), bool(greedy)) for nats, greedy in zip(*found, strict=True)]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Nats of whole texts, in pieces whose tokens have no more than the context before them."""
        pairs, owners = [], []
        for owner, request in enumerate(requests):
            ids = self._task.vocabulary.encode(request.args[0]).tolist()
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self._length, 1)
            for window in map(utils.make_disjoint_window, windows):
                pairs.append(window)
                owners.append(owner)
        nats, _ = scoring.log_likelihoods(self._task.model, self._params, pairs, self._batch_size)
        return np.bincount(owners, nats, len(requests)).tolist()

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a string that its task says, which is left out."""
        if self._engine is None:
            packed = weights.packed(self._task.model, self._params)
            self._engine = Engine(*packed, slots=self._batch_size)
        waiting = [self._submitted(i, *request.args) for i, request in enumerate(requests)]
        by_request = dict(waiting)
        texts = dict.fromkeys(by_request, '')
        while self._engine.num_waiting + self._engine.num_active:
            for event in self._engine.step():
                assembler = by_request[event.request]
                if event.token not in (None, self._task.end):
                    texts[event.request] += assembler.add(event.token)
                if event.finish is not None:
                    texts[event.request] += assembler.end()
                elif assembler.is_stopped:
                    self._engine.cancel(event.request)
        return list(texts.values())

    def _submitted(
        self, seed: int, context: str, asked: Mapping[str, Any]
    ) -> tuple[Any, Assembler]:
        """A request to the engine, and what makes a text of its tokens.

        seed: of the request alone, as tasks repeat one whose answers are to differ.
        """
        asked = {name: value for name, value in asked.items() if name not in _IGNORED}
        until = asked.pop('until', None) or []
        given = [asked.pop(name) for name in _MOST if name in asked]
        most = given[0] if given else self._max_new_tokens
        sampled = asked.pop('do_sample', None)
        temperature = asked.pop('temperature', float(bool(sampled)))
        temperature = 0.0 if sampled is False else temperature
        if asked.pop('num_beams', 1) != 1:
            raise errors.UserError('A task asks for beam search, which is not done here.')
        if not 0 < most < self._length:
            raise errors.UserError(
                f'max_gen_toks = {most} must be from 1 to {self._length - 1}: the context of the '
                f'model is {self._length}.'
            )
        for name in asked:
            if not hasattr(Sampling, name):
                raise errors.unknown('setting of generation', name, vars(Sampling()))
        ends = () if self._task.end is None else ((self._task.end,),)
        settings = Settings(most, Sampling(temperature, **asked), ends, seed)
        ids = self.tok_encode(context)[-(self._length - most) :] or [self.prefix_token_id]
        stops = [until] if isinstance(until, str) else list(until)
        spelt = spelling(self._task.vocabulary, self._task.model.vocab_size)
        assembler = Assembler(spelt, [stop for stop in stops if stop])
        return self._engine.submit(ids, settings), assembler
