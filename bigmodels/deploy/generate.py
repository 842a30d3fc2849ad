"""The command that generates text from a run.

python -m bigmodels.deploy.generate --workdir=runs/transformer --prompt='def '
"""

import argparse
import functools
import pathlib

from bigmodels import errors, runs, writers
from bigmodels.data.tokenizers import spelling
from bigmodels.deploy import text
from bigmodels.deploy.constraints import Grammars
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.weights import WEIGHTS
from bigmodels.models import transformer


def main() -> None:
    """The command: prints the continuation of each prompt."""
    a = _parser().parse_args()
    runs.configure_process()
    sampling = Sampling(
        a.temperature, a.top_k, a.top_p, a.min_p,
        a.repetition_penalty, a.presence_penalty, a.frequency_penalty,
    )  # fmt: skip
    if a.beam_size and a.log_probs:
        raise errors.UserError(
            '--beam_size compares whole texts: leave --log_probs, which is of tokens, out.'
        )
    run = open_language_model(a.workdir, a.step, a.trust)
    answers = text.generate(
        run.task,
        run.params,
        [run.task.prompt(prompt) for prompt in a.prompt],
        a.max_new_tokens,
        sampling,
        seed=a.seed,
        stop=a.stop,
        weights=a.weights,
        method=_method(a, run),
    )
    spelt = spelling(run.task.vocabulary, run.model.vocab_size)
    for prompt, answer in zip(a.prompt, answers, strict=True):
        print(writers.printable(prompt + answer.text))
        if a.log_probs:
            for token, log_prob in zip(answer.tokens, answer.log_probs, strict=True):
                print(f'{log_prob:9.4f}  {text.spelt_text(spelt, [token])!r}')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs.add_run(parser)
    parser.add_argument('--prompt', action='append', required=True, help='may be given repeatedly')
    parser.add_argument('--max_new_tokens', type=int, default=128)
    parser.add_argument('--temperature', type=float, default=0.8, help='0 for greedy')
    parser.add_argument('--top_k', type=int, default=0)
    parser.add_argument('--top_p', type=float, default=1.0)
    parser.add_argument('--min_p', type=float, default=0.0)
    parser.add_argument('--repetition_penalty', type=float, default=1.0)
    parser.add_argument('--presence_penalty', type=float, default=0.0)
    parser.add_argument('--frequency_penalty', type=float, default=0.0)
    parser.add_argument('--stop', action='append', default=[], help='a string that ends the text')
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help="how kernels are kept while generating; default: in the type of the run's computation",
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--log_probs', action='store_true', help='list the tokens and how probable each was'
    )
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument(
        '--draft_workdir',
        type=pathlib.Path,
        help='a run of a smaller model with the same tokenizer, which drafts tokens: the same '
        'distribution, sooner where both agree',
    )
    methods.add_argument(
        '--beam_size', type=int, help='not a sample, but the best text that so many beams find'
    )
    methods.add_argument(
        '--json_schema', type=pathlib.Path, help='a file: the text is JSON that it describes'
    )
    methods.add_argument('--regex', help='the text matches this regular expression whole')
    parser.add_argument('--draft_tokens', type=int, default=4, help='drafted at a time')
    return parser


def open_language_model(workdir: pathlib.Path, step: int | str, trust: list[str]) -> runs.Run:
    """A run whose model continues text.

    Raises:
      UserError: see `runs.open_run`; for a run of another kind.
    """
    run = runs.open_run(workdir, step, trust=trust)
    check_language_model(run)
    return run


def check_language_model(run: runs.Run) -> None:
    """Raises UserError for a run whose model does not continue text."""
    workdir = run.workdir
    if hasattr(run.task, 'record_fields') or not hasattr(run.task, 'vocabulary'):
        answers = (
            f'; it answers raw input: python -m bigmodels.predict --workdir={workdir}.'
            if hasattr(run.task, 'record_fields')
            else '.'
        )
        raise errors.UserError(
            f'{workdir} is of the task {run.config["task"]["name"]!r}, which does not continue '
            f'text{answers}'
        )
    if not isinstance(run.model, transformer.Transformer) or not run.model.causal:
        raise errors.UserError(
            f'{workdir} holds a {type(run.model).__name__}; only a causal Transformer generates '
            'text.'
        )


def _method(a: argparse.Namespace, run: runs.Run) -> text.Method:
    """How the options ask for text to be made."""
    vocabulary = run.task.vocabulary
    if a.draft_workdir is not None:
        draft = open_language_model(a.draft_workdir, 'last', a.trust)
        if draft.task.vocabulary.fingerprint() != vocabulary.fingerprint():
            raise errors.UserError(
                f'{a.draft_workdir} has another tokenizer than {a.workdir}: a draft needs the same.'
            )
        return functools.partial(
            text.drafted, draft=(draft.model, draft.params), ahead=a.draft_tokens
        )
    if a.beam_size is not None:
        return functools.partial(text.searched, beam_size=a.beam_size)
    if a.json_schema is not None:
        if not a.json_schema.is_file():
            raise errors.UserError(f'There is no file {str(a.json_schema)!r}.')
        matcher = Grammars(vocabulary).json_schema(a.json_schema.read_text())
    elif a.regex is not None:
        matcher = Grammars(vocabulary).regex(a.regex)
    else:
        return text.sampled
    return functools.partial(text.matched, matcher=matcher, end=vocabulary.end_of_text)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
