"""What a config compiles to: pure functions, and the placement of their arguments.

Needs shapes only, no data and no parameters, so the same code serves training, notebooks and
compiling ahead of time for devices that are not there.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from bigmodels import config as config_lib
from bigmodels import errors, optimizers, sharding, steps, transfer, xla_options
from bigmodels import guard as guard_lib
from bigmodels import state as state_lib
from bigmodels.experiment import Experiment, InitFrom

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run.

    Fields:
      init: key -> TrainState, pure.
      train_step: (state, batch) -> (state, metrics), pure; see `steps.train_step`.
      eval_step: (params, model_state, batch) -> (pairs, outcomes), pure.
      schedule: step -> learning rate.
      state_shapes: of the TrainState, each with its sharding.
      batch_shapes: of a global batch, each with its sharding.
      compiler_options: of XLA, for the train step.
      init_from: another run, whose parameters `init_state` puts into what `init` makes.
      notes: what could not be placed as the sharding rules say, options of XLA, the other run.
    """

    init: Callable
    train_step: Callable
    eval_step: Callable
    schedule: optax.Schedule
    mesh: jax.sharding.Mesh
    state_shapes: state_lib.TrainState
    batch_shapes: Shapes
    compiler_options: Mapping[str, xla_options.Value]
    init_from: InitFrom
    notes: list[str]

    def compile_train_step(self, parallel: str) -> Callable:
        """`train_step` for these shapes on this mesh."""
        return sharding.compile_step(
            self.train_step,
            self.mesh,
            self.state_shapes,
            self.batch_shapes,
            parallel,
            self.compiler_options,
        )

    def make_init_state(self, seed: int) -> Callable[[], state_lib.TrainState]:
        """A function that makes the state before the first step, every array where it belongs.

        What `init_from` asks for is checked now, see `transfer.make_transfer`.
        """
        placed = jax.tree.map(lambda shape: shape.sharding, self.state_shapes)
        init = functools.partial(jax.jit(self.init, out_shardings=placed), jax.random.key(seed))
        if not self.init_from.workdir:
            return init
        put = transfer.make_transfer(self.init_from, self.state_shapes)
        return lambda: put(init())

    def init_state(self, seed: int) -> state_lib.TrainState:
        """The state before the first step."""
        return self.make_init_state(seed)()


def make_program(
    settings: Experiment, task: Any, mesh: jax.sharding.Mesh, batch_shapes: Shapes
) -> Program:
    """The program of an experiment for batches of these shapes.

    Raises:
      UserError: for a task that compares the examples of a batch, which the experiment splits.
    """
    _check_whole_batches(settings, task, mesh)
    example = {
        key: jax.ShapeDtypeStruct((1, *shape.shape[1:]), shape.dtype)
        for key, shape in batch_shapes.items()
    }

    def init_variables(rng, batch):
        with sharding.without_axes(mesh):
            return task.init(rng, batch)

    def init(rng):
        batch = jax.tree.map(lambda shape: jax.numpy.zeros(shape.shape, shape.dtype), example)
        return state_lib.init_state(
            rng,
            batch,
            init=init_variables,
            tx=tx,
            use_ema=settings.ema_decay > 0,
            guard=guard_lib.init_memory(settings.guard),
        )

    variables = jax.eval_shape(init_variables, jax.random.key(0), example)
    tx, schedule = config_lib.build(
        optimizers.make_optimizer,
        settings.optimizer,
        'optimizer',
        params=variables['params'],
        total_steps=settings.total_steps,
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    placed, notes = sharding.state_shardings(shapes, sharding_rules(task), mesh)
    options, told = xla_options.for_mesh(mesh, settings.xla)
    by_rows = sharding.batch_sharding(mesh)
    other = settings.init_from.workdir
    if other:
        notes.append(f'the parameters began as those of {other}, see config.init_from')
    return Program(
        init=init,
        train_step=functools.partial(
            steps.train_step,
            loss_fn=task.loss_fn,
            tx=tx,
            schedule=schedule,
            seed=settings.seed,
            accumulate=settings.accumulate,
            ema_decay=settings.ema_decay,
            guard=settings.guard,
        ),
        eval_step=evaluation_step(task),
        schedule=schedule,
        mesh=mesh,
        state_shapes=sharding.with_shardings(shapes, placed),
        batch_shapes=sharding.with_shardings(batch_shapes, dict.fromkeys(example, by_rows)),
        compiler_options=options,
        init_from=settings.init_from,
        notes=notes + told,
    )


def _check_whole_batches(settings: Experiment, task: Any, mesh: jax.sharding.Mesh) -> None:
    if not getattr(task, 'compares_examples', False):
        return
    by_device = settings.parallel == 'pmap' and mesh.size > 1
    if settings.accumulate > 1 or by_device:
        found = 'parallel = "pmap"' if by_device else f'accumulate = {settings.accumulate}'
        raise errors.UserError(
            f'The loss of {type(task).__name__} compares the examples of a batch, and '
            f'config.{found} would compare those of its parts alone: another loss. Set accumulate '
            'to 1 and parallel to "jit".'
        )


def evaluation_step(task: Any) -> Callable:
    """(params, model_state, batch) -> (metric pairs, outcomes), see `steps.eval_step`."""
    outcomes = getattr(task, 'outcomes', None)
    return functools.partial(steps.eval_step, loss_fn=task.loss_fn, outcomes=outcomes)


def sharding_rules(task: Any) -> Sequence[tuple[str, tuple]]:
    """The rules of the task's model; none means the default of `sharding.param_specs`."""
    return getattr(task.model, 'sharding_rules', ())


def shapes_of_batch(batch: Mapping[str, np.ndarray], batch_size: int) -> Shapes:
    """The shapes of a global batch, from one host's part of one."""
    return {
        key: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype)
        for key, value in batch.items()
    }
