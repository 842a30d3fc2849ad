"""A client: its local steps of a round, in a process that Flower starts for each."""

import functools
import math
import pathlib
import shlex
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bigmodels import config as config_lib
from bigmodels import errors, experiment, privacy, program, rundir, runs, sharding, steps
from bigmodels.data import pipeline
from bigmodels.privacy import federated
from bigmodels.privacy.flower import records

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The params after a client's steps of a round, and what it has counted.

    Args:
      message: 'arrays', the params of the round; 'config', a run as `records.of_run` has it, and
        Flower's 'server-round', t + 1.
      context: of the node, whose settings are those of the package's docstring.

    Returns:
      'arrays', and 'metrics': the task's pairs, 'num-examples', by which the mean is weighted, and
      'client'.

    Raises:
      UserError: for settings that are not right, and where the update is not finite.
    """
    runs.configure_process()
    told = message.content['config']
    client = context.node_config.get('client')
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory)
        records.to_run(told, workdir)
        settings, task, run = opened(workdir, context.node_config)
        t = told['server-round'] - 1
        batch = own_batches(settings, task, context.node_config)[t]
    params = records.to_tree(message.content['arrays'], run.state_shapes.params)
    params, pairs = moved(settings, task, run, params, batch, t, client)
    metrics = {name: [float(total), float(count)] for name, (total, count) in pairs.items()}
    counted = {'num-examples': metrics['loss'][1], 'client': client}
    content = {'arrays': records.of_tree(params), 'metrics': MetricRecord(metrics | counted)}
    return Message(RecordDict(content), reply_to=message)


def opened(
    workdir: pathlib.Path, node: Mapping[str, Any]
) -> tuple[experiment.Experiment, Any, program.Program]:
    """The experiment, task and program of a run as this node has it, on its first device."""
    config = rundir.read_config(workdir)
    config_lib.set_fields(config, shlex.split(node.get('overrides', '')))
    rundir.write_json(workdir / rundir.CONFIG, config_lib.to_plain(config))
    _, settings, task = runs.open_task(workdir, shlex.split(node.get('trust', '')))
    client, clients = node.get('client'), settings.federated.clients
    if not isinstance(client, int) or not 0 <= client < clients:
        raise errors.UserError(
            f'The node has client = {client!r}, wanted is its number, from 0 to {clients - 1}: '
            "flower-supernode --node-config='client=0'."
        )
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
    shapes = rundir.batch_shapes(workdir, settings.batch_size)
    return settings, task, program.make_program(settings, task, mesh, shapes)


def own_batches(settings: experiment.Experiment, task: Any, node: Mapping[str, Any]):
    """Element t: a client's rows of round t, arrays [local_steps * rows, ...]."""
    parts = experiment.training_parts(task, experiment.training_sources(settings))
    if node.get('share', False):
        rounds = privacy.batch_order(settings, parts)
    else:
        length = sum(len(examples) for examples, _ in parts)
        rounds = federated.Rounds(
            settings.federated, {node['client']: np.arange(length)}, length, settings.batch_size,
            settings.seed,
        )  # fmt: skip
    order = federated.OneClient(rounds, node['client'])
    return pipeline.training_batches(parts, order.batch_size, settings.seed, order=order)


def moved(
    settings: experiment.Experiment,
    task: Any,
    run: program.Program,
    params: Any,
    batch: Mapping[str, np.ndarray],
    t: int,
    client: int,
) -> tuple[Any, Mapping[str, Any]]:
    """(the params after the local steps, the task's summed pairs)."""

    def loss_fn(params, *rest, **options):
        return task.loss_fn(run.join(params, None), *rest, **options)

    local_steps = settings.federated.local_steps
    batches = {key: x.reshape(local_steps, -1, *x.shape[1:]) for key, x in batch.items()}
    rng = federated.client_rng(steps.step_rng(settings.seed, t), client)
    update = functools.partial(federated.local_update, loss_fn=loss_fn, settings=settings.federated)
    change, pairs = jax.jit(update)(params, {}, batches, rng)
    norm = math.sqrt(sum(float(np.square(x).sum()) for x in jax.tree.leaves(change)))
    if not math.isfinite(norm):
        raise errors.UserError(f'The update of client {client} in round {t} is not finite.')
    return jax.tree.map(np.subtract, params, jax.device_get(change)), pairs
