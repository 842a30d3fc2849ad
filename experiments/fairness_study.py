"""Whether a classifier of incomes treats the sexes and races of the census alike, and what helps.

    python experiments/fairness_study.py

Trains configs/adult.py as it is, and with example weights that make income independent of sex, or
of race (Kamiran and Calders 2012). On the test records it compares selection rates, true and false
positive rates, accuracy, areas under the ROC curve and calibration by group; probabilities are also
tempered on the validation records (Guo et al. 2017). Written are results/fairness.json, .md, .png.

Cost: two CPU cores beside other work, 2.4 minutes.
"""

import argparse
import csv
import gzip
import io
import pathlib
import tempfile

import jax
import measure
import numpy as np
from matplotlib.figure import Figure

from bigmodels import config, runs, train
from bigmodels.data import SOURCES, pipeline
from bigmodels.data.sources import read_bytes
from bigmodels.interpret import fairness
from bigmodels.scores import classification

GROUPS = ('sex', 'race')
POSITIVE = '>50K'
SHOWN = ('selection_rate', 'true_positive_rate', 'false_positive_rate', 'calibration_error')


def write_weighted(path: pathlib.Path, source: str, group: str) -> None:
    """Writes a table with a column `weight` that makes income independent of a group."""
    rows = list(csv.DictReader(io.StringIO(read_bytes(source).decode())))
    weights = fairness.reweighing([row['income'] for row in rows], [row[group] for row in rows])
    with gzip.open(path, 'wt', newline='') as stream:
        writer = csv.DictWriter(stream, [*rows[0], 'weight'])
        writer.writeheader()
        writer.writerows(
            row | {'weight': f'{weight:.6f}'} for row, weight in zip(rows, weights, strict=True)
        )


def trained(folder: pathlib.Path, group: str, steps: int) -> runs.Run:
    """A run on plain records, or on those that are weighted by a group."""
    path = str(measure.ROOT / 'configs' / 'adult.py')
    overrides = [f'total_steps={steps}', f'checkpoint.every={steps}'] if steps else []
    if group:
        table = folder / f'{group}.csv.gz'
        write_weighted(table, config.load(path).data.train.path, group)
        overrides += [f'data.train.path={table}', 'task.weight_key=weight']
    workdir = folder / (group or 'plain')
    train.train(config.load(path, overrides), workdir)
    return runs.open_run(workdir)


def answered(run: runs.Run, name: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Probabilities [N, C], targets [N] and groups of a held-out set."""
    source = config.choose(SOURCES, run.experiment.data.evals[name], f'data.evals.{name}')
    examples = run.task.examples(source, pipeline.cache_dir(), train=False)
    predict = jax.jit(run.task.predict)
    probabilities = np.concatenate(
        [
            np.asarray(predict(run.params, run.model_state, batch))
            for batch in pipeline.evaluation_batches(examples, 1024)
        ]
    )[: len(examples)]
    records = source.take(np.arange(len(source)))
    targets = pipeline.take(examples, np.arange(len(examples)))['targets']
    return probabilities, targets, {group: records[group] for group in GROUPS}


def figures_of(run: runs.Run) -> dict:
    """By group, and how far groups are apart; calibration before and after tempering."""
    held_out, held_out_targets, _ = answered(run, 'valid')
    temperature = fairness.fitted_temperature(held_out, held_out_targets)
    probabilities, targets, groups = answered(run, 'test')
    place = run.task.classes.index(POSITIVE)
    found = {
        'temperature': temperature,
        'accuracy': float((probabilities.argmax(1) == targets).mean()),
        'calibration_error': classification.calibration_error(targets, probabilities),
        'calibration_error_tempered': classification.calibration_error(
            targets, fairness.tempered(probabilities, temperature)
        ),
    }
    for group, names in groups.items():
        by_group = fairness.by_group(targets == place, probabilities[:, place], names)
        found[group] = {'groups': by_group, **fairness.disparities(by_group)}
    return found


def table(results: dict[str, dict]) -> str:
    """What `figures_of` found of each run, as Markdown."""
    head = ('weights by', 'group', *fairness.FIGURES, 'parity difference',
            'parity ratio', 'odds difference')  # fmt: skip
    rows = [tuple(name.replace('_', ' ') for name in head)]
    for weights, found in results.items():
        for group in GROUPS:
            for name, values in found[group]['groups'].items():
                if name == 'all' and group != GROUPS[0]:
                    continue
                apart = ('', '', '')
                if name == list(found[group]['groups'])[-1]:
                    apart = tuple(
                        f'{found[group][key]:.3f}' for key in found[group] if key != 'groups'
                    )
                cells = (f'{values[key]:{",.0f" if key == "count" else ".3f"}}'
                         for key in fairness.FIGURES)  # fmt: skip
                rows.append((weights, name, *cells, *apart))
    return measure.markdown(rows)


def draw(results: dict[str, dict], path: pathlib.Path) -> None:
    """Rates of every group in bars, a run beside another."""
    figure = Figure(figsize=(16, 6), layout='constrained')
    grid = figure.subplots(len(GROUPS), len(SHOWN), squeeze=False)
    for row, group in enumerate(GROUPS):
        for column, rate in enumerate(SHOWN):
            axes = grid[row, column]
            for i, (weights, found) in enumerate(results.items()):
                by_group = {k: v for k, v in found[group]['groups'].items() if k != 'all'}
                places = np.arange(len(by_group)) + 0.27 * (i - 1)
                values = [figures[rate] for figures in by_group.values()]
                axes.bar(places, values, 0.25, label=f'weights: {weights}')
            axes.set_xticks(range(len(by_group)), [name[:10] for name in by_group], fontsize=7)
            axes.set_title(f'{rate.replace("_", " ")} by {group}', fontsize=9)
    grid[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=0, help="by default the config's")
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            group or 'none': figures_of(trained(pathlib.Path(folder), group, options.steps))
            for group in ('', *GROUPS)
        }
    measure.write('fairness', {'results': results}, options.results)
    (options.results / 'fairness.md').write_text(
        'configs/adult.py on its test records, by experiments/fairness_study.py: positive is an '
        f'income {POSITIVE}.\n\n{table(results)}\n\n'
        + ''.join(
            f'Weights by {name}: calibration error {found["calibration_error"]:.4f}, '
            f'{found["calibration_error_tempered"]:.4f} at temperature '
            f'{found["temperature"]:.2f}.\n'
            for name, found in results.items()
        )
    )
    draw(results, options.results / 'fairness.png')
