"""The command that makes a smaller run of a finished one, which everything opens like any other.

python -m bigmodels.compress --workdir=runs/transformer --to=runs/small --recipe=int8
python -m bigmodels.compress --workdir=runs/mnist_lenet --to=runs/small --recipe=channels25,prune50
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from bigmodels import (
    compress,
    errors,
    evaluate,
    experiment,
    program,
    rundir,
    runs,
    tables,
    trees,
)
from bigmodels.checkpoint import saved, values
from bigmodels.compress import calibrate, recipes
from bigmodels.state import TrainState


def compressed(
    run: runs.Run, recipe: str, out: pathlib.Path, targets: str = '', batches: int = 8
) -> None:
    """Makes the run `out` of a run and a recipe.

    Args:
      recipe: see `recipes`.
      targets: a regex of the kernels that are rounded and pruned; '' for all that can be.
      batches: so many training batches are measured where a recipe needs it.

    Raises:
      UserError: as `check`, and if `out` cannot be written.
    """
    config = experiment.resolved(run.config)  # a run of before a field was there lacks it
    model = recipes.Model(config, jax.jit(compress.plain)(run.params), run.model_state)
    smaller = recipes.applied(recipes.parse(recipe, targets), model)
    params = smaller.params
    if compress.Settings(**smaller.config['compress']).activations == 'int8_static':
        task = experiment.make_task(experiment.from_config(smaller.config))
        task = task.restored(run.workdir / rundir.PREPROCESSING)
        seen = [run.batches[t] for t in range(batches)]
        params = calibrate.measured(task, params, smaller.model_state, seen)
    number = jax.numpy.asarray(run.step, jax.numpy.int32)
    state = TrainState(number, params, smaller.model_state, opt_state=())
    made_of = {'workdir': str(run.workdir), 'step': run.step, 'recipe': recipe, 'targets': targets}
    changes = {key: smaller.config[key] for key in ('model', 'compress')}
    rundir.derive(out, run.workdir, changes, state, made_of, rundir.COMPRESSED)


def check(workdir: pathlib.Path, recipe: str, targets: str = '', trust: Any = ()) -> None:
    """Tries a recipe on the shapes of a run, before any array of it is read.

    Raises:
      UserError: for a recipe that is wrong or does not fit the model, a run that is compressed
        already, one with adapters, and scales measured of a private one.
    """
    steps = recipes.parse(recipe, targets)
    config, settings, task = runs.open_task(workdir, trust)
    if settings.compress.packed:
        raise errors.UserError(
            f'{workdir} is compressed already: take the run that it was made of, named in '
            f'{rundir.COMPRESSED}, and a recipe that has all steps.'
        )
    if settings.privacy.epsilon is not None and 'a8_static' in recipe:
        raise errors.UserError(
            f'{workdir} is private, and a8_static keeps the largest inputs of training batches, '
            'which its epsilon does not cover: take a8.'
        )
    if settings.adapter.rank:
        raise errors.UserError(
            f'{workdir} has adapters: make a plain run of it first, by python -m '
            f'bigmodels.adapters merge.'
        )
    shapes = dict(jax.eval_shape(task.init, jax.random.key(0), rundir.batch_shapes(workdir, 1)))
    plain = experiment.resolved(config)
    smaller = recipes.tried(steps, recipes.Model(plain, shapes.pop('params'), shapes))
    experiment.make_task(experiment.from_config(smaller.config))


def figures(run: runs.Run) -> dict[str, float]:
    """What a run reaches on its own held-out sets."""
    sets = experiment.evaluation_sets(run.experiment, run.task)
    step = jax.jit(program.evaluation_step(run.task))
    return evaluate.evaluate(step, run.task, run.params, run.model_state, sets, run.mesh)


def sizes(run: runs.Run) -> dict[str, float]:
    """Bytes of the arrays that a run is used with: as files, and the params in memory."""
    directory = run.workdir / rundir.CHECKPOINTS
    parts = values.evaluation_part(directory, run.step), 'model_state'
    on_disk = sum(saved.num_bytes(directory / str(run.step) / part) for part in parts)
    plain = jax.device_get(jax.jit(compress.plain)(run.params))
    zeros = sum(int((leaf == 0).sum()) for leaf in jax.tree.leaves(plain))
    return {
        'bytes on disk': on_disk,
        'bytes of params': trees.size_bytes(run.params),
        'parameters': trees.count(plain),
        'zeros': zeros,
    }


def table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Figures of two runs beside each other."""
    rows = [('', 'before', 'after', 'ratio')]
    for name, value in before.items():
        show = '{:,}' if isinstance(value, int) else '{:.5g}'
        ratio = f'{after[name] / value:.3f}' if value else ''
        rows.append((name, show.format(value), show.format(after[name]), ratio))
    return tables.aligned(rows, '<>>>')


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.compress', description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog=recipes.__doc__,
    )  # fmt: skip
    runs.add_run(parser)
    parser.add_argument('--to', type=pathlib.Path, required=True, help='a new run directory')
    parser.add_argument('--recipe', required=True, help='steps with commas between, see below')
    parser.add_argument('--targets', default='', help='a regex of the kernels; default: all')
    parser.add_argument('--batches', type=int, default=8, help='to measure, for a8_static')
    parser.add_argument('--no_figures', action='store_true', help='do not evaluate the two')
    options = parser.parse_args()
    if options.batches < 1:
        raise errors.UserError(f'--batches={options.batches}: at least 1 must be measured.')
    check(options.workdir, options.recipe, options.targets, options.trust)
    rundir.check_unused(options.to, '--to')
    runs.configure_process()
    run = runs.open_run(options.workdir, options.step, trust=options.trust)
    compressed(run, options.recipe, options.to, options.targets, options.batches)
    smaller = runs.open_run(options.to, trust=options.trust)
    pair = [sizes(each) | ({} if options.no_figures else figures(each)) for each in (run, smaller)]
    made_of = rundir.read(options.to / rundir.COMPRESSED)
    both = dict(zip(('before', 'after'), pair, strict=True))
    rundir.write_json(options.to / rundir.COMPRESSED, made_of | both)
    print(f'{options.recipe} of step {run.step} of {options.workdir} is in {options.to}.')
    print(table(*pair))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
