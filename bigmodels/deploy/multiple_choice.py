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


def encoded(task: LanguageModeling, question: str, choice: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a question, and those of a choice after it.

    A chat model answers. For another one a space is between them, and they are one text: what its
    tokens have more than those of the question are the choice's, as the library lm_eval has it.

    Raises:
      UserError: for what is longer than the model's context.
    """
    before = task.prompt(question)
    if isinstance(task, Chat):
        after = task.vocabulary.encode(choice)
    else:
        after = task.prompt(f'{question} {choice}')[len(before) :]
    if len(before) + len(after) > task.model.max_length:
        raise errors.UserError(
            f'{choice[:40]!r} with its question has {len(before) + len(after)} tokens, more than '
            f'the context of {task.model.max_length}.'
        )
    return before, after


def evaluate(
    task: LanguageModeling, params: Any, questions: Sequence[Question], batch_size: int
) -> dict[str, float]:
    """How often the right choice is the likeliest, as shares, and what it is given.

    'accuracy' is by log-probability, 'accuracy_by_length' by that over the choice's characters;
    'perplexity' is that of the right choices, by token.
    """
    pairs = [encoded(task, q['question'], choice) for q in questions for choice in q['choices']]
    likelihoods, _ = scoring.log_likelihoods(task.model, params, pairs, batch_size)
    counts = [len(after) for _, after in pairs]
    by_length = likelihoods / [len(choice) for q in questions for choice in q['choices']]
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
    if options.batch_size < 1:
        raise errors.UserError(f'--batch_size={options.batch_size} must be at least 1.')
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
