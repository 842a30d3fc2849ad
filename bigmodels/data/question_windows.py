"""Questions before parts of their passages, for an encoder that marks the answer.

Axes: L tokens of a window, A tokens of an answer, R references.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index
from bigmodels.data.sources.pair_sources import check_answers
from bigmodels.data.text import text_of
from bigmodels.data.tokenizers import Tokenizer

UNUSED = -1  # where a row of references has no token


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a question and its context become token sequences.

    Window w of a record is [the question's first tokens, an end token, the context's tokens from
    w * stride on as far as there is room, padding], as by Devlin et al. 2019, section 4.2. Every
    token of the context is in one, and all but the last are full.

    Fields:
      length: L.
      question_length: the most tokens of a question that are kept.
      stride: by how many tokens of the context one window begins after the other.
      answer_length, max_references: A and R, the room for right answers.
    """

    tokenizer: Tokenizer
    length: int
    question_length: int
    stride: int
    answer_length: int
    max_references: int

    def __post_init__(self):
        room = self.length - self.question_length - 1
        if not 1 <= self.stride <= room:
            raise errors.UserError(
                f'task.stride = {self.stride} must be from 1 to {room}, the tokens of a context '
                f'that task.sequence_length = {self.length} leaves beside the question.'
            )

    def of(self, record: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The windows of a record with 'question' and 'context', as in `pair_sources.Squad`.

        Each is {'inputs', 'segment_ids' int32 [L], 'context_start' int32}, the place of the first
        token of the context. Of a record with answers also 'targets' int32 [2], the places of the
        first answer's first and last token, or twice that of the end token where the window lacks
        a part of it; and 'references' int32 [R, A], the tokens of right answers.

        Raises:
          UserError: for a tokenizer whose tokens do not spell the text, too many answers, answers
            that are too long, and those that are not where they are said to be.
        """
        encode, end = self.tokenizer.encode, self.tokenizer.end_of_text
        question = np.append(encode(text_of(record, 'question'))[: self.question_length], end)
        context = encode(text_of(record, 'context'))
        room = self.length - len(question)
        answer = None
        if 'answers' in record:
            check_answers(record)
            answer = self._answer_tokens(record, context)
        windows = []
        for start in range(0, max(len(context) - room, 0) + self.stride, self.stride):
            part = context[start : start + room]
            ids = np.concatenate([question, part])
            window = {
                'inputs': np.pad(ids, (0, self.length - len(ids))).astype(np.int32),
                'segment_ids': (np.arange(self.length) < len(ids)).astype(np.int32),
                'context_start': np.int32(len(question)),
            }
            if answer is not None:
                inside = start <= answer[0] and answer[1] < start + len(part)
                places = answer - start + len(question) if inside else [len(question) - 1] * 2
                window['targets'] = np.array(places, np.int32)
                window['references'] = self._references(record['answers'])
            windows.append(window)
        return windows

    def _answer_tokens(self, record: Mapping[str, Any], context: np.ndarray) -> np.ndarray:
        """The first and the last token of the context that spell the first answer, int [2]."""
        stops = self.tokenizer.byte_lengths()[context].cumsum()
        text = record['context']
        if len(context) == 0 or stops[-1] != len(text.encode()):
            raise errors.UserError(
                'The tokens of a context do not spell its text byte by byte, so that answers '
                "cannot be found in them: use the tokenizer 'bpe' or 'bytes'."
            )
        first = len(text[: record['starts'][0]].encode())
        last = first + len(record['answers'][0].encode()) - 1
        return np.searchsorted(stops, [first, last], side='right')

    def _references(self, answers: Sequence[str]) -> np.ndarray:
        if len(answers) > self.max_references:
            raise errors.UserError(
                f'There are {len(answers)} answers, more than task.max_references = '
                f'{self.max_references}: raise it.'
            )
        rows = np.full((self.max_references, self.answer_length), UNUSED, np.int32)
        for row, answer in zip(rows, answers, strict=False):
            ids = self.tokenizer.encode(answer)
            if len(ids) > self.answer_length:
                raise errors.UserError(
                    f'The answer {answer[:40]!r}... has {len(ids)} tokens, more than '
                    f'task.answer_length = {self.answer_length}: raise it.'
                )
            row[: len(ids)] = ids
        return rows


class QuestionWindows:
    """Every window of every record; its 'record' int32 says of which.

    Raises:
      UserError: see `Windows.of`, and for a record that lacks a field; it names the record.
    """

    def __init__(self, source: Sequence, windows: Windows):
        self._examples = []
        where = source.describe()
        for i in range(len(source)):
            with errors.told_of(f'Record {i} of {where}'):
                record = source[i]
                for name in ('question', 'context', 'answers', 'starts'):
                    if name not in record:
                        raise errors.unknown('record field', name, record)
                made = windows.of(record)
            self._examples += [{**window, 'record': np.int32(i)} for window in made]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._examples[checked_index(index, len(self))]
