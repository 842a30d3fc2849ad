"""Opening a run for notebooks, evaluation and generation."""

import argparse
import ctypes
import dataclasses
import logging as stdlib_logging
import os
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grain
import jax
from absl import logging

from bigmodels import checkpoint, experiment, opening, program, rundir, sharding
from bigmodels.data import pipeline
from bigmodels.opening import open_task


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished or running run.

    Fields:
      workdir: its directory, see `rundir`.
      config: resolved, as plain data.
      experiment: the same, typed.
      task: with its model and its fitted preprocessing.
      mesh: the devices that hold what follows.
      params: for evaluation (the moving average where there is one). Of a run with adapters they
        are joined to their kernels; `adapters.merged` makes plain arrays of them. Of a compressed
        run they are narrow; `compress.plain` widens them.
      model_state: the model's other collections.
      step: of the checkpoint that was opened.
    """

    workdir: pathlib.Path
    config: Mapping
    experiment: experiment.Experiment
    task: Any
    mesh: jax.sharding.Mesh
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
        sources = experiment.training_sources(self.experiment)
        return experiment.training_batches(self.experiment, self.task, sources)[0]

    def program(self) -> program.Program:
        """The run's pure functions, placed on its mesh."""
        shapes = rundir.batch_shapes(self.workdir, self.experiment.batch_size)
        return program.make_program(self.experiment, self.task, self.mesh, shapes)


def open_run(
    directory: str | os.PathLike,
    step: int | Literal['last', 'best'] = 'last',
    mesh: jax.sharding.Mesh | None = None,
    trust: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Run:
    """Opens a run; reads its config as data, which can execute nothing.

    Args:
      step: a saved step; 'best' is by config.checkpoint.best_metric.
      mesh: where its arrays go, by default the first device alone.
      trust: packages whose code the config may name, as in `model.name = 'my_models.Wide'`.
      overrides: fields of the task for its answers, each as "task.classes=('cat','dog')".

    Raises:
      UserError: if there is no such run or step, the checkpoint is damaged, the config names code
        that is not trusted, or an override is of what training has settled.
    """
    directory = pathlib.Path(directory)
    config, settings, task = open_task(directory, trust, overrides)
    mesh = mesh or sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
    step = checkpoint.good_step(directory / rundir.CHECKPOINTS, step, settings.checkpoint)
    wanted = opening.evaluation_shapes(directory, settings, task, mesh)
    state = checkpoint.restore(directory / rundir.CHECKPOINTS, step, wanted)
    params = opening.joined(settings, state.eval_params, state.frozen)
    return Run(directory, config.to_dict(), settings, task, mesh, params, state.model_state, step)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options of a command that opens a run: --workdir, --step and --trust."""
    parser.add_argument(
        '--workdir', type=pathlib.Path, required=True, help='a run made by bigmodels.main'
    )
    add_step(parser)
    add_trust(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
    """The option --step, as `open_run` takes it."""
    parser.add_argument('--step', type=_step, default='last', help='a saved step, last or best')


def _step(text: str) -> int | str:
    # Another word than last and best is refused with the steps that there are.
    return int(text) if text.isdecimal() else text


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option --trust of a command that opens a run."""
    parser.add_argument(
        '--trust',
        action='append',
        default=[],
        metavar='PACKAGE',
        help="a package whose code the run's config may name; may be given repeatedly",
    )


# Of glibc's malloc.h: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes.
_MALLOC_LIMITS = {-3: 2**30, -1: 2**31 - 1}


def configure_process() -> None:
    """For commands, once: compiled programs persist between processes; libraries keep quiet."""
    logging.set_verbosity(logging.FATAL)  # orbax's errors reach us as exceptions, told once
    stdlib_logging.getLogger('asyncio').setLevel(stdlib_logging.CRITICAL)  # the same again
    stdlib_logging.getLogger('onnx_ir').setLevel(stdlib_logging.ERROR)  # a line for each shape
    sys.unraisablehook = _without_closed_loops
    keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(pipeline.cache_dir() / 'jax'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory for the next step rather than return it to the system.

    XLA allocates a step's temporaries anew each time on CPUs, and the system then zeroes every page
    of them: a quarter to a third of a small model's step. glibc only; it still returns blocks over
    64 MB that other threads than the main one allocate.
    """
    if platform.libc_ver()[0] != 'glibc':
        return
    libc = ctypes.CDLL(None)
    for option, limit in _MALLOC_LIMITS.items():
        libc.mallopt(option, limit)


def _without_closed_loops(unraisable: Any) -> None:
    """Shows what could not be raised, but for the echoes of a save that failed.

    Orbax closes its event loop at a save's first error, which we are told; the writes that were
    still under way then cannot report to the loop, and tensorstore prints that for each of them.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'):
        sys.__unraisablehook__(unraisable)
