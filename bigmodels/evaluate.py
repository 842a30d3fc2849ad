"""Evaluation on whole held-out sets, exact for any size and number of devices.

python -m bigmodels.evaluate --workdir=runs/transformer [--step=best]
"""

import argparse
import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax

from bigmodels import errors, experiment, metrics, runs, sharding, steps

LAG = 2  # batches under way while an earlier one's figures are read


def evaluate(
    eval_step: Callable,
    task: Any,
    params: Any,
    model_state: Any,
    sets: Mapping[str, grain.MapDataset],
    mesh: jax.sharding.Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The means over each whole set, as {'set/metric': value}; other hosts get the same.

    Once `stop()` is true there are none, {}: an evaluation counts whole or not at all.
    """
    results = {}
    with jax.set_mesh(mesh):
        for name, batches in sets.items():
            pairs, pending = [], collections.deque()
            for i in range(len(batches)):
                if stop():
                    return {}
                batch = sharding.put_batch(batches[i], mesh)
                pending.append(eval_step(params, model_state, batch))
                if len(pending) > LAG:  # bounds what waits on the device
                    pairs.append(jax.device_get(pending.popleft()))
            means = metrics.means_of_all(pairs + jax.device_get(list(pending)))
            results |= {f'{name}/{key}': value for key, value in task.summary(means).items()}
    return results


def main() -> None:
    """The command: evaluates a run's checkpoint and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, help='a run made by bigmodels.main')
    parser.add_argument('--step', default='last', help='a saved step, last or best')
    runs.add_trust(parser)
    arguments = parser.parse_args()
    runs.configure_process()
    step = int(arguments.step) if arguments.step.isdigit() else arguments.step
    # Split over all devices: what fitted them in training fits them here.
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, fsdp=-1))
    run = runs.open_run(arguments.workdir, step, mesh, arguments.trust)
    size = -(-run.experiment.batch_size // mesh.size) * mesh.size
    settings = dataclasses.replace(run.experiment, batch_size=size)
    sets = experiment.evaluation_sets(settings, run.task, sharding.batch_shard(mesh))
    eval_step = jax.jit(functools.partial(steps.eval_step, loss_fn=run.task.loss_fn))
    results = evaluate(eval_step, run.task, run.params, run.model_state, sets, mesh)
    print(json.dumps({'step': run.step, **results}, indent=1))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
