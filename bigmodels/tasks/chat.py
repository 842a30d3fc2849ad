"""The answers of an assistant in conversations: supervised fine-tuning."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors
from bigmodels.data import chat, text
from bigmodels.deploy import decoding, weights
from bigmodels.deploy.sampling import Sampling
from bigmodels.scores import text as text_scores
from bigmodels.tasks.base import Examples
from bigmodels.tasks.language_modeling import LanguageModeling


@dataclasses.dataclass(frozen=True)
class Chat(LanguageModeling):
    """Conversations of `sources.chat_sources.Chats` -> the next-token loss of their answers alone.

    Their text is that of the tokenizer's chat template, if it has one, see `data.chat`. In training
    they are side by side in rows, in evaluation each has its own. Fields beside those
    of `LanguageModeling`, whose `sample_prompt` is a question here:
      cut_conversations: longer ones than `sequence_length` lose their end; else they are refused.
      score_names: keys of `scores.text.SCORES`: of a set's last answers, made greedily.
      scored: so many of the first conversations of a set are answered for scores.
      answer_tokens: the most tokens of such an answer.
    """

    packing: ClassVar = 'documents'
    text_field: ClassVar = 'messages'
    append_end_of_text: ClassVar = True

    cut_conversations: bool = False
    score_names: Sequence[str] = ()
    scored: int = 128
    answer_tokens: int = 256

    def __post_init__(self):
        super().__post_init__()
        text_scores.check(self.score_names)
        if self.score_names and min(self.scored, self.answer_tokens) < 1:
            raise errors.UserError(
                f'task.scored = {self.scored} and answer_tokens = {self.answer_tokens} must be at '
                'least 1 where there are score_names.'
            )
        if self.score_names and self.sequence_length + self.answer_tokens > self.model.max_length:
            raise errors.UserError(
                f'task.sequence_length = {self.sequence_length} and answer_tokens = '
                f'{self.answer_tokens} exceed model.max_length = {self.model.max_length}.'
            )

    def _texts(self, record: Mapping[str, Any]) -> Sequence[str]:
        return [piece for piece, _ in chat.pieces(record['messages'])]

    def prompt(self, text: str) -> np.ndarray:
        """The ids before the answer to a question, int32 [L]."""
        return chat.prompt(self.vocabulary, [{'role': 'user', 'content': text}])

    @property
    def end(self) -> int:
        """The id that ends an answer."""
        return chat.end_of_answer(self.vocabulary)

    def encoded(self, messages: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
        """`chat.encode`, of at most L tokens.

        Raises:
          UserError: for a longer conversation, unless it may be cut.
        """
        ids, learnt = chat.encode(self.vocabulary, messages)
        if len(ids) > self.sequence_length and not self.cut_conversations:
            raise errors.UserError(
                f'The conversation {messages[0]["content"][:40]!r}... has {len(ids)} tokens, more '
                f'than task.sequence_length = {self.sequence_length}: raise it, leave it out, or '
                'set task.cut_conversations.'
            )
        return ids[: self.sequence_length], learnt[: self.sequence_length]

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs', 'targets' int32 [L], 'weights' float32 [L], 'prompt_length'}.

        'prompt_length' int32 is the number of tokens before the last answer.
        """
        ids, learnt = self.encoded(raw['messages'])
        return shifted(ids, learnt, self.sequence_length) | {
            'prompt_length': np.int32(np.flatnonzero(~learnt)[-1] + 1)
        }

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """Rows of conversations; in evaluation one a row, of which the first are 'scored'."""
        if not train:
            return _Asked(source, self, stacked=False)
        settings = [
            *chat.format_of(self.vocabulary),
            self.sequence_length,
            self.cut_conversations,
        ]
        corpus = text.cached_corpus(
            source,
            self.vocabulary,
            cache_dir,
            settings,
            lambda record: self.encoded(record['messages']),
            'its messages',
        )
        return text.Packed(corpus, self.sequence_length)

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """'answers' int32 [B, T] of 'counts' [B] tokens each, and what they are scored by.

        A batch without a scored conversation is not answered.
        """
        if not self.score_names or 'scored' not in batch:
            return {}

        def answer(params):
            model, params = weights.packed(self.model, params)
            return decoding.continue_prompts(
                model,
                params,
                batch['inputs'],
                batch['prompt_length'],
                jnp.asarray([[self.end]], jnp.int32),
                jax.random.key(0),
                Sampling(temperature=0.0).rows(len(batch['inputs']), only_used=True),
                max_new_tokens=self.answer_tokens,
            )

        shapes = jax.eval_shape(answer, params)
        none = lambda params: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        answers, counts, _ = jax.lax.cond(batch['scored'].any(), answer, none, params)
        kept = {name: batch[name] for name in ('targets', 'prompt_length', 'scored')}
        return {'answers': answers, 'counts': counts, 'learnt': batch['weights'], **kept}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The scores of the scored conversations' last answers as texts; NaN if none is scored."""
        if not outcomes['scored'].any():
            return dict.fromkeys(self.score_names, float('nan'))
        answers, references = [], []
        for i in np.flatnonzero(outcomes['scored']):
            start = outcomes['prompt_length'][i] - 1
            right = outcomes['targets'][i, start:][outcomes['learnt'][i, start:] > 0]
            answers.append(self._text(outcomes['answers'][i, : outcomes['counts'][i]]))
            references.append([self._text(right)])
        return {name: text_scores.SCORES[name](answers, references) for name in self.score_names}

    def _text(self, ids: np.ndarray) -> str:
        return self.vocabulary.decode(ids[ids != self.end])


def shifted(ids: np.ndarray, learnt: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """A conversation's inputs, targets and weights [length], padded with weight 0."""
    example = {name: np.zeros(length, np.int32) for name in ('inputs', 'targets')}
    example['inputs'][: len(ids)] = ids
    example['targets'][: len(ids) - 1] = ids[1:]
    example['weights'] = np.zeros(length, np.float32)
    example['weights'][: len(ids) - 1] = learnt[1:]
    return example


@dataclasses.dataclass(frozen=True)
class _Asked(Examples):
    """Conversations one a row, the first of which are 'scored', a bool, where they are whole."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example, scored = super().__getitem__(index), index < self.task.scored
        if scored and self.task.cut_conversations:
            ids, _ = chat.encode(self.task.vocabulary, self.source[index]['messages'])
            scored = len(ids) <= self.task.sequence_length
        return example | {'scored': np.bool_(scored)}
