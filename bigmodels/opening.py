"""What a run is used with, from its directory: its task, and its arrays before they are read."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from bigmodels import adapters, compress, errors, experiment, rundir, sharding
from bigmodels import config as config_lib
from bigmodels.state import TrainState
from bigmodels.tasks import TASKS


def open_task(
    directory: str | os.PathLike, trust: Sequence[str] = (), overrides: Sequence[str] = ()
) -> tuple[ml_collections.ConfigDict, experiment.Experiment, Any]:
    """The config, its experiment and its fitted task, of a run that may have no checkpoint yet.

    Raises:
      UserError: if there is no such run, its config names code that is not trusted, or an override
        is not of the task's `answer_fields`.
    """
    directory = pathlib.Path(directory)
    config = rundir.read_config(directory)
    config_lib.check_trusted(config, trust, str(directory / rundir.CONFIG))
    _check_overrides(config, overrides)
    config_lib.set_fields(config, overrides)
    settings = experiment.from_config(config)
    task = experiment.make_task(settings).restored(directory / rundir.PREPROCESSING)
    return config, settings, task


def _check_overrides(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises UserError for one that is not of a field that the task names for its answers."""
    task = config_lib.chosen(TASKS, config['task'], 'task')
    allowed = [f'task.{field}' for field in getattr(task, 'answer_fields', ())]
    for override in overrides:
        key = override.partition('=')[0]
        if key not in allowed:
            raise errors.unknown('field to set of a trained run:', key, allowed)


def evaluation_shapes(
    directory: pathlib.Path, settings: experiment.Experiment, task: Any, mesh: Any
) -> TrainState:
    """What of a run's state its model is used with, as shapes with their sharding on a mesh.

    Parts that are not needed, such as the optimiser's, are empty: `checkpoint.restore` does not
    read them.
    """
    variables = dict(
        jax.eval_shape(task.init, jax.random.key(0), rundir.batch_shapes(directory, 1))
    )
    whole = variables.pop('params')
    kept = jax.eval_shape(functools.partial(compress.kept, settings.compress), whole)
    split = functools.partial(adapters.split, settings.adapter)
    params, frozen = jax.eval_shape(split, kept, jax.random.key(0))
    rules = adapters.sharding_rules(settings.adapter, sharding.rules_of(task.model), whole)
    rules = compress.sharding_rules(settings.compress, rules, whole)
    number = jax.ShapeDtypeStruct((), 'int32')
    placed = TrainState(number, params, variables, opt_state=(), frozen=frozen)
    shardings, _ = sharding.state_shardings(placed, rules, mesh)
    wanted = sharding.with_shardings(placed, shardings)
    if settings.ema_decay > 0:
        wanted = wanted.replace(params={}, ema_params=wanted.params)
    return wanted


def joined(settings: experiment.Experiment, params: Mapping, frozen: Mapping | None) -> Mapping:
    """The params that the model takes, of what a run trains, or is evaluated with, and `frozen`."""
    return compress.joined(settings.compress, adapters.joined(settings.adapter, params, frozen))
