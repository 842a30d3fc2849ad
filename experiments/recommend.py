"""The rows that recommend, each beside its baselines on the same split.

    python experiments/recommend.py [recommend_sequence recommend_retrieval ...]

Trains each config, or takes the run that is in runs/NAME, and evaluates its best step; and on the
same held-out records what needs no training: for histories the most frequent items and item-kNN,
with the number of neighbours that is best on the validation set; for ratings the means of those
before. Lists are of all items but those that the user has had; no negatives are sampled. Writes
results/NAME.json for each, and prints a table.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import measure
import numpy as np
import scipy.sparse

from bigmodels import config as config_lib
from bigmodels import evaluate, experiment, program, rundir, runs
from bigmodels.data import SOURCES, pipeline
from bigmodels.scores import classification, ranking
from bigmodels.tasks.ranking import Ranking
from bigmodels.tasks.recommendation import Recommendation

NAMES = ('recommend_sequence', 'recommend_retrieval', 'recommend_ranking', 'recommend_ranking:dcn')
NEIGHBOURS = (10, 30, 100, 300, None)  # None for all
CHUNK = 512  # lists scored at once
Records = Sequence[Mapping[str, Any]]


def item_counts(task: Recommendation, records: Records) -> scipy.sparse.csr_array:
    """[records, V]: 1 where a record's items are."""
    rows = [np.unique(task.item_ids.rows(record['items'])) for record in records]
    columns = np.concatenate(rows)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    shape = (len(rows), task.item_ids.num_rows)
    return scipy.sparse.csr_array((np.ones(len(columns), np.float32), columns, offsets), shape)


def item_similarities(
    had: scipy.sparse.csr_array, neighbours: int | None
) -> scipy.sparse.csr_array:
    """[V, V]: the cosine of the users of two items, for the nearest neighbours of each (row)."""
    sizes = np.sqrt(np.maximum(had.sum(0), 1))
    scaled = had @ scipy.sparse.diags_array(1 / sizes)
    similar = (scaled.T @ scaled).tocsr()
    similar.setdiag(0)
    similar.eliminate_zeros()
    if neighbours is not None:
        for row in range(similar.shape[0]):
            span = slice(similar.indptr[row], similar.indptr[row + 1])
            values = similar.data[span]
            if len(values) > neighbours:
                least = np.partition(values, -neighbours)[-neighbours]
                values[values < least] = 0
        similar.eliminate_zeros()
    return similar


def list_figures(
    task: Recommendation, records: Records, scores: scipy.sparse.csr_array | np.ndarray
) -> dict[str, float]:
    """The task's figures for held-out records.

    Args:
      scores: of items, [V] for all users or [V, V] to be summed over the rows of a user's items.
    """
    before = item_counts(task, [{'items': record['items'][:-1]} for record in records])
    targets = task.item_ids.rows([record['items'][-1] for record in records])
    places = []
    for start in range(0, len(records), CHUNK):
        had = before[start : start + CHUNK]
        of_items = (had @ scores).toarray() if scores.ndim == 2 else scores
        of_items = np.where(had.toarray() > 0, -np.inf, of_items)
        of_items[:, 0] = -np.inf  # no item
        places.append(ranking.places(of_items, targets[start : start + CHUNK]))
    return task.scores({'place': np.concatenate(places)})


def list_baselines(
    task: Recommendation, train: Records, sets: Mapping[str, Records]
) -> dict[str, dict[str, float]]:
    """{'popularity', 'item-kNN': {'set/figure': value}}."""
    had = item_counts(task, train)
    similar = {count: item_similarities(had, count) for count in NEIGHBOURS}
    best = max(NEIGHBOURS, key=lambda n: list_figures(task, sets['valid'], similar[n])['ndcg@10'])
    scores = {'popularity': had.sum(0), f'item-kNN, {best or "all"} neighbours': similar[best]}
    return {
        name: {
            f'{set_name}/{figure}': value
            for set_name, records in sets.items()
            for figure, value in list_figures(task, records, of_items).items()
        }
        for name, of_items in scores.items()
    }


def rating_baselines(task: Ranking, sets: Mapping[str, Records]) -> dict[str, dict[str, float]]:
    """The same for predicting ratings by the means of those before."""
    found = {}
    for name in ('user_mean', 'item_mean', 'user_mean + item_mean'):
        found[name] = {}
        for set_name, source in sets.items():
            records = pipeline.take(source, np.arange(len(source)))
            means = sum(records[part] for part in name.split(' + '))
            liked = records[task.rating] >= task.threshold
            found[name][f'{set_name}/auc'] = classification.roc_auc(liked, means)
    return found


def compare(name: str, runs_folder: pathlib.Path) -> list[tuple[str, ...]]:
    """Trains and evaluates configs/NAME.py, writes its result, and returns rows of the table."""
    file, _, variant = name.partition(':')
    workdir = runs_folder / name.replace(':', '_')
    spec = f'configs/{file}.py:{variant}'
    command = [sys.executable, '-m', 'bigmodels.main', f'--config={spec}', f'--workdir={workdir}']
    subprocess.run(command, cwd=measure.ROOT, check=True)
    run = runs.open_run(workdir, 'best')
    held_out = experiment.evaluation_sets(run.experiment, run.task)
    eval_step = jax.jit(program.evaluation_step(run.task))
    parts = run.task, run.params, run.model_state
    figures = evaluate.evaluate(eval_step, *parts, held_out, run.mesh)
    sets = {
        key: config_lib.choose(SOURCES, section, f'data.evals.{key}')
        for key, section in run.experiment.data.evals.items()
    }
    if isinstance(run.task, Ranking):
        key, baselines = 'test/auc', rating_baselines(run.task, sets)
    else:
        [(train, _)] = experiment.training_sources(run.experiment)
        sets = {key: list(source) for key, source in sets.items()}
        key, baselines = 'test/ndcg@10', list_baselines(run.task, list(train), sets)
    ratio = figures[key] / max(baseline[key] for baseline in baselines.values())
    summary = json.loads((workdir / rundir.SUMMARY).read_text())
    measure.write(
        workdir.name,
        {
            'step': run.step,
            'figures': figures,
            'baselines': baselines,
            f'{key} to the best baseline': ratio,
            'training_seconds': summary['seconds'],
        },
    )
    figures_of = {name: figures, **baselines}
    return [(method, key, f'{values[key]:.4f}') for method, values in figures_of.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', default=NAMES, help='configs, as NAME or NAME:VARIANT')
    parser.add_argument('--runs', default=measure.ROOT / 'runs', type=pathlib.Path)
    arguments = parser.parse_args()
    runs.configure_process()
    rows = [row for name in arguments.names for row in compare(name, arguments.runs.absolute())]
    print(measure.markdown([('method', 'figure', 'value'), *rows]))


if __name__ == '__main__':
    main()
