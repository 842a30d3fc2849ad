"""The command that generates text from a run.

python -m bigmodels.deploy.generate --workdir=runs/transformer --prompt='def '
"""

import argparse

from bigmodels import errors, runs, writers
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.deploy.weights import WEIGHTS
from bigmodels.models import transformer


def main() -> None:
    """The command: prints the continuation of each prompt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs.add_run(parser)
    parser.add_argument('--prompt', action='append', required=True, help='may be given repeatedly')
    parser.add_argument('--max_new_tokens', type=int, default=128)
    parser.add_argument('--temperature', type=float, default=0.8, help='0 for greedy')
    parser.add_argument('--top_k', type=int, default=0)
    parser.add_argument('--top_p', type=float, default=1.0)
    parser.add_argument('--min_p', type=float, default=0.0)
    parser.add_argument('--stop', action='append', default=[], help='a string that ends the text')
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help="how kernels are kept while generating; default: in the type of the run's computation",
    )
    parser.add_argument('--seed', type=int, default=0)
    a = parser.parse_args()
    runs.configure_process()
    sampling = Sampling(a.temperature, a.top_k, a.top_p, a.min_p)
    run = runs.open_run(a.workdir, a.step, trust=a.trust)
    if hasattr(run.task, 'record_fields') or not hasattr(run.task, 'vocabulary'):
        answers = (
            f'; it answers raw input: python -m bigmodels.predict --workdir={a.workdir}.'
            if hasattr(run.task, 'record_fields')
            else '.'
        )
        raise errors.UserError(
            f'{a.workdir} is of the task {run.config["task"]["name"]!r}, which does not continue '
            f'text{answers}'
        )
    if not isinstance(run.model, transformer.Transformer) or not run.model.causal:
        raise errors.UserError(
            f'{a.workdir} holds a {type(run.model).__name__}; only a causal Transformer generates '
            'text.'
        )
    texts = generate_text(
        run.task,
        run.params,
        a.prompt,
        a.max_new_tokens,
        sampling,
        seed=a.seed,
        stop=a.stop,
        weights=a.weights,
    )
    for prompt, text in zip(a.prompt, texts, strict=True):
        print(writers.printable(prompt + text))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
