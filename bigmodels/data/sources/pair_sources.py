"""Sources of texts that belong together: lines that correspond, questions and answers."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data import sources
from bigmodels.data.sources import FileSpans, checked_index, digest


class ParallelText:
    """Two UTF-8 files, plain or `.gz`, whose lines correspond: {'source': str, 'target': str}.

    Args:
      source, target: their paths.
      empty_lines: a pair of which one side is blank is an error, or left out and counted.

    Raises:
      UserError: for files of different numbers of lines, a blank line, or bytes that are no UTF-8.
    """

    def __init__(self, source: str, target: str, empty_lines: Literal['refuse', 'drop'] = 'refuse'):
        self._paths = source, target
        contents = hashlib.sha256()
        sides = [_line_spans(path, contents) for path in self._paths]
        counts = [len(side) for side in sides]
        if counts[0] != counts[1]:
            raise errors.UserError(
                f'{source} has {counts[0]:,} lines and {target} {counts[1]:,}: line i of one must '
                f'be the translation of line i of the other. Give files of equally many lines.'
            )
        blank = [i for i, pair in enumerate(zip(*sides, strict=True)) if _is_blank(pair)]
        if blank and empty_lines == 'refuse':
            path = self._paths[0 if sides[0][blank[0]][2] else 1]
            raise errors.UserError(
                f'{path}:{blank[0] + 1} is blank, as are {len(blank)} lines of one of the two '
                f"files. Remove these pairs, or set empty_lines = 'drop' to leave them out."
            )
        self._num_dropped = len(blank)
        kept = sorted(set(range(counts[0])) - set(blank))
        if not kept:
            raise errors.UserError(f'{source} and {target} hold no pair of lines.')
        self._spans = [
            FileSpans([path], [0] * len(kept), *zip(*(side[i][:2] for i in kept), strict=True))
            for path, side in zip(self._paths, sides, strict=True)
        ]
        self._fingerprint = digest('parallel_text', contents.hexdigest(), empty_lines)

    def __len__(self) -> int:
        return len(self._spans[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        source, target = (spans.read(i).decode() for spans in self._spans)
        return {'source': source, 'target': target}

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        dropped = f', {self._num_dropped:,} left out' if self._num_dropped else ''
        return f'parallel text {" and ".join(self._paths)}: {len(self):,} pairs{dropped}'


def _is_blank(pair) -> bool:
    return any(blank for _, _, blank in pair)


def _line_spans(path: str, contents) -> list[tuple[int, int, bool]]:
    """(first byte, last byte + 1, whether it is blank) of each line without its end.

    A byte order mark before the first one is not in it.
    """
    spans, start = [], 0
    for number, line in enumerate(sources.lines_of(path), 1):
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            start = len(codecs.BOM_UTF8)
            line = line[start:]
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise errors.UserError(
                f'{path}:{number} is not UTF-8 text: byte 0x{line[error.start]:02x} at column '
                f'{error.start + 1}. Convert the file (iconv -t UTF-8).'
            ) from error
        contents.update(line)
        stop = start + len(line.rstrip(b'\r\n'))
        spans.append((start, stop, not text.strip()))
        start += len(line)
    return spans


class Squad:
    """Questions on passages, in a JSON file of the format of SQuAD v1.1 (Rajpurkar et al. 2016).

    Record: {'id', 'question', 'context' str, 'answers' list of str, 'starts' int64 [answers]}, the
    characters of the context at which the answers begin; and as texts from texts (Raffel et al.
    2020, appendix D.15): {'source': 'question: ... context: ...', 'target': the first answer}.

    Raises:
      UserError: for another format, and for an answer that is not where it is said to be.
    """

    def __init__(self, path: str):
        self._path = path
        try:
            content = json.loads(sources.read_text(path))
            self._records = tuple(_squad_records(content['data']))
        except (KeyError, TypeError, ValueError) as error:
            raise errors.UserError(
                f'{path} is not of the format of SQuAD v1.1: {type(error).__name__} {error}.'
            ) from error
        if not self._records:
            raise errors.UserError(f'{path} holds no question.')
        for record in self._records:
            with errors.told_of(f'{path}, question {record["id"]}'):
                check_answers(record)
        plain = [{**record, 'starts': record['starts'].tolist()} for record in self._records]
        self._fingerprint = digest('squad', json.dumps(plain))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[checked_index(index, len(self))]
        return {
            **record,
            'source': f'question: {record["question"]} context: {record["context"]}',
            'target': record['answers'][0],
        }

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'squad {self._path}: {len(self):,} questions'


def _squad_records(articles) -> Iterator[dict[str, Any]]:
    for article in articles:
        for paragraph in article['paragraphs']:
            for asked in paragraph['qas']:
                yield {
                    'id': str(asked['id']),
                    'question': asked['question'],
                    'context': paragraph['context'],
                    'answers': [answer['text'] for answer in asked['answers']],
                    'starts': np.array([answer['answer_start'] for answer in asked['answers']]),
                }


def check_answers(record: Mapping[str, Any]) -> None:
    """Raises UserError unless there are answers, each at the character that its start says."""
    answers, starts = record['answers'], record['starts']
    if not len(answers) or len(answers) != len(starts):
        raise errors.UserError(
            f'There are {len(answers)} answers and {len(starts)} starts: each question has at '
            'least one answer, and each answer a start.'
        )
    for answer, start in zip(answers, starts, strict=True):
        found = record['context'][start : start + len(answer)]
        if not answer or start < 0 or found != answer:
            raise errors.UserError(
                f'The answer {answer!r} is not at character {start} of its context, where there is '
                f'{found!r}.'
            )
