"""The command that looks after the checkpoints of a run; needs no accelerator.

python -m bigmodels.checkpoint list --workdir=runs/x
python -m bigmodels.checkpoint verify --workdir=runs/x [--step=10]
python -m bigmodels.checkpoint average --workdir=runs/x --steps=10,20 --out=runs/averaged
python -m bigmodels.checkpoint params --workdir=runs/x [--step=best] [--out=x.safetensors]
"""

import argparse
import math
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from bigmodels import checkpoint, errors, experiment, rundir, runs, tables, trees
from bigmodels.checkpoint import averaging, saved, values
from bigmodels.models import transformer


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; `command` is the function that does what they ask for."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.checkpoint', description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar='list|verify|average|params')

    def add(name: str, command: Callable) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=command.__doc__.splitlines()[0], allow_abbrev=False)
        sub.add_argument(
            '--workdir', type=pathlib.Path, required=True, help='a run made by bigmodels.main'
        )
        sub.set_defaults(command=command)
        return sub

    add('list', list_steps)
    sub = add('verify', verify)
    sub.add_argument('--step', type=int, help='only this one')
    sub = add('average', average)
    sub.add_argument('--steps', type=_several(int), required=True, metavar='N,N,...')
    sub.add_argument('--weights', type=_several(float), metavar='X,X,...', help='default: equal')
    sub.add_argument('--out', type=pathlib.Path, required=True, help='a new run directory')
    sub = add('params', params)
    runs.add_step(sub)
    sub.add_argument('--out', type=pathlib.Path, metavar='FILE.safetensors')
    sub.add_argument(
        '--unstacked', action='store_true', help='scanned layers one by one, as layers_0, layers_1'
    )
    return parser.parse_args(arguments)


def _several(kind: type) -> Callable[[str], list]:
    """A reader of '10,20' as numbers of a kind."""

    def read(text: str) -> list:
        try:
            return [kind(number) for number in text.split(',')]
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f'{text!r} is no list of {kind.__name__} values such as 10,20'
            ) from error

    return read


def _open(workdir: pathlib.Path) -> tuple[pathlib.Path, checkpoint.Settings]:
    """The directory of a run's checkpoints, and the settings under which they are kept."""
    settings = experiment.from_config(rundir.read_config(workdir)).checkpoint
    return workdir / rundir.CHECKPOINTS, settings


def list_steps(options: argparse.Namespace) -> None:
    """Prints each saved step: date, size, parts, metrics; and what else lies beside them."""
    directory, settings = _open(options.workdir)
    steps = checkpoint.steps(directory)
    best = checkpoint.best_step(directory, settings)
    rows = [('step', 'date', 'size', '', 'parts', 'metrics')]
    for found in (saved.describe(directory, step) for step in steps):
        marks = {'last': found.step == steps[-1], 'best': found.step == best}
        figures = ', '.join(f'{name} {value:.5g}' for name, value in found.metrics.items())
        rows.append(
            (
                str(found.step),
                f'{found.date:%Y-%m-%d %H:%M}',
                f'{found.num_bytes / 1e6:,.1f} MB',
                ', '.join(mark for mark, holds in marks.items() if holds),
                ', '.join(found.parts),
                found.problem or figures,
            )
        )
    print(tables.aligned(rows, '><><<<') if steps else f'{options.workdir} has no saved step.')
    for name, kind in saved.remainders(directory).items():
        print(f'{name}: {kind}, {saved.num_bytes(directory / name) / 1e6:,.1f} MB')


def verify(options: argparse.Namespace) -> None:
    """Checks every checksum of the saved steps; the exit status is 1 if one does not agree."""
    directory, _ = _open(options.workdir)
    steps = checkpoint.steps(directory)
    chosen = steps if options.step is None else [options.step]
    if not chosen or not set(chosen) <= set(steps):
        raise errors.UserError(
            f'{directory} has no such checkpoint; it has steps: '
            f'{", ".join(map(str, steps)) or "none"}.'
        )
    damaged = False
    for step in chosen:
        problem = checkpoint.damage(directory, step)
        damaged = damaged or problem is not None
        print(f'step {step}: {"good" if problem is None else f"DAMAGED, {problem}"}', flush=True)
    if damaged:
        raise SystemExit(1)


def average(options: argparse.Namespace) -> None:
    """Makes a run of the averaged evaluation params of saved steps."""
    averaging.average(options.workdir, options.steps, options.out, options.weights)
    print(f'The average of steps {", ".join(map(str, options.steps))} is in {options.out}.')
    last = max(options.steps)
    if 'model_state' in saved.describe(options.workdir / rundir.CHECKPOINTS, last).parts:
        print(
            f'Its model state, such as the statistics of BatchNorm, is that of step {last} and not '
            f'of the averaged parameters: compare the figures of both by bigmodels.evaluate.'
        )


def params(options: argparse.Namespace) -> None:
    """Prints a table of the evaluation params of a step, or writes them to a safetensors file."""
    if options.out is not None and options.out.suffix != '.safetensors':
        raise errors.UserError(f'--out={options.out} must end in .safetensors, its only format.')
    directory, settings = _open(options.workdir)
    step = checkpoint.good_step(directory, options.step, settings)
    part = values.evaluation_part(directory, step)
    tree = values.read(directory, step, part)
    if options.unstacked and 'layers' in tree:
        tree = transformer.unstack_layers(tree)
    what = f'{part} of step {step}, {trees.count(tree):,} parameters'
    if options.out is not None:
        values.write_safetensors(options.out, tree)
        print(f'{options.out} holds {what}.')
        return
    rows = [('name', 'shape', 'dtype', 'count', 'norm')]
    squares = 0.0
    for name, leaf in trees.flatten_named(tree).items():
        square = np.square(leaf, dtype=np.float64).sum()
        squares += square
        shape = ' x '.join(map(str, leaf.shape)) or 'scalar'
        rows.append((name, shape, str(leaf.dtype), f'{leaf.size:,}', f'{math.sqrt(square):.6g}'))
    print(tables.aligned(rows, '<<<>>'))
    print(f'{what}, norm {math.sqrt(squares):.6g}')


def main() -> None:
    """The command."""
    options = parse()
    if 'JAX_PLATFORMS' not in os.environ:  # read when jax was imported, with this package
        jax.config.update('jax_platforms', 'cpu')
    runs.configure_process()
    options.command(options)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
