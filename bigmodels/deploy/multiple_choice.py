"""The command that answers multiple-choice questions by the likelihood of each choice.

python -m bigmodels.deploy.multiple_choice --workdir=runs/chat --input=questions.jsonl

A line of the file is {"question": "Two and two?", "choices": ["four", "five"], "answer": 0}.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigmodels import errors, runs
from bigmodels.data.sources import JsonLines
from bigmodels.deploy import scoring
from bigmodels.tasks.chat import Chat
from bigmodels.tasks.language_modeling import LanguageModeling

Question = Mapping[str, Any]  # {'question', 'choices', 'answer'}


def read(path: str) -> list[Question]:
    """The questions of JSON lines.

    Raises:
      UserError: naming the record, for one without a text, two texts or more to choose from, or
        the number of the right one, from 0.
    """
    source, questions = JsonLines(path), []
    for i in range(len(source)):
        record, where = source[i], f'{path}, record {i}'
        for name in ('question', 'choices', 'answer'):
            if name not in record:
                raise errors.unknown(f'field: {where} lacks', name, record)
        choices, answer = record['choices'], record['answer']
        texts = [record['question'], *choices] if isinstance(choices, list) else [None]
        if len(texts) < 3 or not all(isinstance(text, str) and text for text in texts):
            raise errors.UserError(
                f'{where}: the question and at least two choices must be texts that are not empty.'
            )
        if not isinstance(answer, np.int64) or not 0 <= answer < len(choices):
            raise errors.UserError(
                f'{where}: the answer {answer!r} must be an integer from 0 to {len(choices) - 1}.'
            )
        questions.append(record)
    return questions


def log_likelihoods(
    task: LanguageModeling, params: Any, pairs: Sequence[tuple[np.ndarray, str]], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a model gives texts after others: (their log-probabilities [N] in nats, tokens [N]).

    Args:
      pairs: (ids of what is before, as of `task.prompt`; the text).

    Raises:
      UserError: for a pair that is longer than the model's context.
    """
    encoded = []
    for context, text in pairs:
        ids = task.vocabulary.encode(text)
        if len(context) + len(ids) > task.model.max_length:
            raise errors.UserError(
                f'{text[:40]!r} with its question has {len(context) + len(ids)} tokens, more than '
                f'the context of {task.model.max_length}.'
            )
        encoded.append((context, ids))
    nats, _ = scoring.log_likelihoods(task.model, params, encoded, batch_size)
    return nats, np.array([len(ids) for _, ids in encoded])


def evaluate(
    task: LanguageModeling, params: Any, questions: Sequence[Question], batch_size: int
) -> dict[str, float]:
    """How often the right choice is the likeliest, as shares, and what it is given.

    'accuracy' is by log-probability, 'accuracy_by_length' by that over the choice's characters;
    'perplexity' is that of the right choices, by token. A language model reads a space between the
    question and a choice; a chat model answers.
    """
    between = '' if isinstance(task, Chat) else ' '
    pairs = [
        (task.prompt(question['question']), between + choice)
        for question in questions
        for choice in question['choices']
    ]
    likelihoods, counts = log_likelihoods(task, params, pairs, batch_size)
    by_length = likelihoods / [len(choice) for _, choice in pairs]
    start, right, right_by_length, nats, tokens = 0, 0, 0, 0.0, 0
    for question in questions:
        own, answer = slice(start, start + len(question['choices'])), int(question['answer'])
        right += likelihoods[own].argmax() == answer
        right_by_length += by_length[own].argmax() == answer
        nats -= likelihoods[own][answer]
        tokens += counts[own][answer]
        start = own.stop
    return {
        'accuracy': right / len(questions),
        'accuracy_by_length': right_by_length / len(questions),
        'perplexity': float(np.exp(nats / tokens)),
        'questions': len(questions),
    }


def main() -> None:
    """The command: prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs.add_run(parser)
    parser.add_argument('--input', required=True, help='JSON lines, plain or .gz')
    parser.add_argument('--batch_size', type=int, default=16)
    options = parser.parse_args()
    runs.configure_process()
    questions = read(options.input)
    run = runs.open_run(options.workdir, options.step, trust=options.trust)
    if not isinstance(run.task, LanguageModeling):
        raise errors.UserError(
            f'{options.workdir} is of the task {run.config["task"]["name"]!r}, which gives texts '
            'no likelihood; language_modeling, chat and preference do.'
        )
    print(json.dumps(evaluate(run.task, run.params, questions, options.batch_size)))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
