"""How small finished runs get, and what it costs them, by `python -m bigmodels.compress`.

    python experiments/compress_study.py --runs=FOLDER [--names=transformer,speech_digits]

Each run of the folder is compressed by every recipe of RECIPES, opened again and evaluated on its
own held-out sets; nothing is trained. Its speed is that of evaluating one of their batches, beside
the run as it was, in turns, by medians. Written: experiments/results/compress.json and .md, in the
place of the last results of the same run, and compress.png, the figure over the share of weights
that is 0.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import measure

from bigmodels import errors, experiment, program, runs, sharding
from bigmodels.compress import __main__ as command

SPARSITIES = (20, 40, 50, 60, 70, 80, 90)
RECIPES = (
    *('int8', 'fp8', 'int4', 'int4:32', 'int8,a8', 'int8,a8_static', '2:4', 'prune50,int8'),
    *('heads25', 'units25', 'channels25', 'channels50'),
    *(f'prune{share}' for share in SPARSITIES),
)
# Run -> the figure that counts.
FIGURES = {
    'transformer': 'valid/loss',
    'mnist_lenet': 'test/accuracy',
    'cifar10_cnn': 'test/accuracy',
    'speech_digits': 'test/accuracy',
}
TURNS = 11


def described(run: runs.Run, figure: str) -> dict:
    """Size and quality."""
    return {**command.sizes(run), 'figure': command.figures(run)[figure]}


def evaluation(run: runs.Run) -> Callable[[], None]:
    """Evaluates the first of a run's held-out batches; compiled, and called once."""
    batches = next(iter(experiment.evaluation_sets(run.experiment, run.task).values()))
    batch = sharding.put_batch(batches[0], run.mesh)
    step = jax.jit(program.evaluation_step(run.task))

    def evaluate() -> None:
        with jax.set_mesh(run.mesh):
            jax.block_until_ready(step(run.params, run.model_state, batch))

    evaluate()
    return evaluate


def times_as_fast(evaluate: Callable[[], None], before: Callable[[], None]) -> float:
    """The ratio of the medians of both, called in turns."""
    seconds = {before: [], evaluate: []}
    for _ in range(TURNS):
        for call, measured in seconds.items():
            began = time.perf_counter()
            call()
            measured.append(time.perf_counter() - began)
    return statistics.median(seconds[before]) / statistics.median(seconds[evaluate])


def study(folder: pathlib.Path, name: str) -> dict:
    """All recipes of one run; those that its kernels do not allow are left out by name."""
    run = runs.open_run(folder / name)
    rows = {'': {**described(run, FIGURES[name]), 'speed': 1.0}}
    before = evaluation(run)
    for recipe in RECIPES:
        try:
            command.check(folder / name, recipe)
        except errors.UserError as error:
            rows[recipe] = {'not possible': str(error)}
            continue
        with tempfile.TemporaryDirectory() as scratch:
            out = pathlib.Path(scratch, 'run')
            command.compressed(run, recipe, out)
            smaller = runs.open_run(out)
            rows[recipe] = described(smaller, FIGURES[name])
            rows[recipe]['speed'] = times_as_fast(evaluation(smaller), before)
        print(name, recipe, rows[recipe], flush=True)
    return {'run': name, 'step': run.step, 'key': FIGURES[name], 'rows': rows}


def table(results) -> str:
    """Sizes as shares of the run as it was."""
    rows = [('run', 'recipe', 'bytes of params', 'on disk', 'zeros', 'speed', 'figure')]
    for result in results:
        whole = result['rows']['']
        for recipe, row in result['rows'].items():
            if 'not possible' in row:
                continue
            shares = [
                f'{row[key] / whole[key]:.3f}' for key in ('bytes of params', 'bytes on disk')
            ]
            zeros = f'{row["zeros"] / row["parameters"]:.0%}'
            figure = f'{result["key"]} {row["figure"]:.4f}'
            speed = f'{row["speed"]:.2f}'
            rows.append((result['run'], recipe or 'as trained', *shares, zeros, speed, figure))
    return measure.markdown(rows)


def draw(path: pathlib.Path) -> None:
    """The change of each run's figure over the share of weights that is 0."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    results = json.loads(path.with_suffix('.json').read_text())['results']
    figure, panels = pyplot.subplots(
        1, len(results), figsize=(4 * len(results), 3.2), layout='constrained', squeeze=False
    )
    for axes, result in zip(panels[0], results, strict=True):
        points = [(0, result['rows']['']['figure'])]
        points += [(share, result['rows'][f'prune{share}']['figure']) for share in SPARSITIES]
        axes.plot(*zip(*points, strict=True), marker='o')
        axes.set(title=result['run'], xlabel='weights pruned, %', ylabel=result['key'])
        axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix('.png'), dpi=120)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=pathlib.Path, required=True, help='a folder of runs')
    parser.add_argument('--names', default=','.join(FIGURES), help='of FIGURES, with commas')
    options = parser.parse_args()
    runs.configure_process()
    for name in options.names.split(','):
        result = study(options.runs, name)
        measure.keep('compress', result, lambda result: result['run'], table)
    draw(measure.RESULTS / 'compress')


if __name__ == '__main__':
    main()
