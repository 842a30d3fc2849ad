"""The server: the one loop, with a step that asks clients."""

import functools
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flwr.app import Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from bigmodels import config as config_lib
from bigmodels import errors, experiment, program, rundir, runs, train
from bigmodels.privacy import federated
from bigmodels.privacy.flower import records

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains the config that the settings of the run name, see the package's docstring."""
    runs.configure_process()
    given = context.run_config
    config = config_lib.load(given['config'], shlex.split(given['overrides']))
    workdir = pathlib.Path(given['workdir'] or rundir.default(given['config']))
    serve(grid, config, workdir, given['timeout'])


def serve(grid: Grid, config: Mapping, workdir: pathlib.Path, timeout: float) -> dict[str, float]:
    """`train.train` of a config by the clients that the grid reaches; its figures.

    Args:
      timeout: seconds after which a round goes on without those who have not answered.
    """
    settings = experiment.from_config(config)
    check(settings)
    ask = functools.partial(
        ask_clients, grid=grid, settings=settings.federated, workdir=workdir, timeout=timeout
    )
    return train.train(config, workdir, compile_step=functools.partial(compile_round, ask=ask))


def check(settings: experiment.Experiment) -> None:
    """Raises UserError for what is not done by clients on machines of their own."""
    found = {
        'config.federated.clients = 0: there are none.': not settings.federated.on,
        'config.privacy needs clients drawn as its guarantee says, and Flower chooses them.': (
            settings.privacy.on
        ),
        'config.federated.secure_sum is of clients in one program.': settings.federated.secure_sum,
        'config.adapter has a frozen base, which is not sent.': settings.adapter.rank,
    }
    for problem, there in found.items():
        if there:
            raise errors.UserError(f'Not with Flower: {problem}')


def compile_round(run: program.Program, parallel: str, ask: Callable) -> Callable:
    """(state, batch) -> (state, metrics): a step by what `ask` says that clients moved to.

    The batch, of the server's own records, is not looked at.
    """
    placed = jax.tree.map(lambda shape: shape.sharding, run.state_shapes)
    update = functools.partial(run.train_step, gradients=change_of_mean)
    update = jax.jit(update, out_shardings=(placed, None), donate_argnums=0)

    def take_round(state, batch):
        mean, pairs = ask(state.params, int(state.step))
        return update(state, {'mean': mean, 'pairs': pairs})

    return take_round


def change_of_mean(
    params: Any, model_state: Any, batch: Mapping, rng: jax.Array, loss_fn: Callable, parts: int
) -> tuple[Any, Mapping, Any]:
    """As `steps.accumulated_gradients`, of {'mean': of clients' params, 'pairs': their metrics}."""
    return jax.tree.map(jax.numpy.subtract, params, batch['mean']), batch['pairs'], model_state


def ask_clients(
    params: Any,
    t: int,
    grid: Grid,
    settings: federated.Settings,
    workdir: pathlib.Path,
    timeout: float,
) -> tuple[Any, Mapping[str, tuple[np.ndarray, np.ndarray]]]:
    """The mean of the params that clients have after round t, and their metrics' summed pairs.

    Waits until `per_round` clients are connected, then `timeout` seconds at most.

    Raises:
      UserError: if none has an answer, or two say that they are the same client.
    """
    strategy = FedAvg(
        fraction_train=settings.per_round / settings.clients,
        min_train_nodes=settings.per_round,
        min_available_nodes=settings.per_round,
        train_metrics_aggr_fn=summed,
    )
    told = records.of_run(workdir)
    messages = strategy.configure_train(t + 1, records.of_tree(params), told, grid)
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    _check_clients([reply.content for reply in replies if not reply.has_error()])
    mean, totals = strategy.aggregate_train(t + 1, replies)
    if mean is None:
        reasons = {reply.error.reason for reply in replies} or {f'silent for {timeout:g} s'}
        raise errors.UserError(f'No client has answered in round {t}: {"; ".join(reasons)}')
    pairs = {name: tuple(map(np.float32, pair)) for name, pair in totals.items()}
    return records.to_tree(mean, params), pairs


def _check_clients(replies: Sequence[RecordDict]) -> None:
    numbers = sorted(reply['metrics']['client'] for reply in replies)
    if len(set(numbers)) < len(numbers):
        raise errors.UserError(
            f'The clients {", ".join(map(str, numbers))} have answered: start each node with a '
            'number of its own, as client=0.'
        )


def summed(replies: Sequence[RecordDict], weighted_by: str) -> MetricRecord:
    """The sums of clients' pairs, where Flower would take means."""
    metrics = [reply['metrics'] for reply in replies]
    pairs = [name for name, value in metrics[0].items() if isinstance(value, list)]
    return MetricRecord({
        name: np.sum([each[name] for each in metrics], axis=0).tolist() for name in pairs
    })  # fmt: skip
