"""A run's directory: made by training, opened by everything else.

config.json      the resolved config, read back as data
preprocessing/   what preprocessing learnt from the training data, such as a tokenizer
checkpoints/     see `checkpoint`
metrics.jsonl    a row per logged step and evaluation; tensorboard/ holds the same
batch.json       the shapes of a batch, from which those of the parameters follow
curves.png, summary.json, and what the task demonstrates, such as sample.txt
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import grain
import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from bigmodels import checkpoint, errors, experiment, sharding, state
from bigmodels import config as config_lib
from bigmodels import program as program_lib
from bigmodels.data import pipeline

CONFIG, PREPROCESSING, CHECKPOINTS = 'config.json', 'preprocessing', 'checkpoints'
BATCH, SUMMARY = 'batch.json', 'summary.json'
Resume = Literal['same', 'changed', 'restart']
RESUME_RULES = (
    '--resume=changed goes on from its last checkpoint under the new config; --resume=restart '
    'moves it aside and starts anew; --workdir=... starts another run'
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished or running run.

    Fields:
      config: resolved, as plain data.
      experiment: the same, typed.
      task: with its model and its fitted preprocessing.
      params: for evaluation (the moving average where there is one).
      model_state: the model's other collections.
      step: of the checkpoint that was opened.
    """

    workdir: pathlib.Path
    config: Mapping
    experiment: experiment.Experiment
    task: Any
    params: Any
    model_state: Any
    step: int

    @property
    def model(self):
        """The Linen module."""
        return self.task.model

    @property
    def batches(self) -> grain.MapDataset:
        """The training batches: `batches[t]` is batch t, as step t + 1 saw it."""
        return experiment.training_batches(self.experiment, self.task)[0]

    def program(self, mesh: jax.sharding.Mesh | None = None) -> program_lib.Program:
        """The run's pure functions, placed on `mesh`, by default the first device alone."""
        mesh = mesh or sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
        shapes = _batch_shapes(self.workdir, self.experiment.batch_size)
        return program_lib.make_program(self.experiment, self.task, mesh, shapes)


def open_run(workdir: str | os.PathLike, step: int | Literal['last', 'best'] = 'last') -> Run:
    """Opens a run for notebooks, evaluation, generation and serving; executes no config file.

    Args:
      step: a saved step; 'best' is by config.checkpoint.best_metric.

    Raises:
      UserError: if there is no such run or step, or the checkpoint is damaged.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / CONFIG).is_file():
        raise errors.UserError(f'{workdir} holds no run: {CONFIG} is missing.')
    config = config_lib.read(workdir / CONFIG)
    settings = experiment.from_config(config)
    task = experiment.make_task(settings).restored(workdir / PREPROCESSING)
    directory = workdir / CHECKPOINTS
    step = _choose_step(directory, step, settings.checkpoint)
    params, model_state = _restore_for_evaluation(workdir, step, settings, task)
    return Run(workdir, config.to_dict(), settings, task, params, model_state, step)


def _choose_step(directory: pathlib.Path, step, settings: experiment.Checkpoint) -> int:
    if step == 'best':
        step = checkpoint.best_step(directory, settings.best_metric, settings.best_mode)
    elif step == 'last':
        step, _ = checkpoint.newest_good(directory)
    saved = checkpoint.steps(directory)
    if step not in saved:
        raise errors.UserError(
            f'{directory} has no such checkpoint; it has steps: '
            f'{", ".join(map(str, saved)) or "none"}.'
        )
    if problem := checkpoint.damage(directory, step):
        raise errors.UserError(f'Step {step} in {directory} is damaged: {problem}.')
    return step


def _restore_for_evaluation(workdir: pathlib.Path, step: int, settings, task) -> tuple[Any, Any]:
    """Params and model state only: the optimiser's part of a checkpoint is not read."""
    mesh = sharding.make_mesh(sharding.MeshShape())
    variables = dict(jax.eval_shape(task.init, jax.random.key(0), _batch_shapes(workdir, 1)))
    params = variables.pop('params')
    use_ema = settings.ema_decay > 0
    wanted = state.TrainState(
        step=jax.ShapeDtypeStruct((), 'int32'),
        params={} if use_ema else params,
        model_state=variables,
        opt_state={},
        ema_params=params if use_ema else None,
    )
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wanted = checkpoint.abstract_state(wanted, jax.tree.map(lambda _: replicated, wanted))
    restored = checkpoint.restore(workdir / CHECKPOINTS, step, wanted)
    return restored.eval_params, restored.model_state


def prepare(workdir: pathlib.Path, config: Mapping, resume: Resume) -> int | None:
    """Makes or checks the directory of a run; returns the step to go on from, None for a new run.

    With several processes the first one acts, in a directory that all share.

    Raises:
      UserError: if it cannot be written, or holds a run of another config that `resume` does not
        allow to go on.
    """
    start = _prepare(workdir, config, resume) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        told = multihost_utils.broadcast_one_to_all(np.int32(-1 if start is None else start))
        start = None if told < 0 else int(told)
    return start


def _prepare(workdir: pathlib.Path, config: Mapping, resume: Resume) -> int | None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / '.writable').touch()
        (workdir / '.writable').unlink()
    except OSError as error:
        raise errors.UserError(
            f'The work directory {workdir} cannot be written: {error.strerror}.'
        ) from error
    if resume == 'restart' and (workdir / CONFIG).is_file():
        number = 1
        while (aside := workdir.with_name(f'{workdir.name}.{number}')).exists():
            number += 1
        workdir.rename(aside)
        workdir.mkdir()
    if (workdir / CONFIG).is_file():
        saved = config_lib.read(workdir / CONFIG)
        changes = experiment.blocking_differences(saved, config)
        if changes and resume == 'same':
            listed = '\n'.join(
                f'  {key}: {old!r} -> {new!r}' for key, (old, new) in changes.items()
            )
            raise errors.UserError(
                f'{workdir} holds a run with another config:\n{listed}\n{RESUME_RULES}.'
            )
    start, damaged = checkpoint.newest_good(workdir / CHECKPOINTS)
    for step, problem in damaged.items():
        print(f'warning: checkpoint {step} is damaged and was set aside: {problem}')
        checkpoint.set_aside(workdir / CHECKPOINTS, step)
    write_json(workdir / CONFIG, config_lib.to_plain(config))
    return start


def is_complete(workdir: pathlib.Path, step: int | None, total_steps: int) -> bool:
    """Whether a run has made all its steps and written its summary."""
    return step is not None and step >= total_steps and (workdir / SUMMARY).is_file()


def save_batch_shapes(workdir: pathlib.Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Writes batch.json: for each key, the shape of one example and the dtype."""
    write_json(
        workdir / BATCH, {key: [shape.shape[1:], str(shape.dtype)] for key, shape in shapes.items()}
    )


def _batch_shapes(workdir: pathlib.Path, batch_size: int) -> program_lib.Shapes:
    saved = json.loads((workdir / BATCH).read_text())
    return {
        key: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for key, (shape, dtype) in saved.items()
    }


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file that is either the old one or the new one, never half of it.

    Only the first process writes.
    """
    if jax.process_index() != 0:
        return
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(json.dumps(value, indent=1) + '\n')
    temporary.replace(path)


def configure_process() -> None:
    """For commands, once: compiled programs persist between processes; libraries keep quiet."""
    logging.set_verbosity(logging.FATAL)  # orbax's errors reach us as exceptions, told once
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(pipeline.cache_dir() / 'jax'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
