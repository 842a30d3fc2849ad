"""Evaluation on whole held-out sets, exact for any size and number of devices.

python -m bigmodels.evaluate --workdir=runs/transformer [--step=best] [--pictures=FOLDER]
"""

import argparse
import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.errors
import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from bigmodels import errors, experiment, metrics, program, runs, sharding

LAG = 2  # batches under way while an earlier one's figures are read


def evaluate(
    eval_step: Callable,
    task: Any,
    params: Any,
    model_state: Any,
    sets: Mapping[str, grain.MapDataset],
    mesh: jax.sharding.Mesh,
    stop: Callable[[], bool] = lambda: False,
    see: Callable[[str, Mapping[str, np.ndarray]], None] | None = None,
) -> dict[str, float]:
    """The means and scores of each whole set, {'set/metric': value}; other hosts get the same.

    Once `stop()` is true there are none, {}: an evaluation counts whole or not at all.

    Args:
      see: is shown each set's name and outcomes, if the task has scores.
    """
    results = {}
    with jax.set_mesh(mesh):
        for name, batches in sets.items():
            read, pending = [], collections.deque()
            for i in range(len(batches)):
                if stop():
                    return {}
                batch = sharding.put_batch(batches[i], mesh)
                pairs, outcomes = eval_step(params, model_state, batch)
                pending.append((pairs, {**outcomes, 'weights': batch['weights']}))
                if len(pending) > LAG:  # bounds what waits on the device
                    read.append(_on_host(*pending.popleft()))
            read += [_on_host(*waiting) for waiting in pending]
            values = task.summary(metrics.means_of_all([pairs for pairs, _ in read]))
            if hasattr(task, 'scores') and read[0][1]:
                outcomes = _of_examples([outcomes for _, outcomes in read])
                values |= task.scores(outcomes)
                if see:
                    see(name, outcomes)
            results |= {f'{name}/{key}': value for key, value in values.items()}
    return results


def check(
    settings: experiment.Experiment,
    task: Any,
    run: program.Program,
    sets: Mapping[str, grain.MapDataset],
) -> None:
    """Raises UserError for a set that the model cannot take, and if no set has the best metric.

    Computes shapes only, those of each set's first batch.
    """
    params, state = jax.eval_shape(run.eval_params, run.state_shapes), run.state_shapes.model_state
    figures = []
    for name, batches in sets.items():
        shapes = program.shapes_of_batch(batches[0], settings.batch_size)
        try:
            pairs, _ = jax.eval_shape(run.eval_step, params, state, shapes)
        except flax.errors.FlaxError as error:
            here, there = (
                ', '.join(f'{key} {list(value.shape[1:])}' for key, value in sorted(given.items()))
                for given in (shapes, run.batch_shapes)
            )
            raise errors.UserError(
                f'config.data.evals.{name} does not fit the model, which is made for examples of '
                f'training: {there}. It has {here}. {error}'
            ) from error
        keys = [*task.summary(dict.fromkeys(pairs, 0.0)), *getattr(task, 'score_names', ())]
        figures += [f'{name}/{key}' for key in keys]
    metric = settings.checkpoint.best_metric
    if metric and metric not in figures:
        raise errors.unknown('figure config.checkpoint.best_metric =', metric, figures)


def _on_host(pairs: Any, outcomes: Mapping[str, jax.Array]) -> tuple[Any, Any]:
    """Numpy arrays of the whole batch, on every host."""
    if len(outcomes) > 1 and jax.process_count() > 1:
        outcomes = multihost_utils.process_allgather(outcomes, tiled=True)
    elif len(outcomes) == 1:  # only weights: nothing is scored
        outcomes = {}
    return jax.device_get((pairs, outcomes))


def _of_examples(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outcomes of all batches as arrays [examples, ...], without padding."""
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    weights = joined.pop('weights')
    real = weights.reshape(len(weights), -1).any(axis=1)
    return {key: value[real] for key, value in joined.items()}


def main() -> None:
    """The command: evaluates a run's checkpoint and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs.add_run(parser)
    parser.add_argument(
        '--pictures', type=pathlib.Path, help="a folder for the task's pictures of each set, as PNG"
    )
    arguments = parser.parse_args()
    runs.configure_process()
    # Split over all devices: what fitted them in training fits them here.
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, fsdp=-1))
    run = runs.open_run(arguments.workdir, arguments.step, mesh, arguments.trust)
    if arguments.pictures and not hasattr(run.task, 'pictures'):
        raise errors.UserError(
            f'{arguments.workdir} is of the task {run.config["task"]["name"]!r}, which draws no '
            'pictures: leave --pictures out.'
        )
    size = -(-run.experiment.batch_size // mesh.size) * mesh.size
    settings = dataclasses.replace(run.experiment, batch_size=size)
    sets = experiment.evaluation_sets(settings, run.task, sharding.batch_shard(mesh))
    eval_step = jax.jit(program.evaluation_step(run.task))

    def draw(name, outcomes):
        for stem, figure in run.task.pictures(outcomes).items():
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            drawn.append(arguments.pictures / f'{name}_{stem}.png')
            figure.savefig(drawn[-1], dpi=120)

    drawn = []
    see = draw if arguments.pictures else None
    results = evaluate(eval_step, run.task, run.params, run.model_state, sets, mesh, see=see)
    print(json.dumps({'step': run.step, **metrics.plain(results)}, indent=1))
    if arguments.pictures and not drawn:
        raise errors.UserError(
            f'The task of {arguments.workdir} has drawn no pictures: its config asks for none. '
            'Classification draws with task.report, segmentation and detection with task.overlays.'
        )


if __name__ == '__main__':
    errors.exit_on_user_error(main)
