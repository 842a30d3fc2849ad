"""The command that makes of a run with adapters what others take.

python -m bigmodels.adapters merge --workdir=runs/chat --out=runs/chat_merged
python -m bigmodels.adapters export --workdir=runs/chat --out=adapter [--base=NAME]
"""

import argparse
import pathlib

from bigmodels import adapters, errors, rundir, runs, trees
from bigmodels.adapters import peft
from bigmodels.models import transformer
from bigmodels.state import TrainState


def merge(run: runs.Run, options: argparse.Namespace) -> None:
    """Makes a run whose kernels have their adapters added, which everything opens."""
    state = TrainState(run.step, adapters.merged(run.params), run.model_state, opt_state=())
    made_of = {'workdir': str(run.workdir), 'step': run.step, 'adapter': run.config['adapter']}
    changes = {'adapter': {**run.config['adapter'], 'rank': 0}}
    rundir.derive(options.out, run.workdir, changes, state, made_of, rundir.MERGED)
    print(f'Step {run.step} with its adapters merged is in {options.out}.')


def export(run: runs.Run, options: argparse.Namespace) -> None:
    """Writes the adapters as Hugging Face's PEFT reads them."""
    if not isinstance(run.model, transformer.Transformer):
        raise errors.UserError(
            f'{run.workdir} holds a {type(run.model).__name__}; PEFT has names for a Transformer.'
        )
    rundir.check_unused(options.out, '--out')
    settings = run.experiment.adapter
    trained = adapters.trained(settings, run.params)
    peft.write(options.out, run.model, trained, settings, options.base)
    print(f'{options.out} holds the adapters of step {run.step}, {trees.count(trained):,} numbers.')


COMMANDS = {'merge': merge, 'export': export}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.adapters', description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar='|'.join(COMMANDS), dest='command')
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__.splitlines()[0], allow_abbrev=False)
        runs.add_run(sub)
        sub.add_argument('--out', type=pathlib.Path, required=True, help='a new directory')
        if name == 'export':
            sub.add_argument('--base', default='', help='the name of the model they are for')
    options = parser.parse_args()
    runs.configure_process()
    run = runs.open_run(options.workdir, options.step, trust=options.trust)
    if not run.experiment.adapter.rank:
        raise errors.UserError(f'{options.workdir} has no adapters: config.adapter.rank is 0.')
    COMMANDS[options.command](run, options)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
