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

from bigmodels import (
    adapters,
    errors,
    opening,
    optimizers,
    privacy,
    sharding,
    steps,
    transfer,
    trees,
    xla_options,
)
from bigmodels import config as config_lib
from bigmodels import guard as guard_lib
from bigmodels import state as state_lib
from bigmodels import teacher as teacher_lib
from bigmodels.compress import prune
from bigmodels.experiment import Experiment, InitFrom
from bigmodels.models.parts import batch_norm

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run.

    Fields:
      init_variables: key -> the task's variables, pure.
      begin: (variables, key) -> the TrainState before the first step, pure.
      train_step: (state, batch) -> (state, metrics), pure; see `steps.train_step`. With a teacher
        (state, batch, the teacher's state).
      eval_step: (params, model_state, batch) -> (pairs, outcomes), pure.
      schedule: step -> learning rate.
      spent: step -> floats, what the run has spent by then; {} where it is not private.
      join: (params, frozen) -> the params that the model takes, see `adapters.joined` and
        `compress.joined`.
      flops: of a train step by the task's formula; None where there is none, or not for adapters
        and teachers.
      variable_shapes, state_shapes: of these, each with its sharding.
      batch_shapes: of a global batch, each with its sharding.
      compiler_options: of XLA, for the train step.
      init_from: another run, whose parameters `init_state` puts into the variables.
      teacher: another run, whose answers are a part of the loss; None for none.
      notes: what could not be placed as the sharding rules say, options of XLA, the other run.
    """

    init_variables: Callable
    begin: Callable
    train_step: Callable
    eval_step: Callable
    schedule: optax.Schedule
    spent: Callable
    join: Callable
    flops: float | None
    mesh: jax.sharding.Mesh
    variable_shapes: Mapping[str, Any]
    state_shapes: state_lib.TrainState
    batch_shapes: Shapes
    compiler_options: Mapping[str, xla_options.Value]
    init_from: InitFrom
    teacher: teacher_lib.Teacher | None
    notes: list[str]

    def compile_train_step(self, parallel: str) -> Callable:
        """`train_step` for these shapes on this mesh; see `taught` for one with a teacher."""
        return sharding.compile_step(
            self.train_step,
            self.mesh,
            self.state_shapes,
            self.batch_shapes,
            parallel,
            self.compiler_options,
            () if self.teacher is None else (self.teacher.state,),
        )

    def taught(self, train_step: Callable) -> Callable:
        """`train_step`, compiled or not, of (state, batch) alone: a teacher's state is read now."""
        if self.teacher is None:
            return train_step
        given = self.teacher.read()
        return lambda state, batch: train_step(state, batch, given)

    def make_init_state(self, seed: int) -> Callable[[], state_lib.TrainState]:
        """A function that makes the state before the first step, every array where it belongs.

        What `init_from` asks for is checked now, see `transfer.make_transfer`.
        """
        key = jax.random.key(seed)
        placed = jax.tree.map(lambda shape: shape.sharding, self.state_shapes)
        if not self.init_from.workdir:
            return functools.partial(jax.jit(self.init, out_shardings=placed), key)
        put = transfer.make_transfer(self.init_from, self.variable_shapes)
        among = jax.tree.map(lambda shape: shape.sharding, self.variable_shapes)
        make = jax.jit(self.init_variables, out_shardings=among)
        begin = jax.jit(self.begin, out_shardings=placed, donate_argnums=0)
        return lambda: begin(put(make(key)), key)

    def init(self, rng: jax.Array) -> state_lib.TrainState:
        """The state before the first step as without another run; pure."""
        return self.begin(self.init_variables(rng), rng)

    def init_state(self, seed: int) -> state_lib.TrainState:
        """The state before the first step."""
        return self.make_init_state(seed)()

    def eval_params(self, state: state_lib.TrainState) -> Any:
        """The params to evaluate the task with."""
        return self.join(state.eval_params, state.frozen)


def make_program(
    settings: Experiment, task: Any, mesh: jax.sharding.Mesh, batch_shapes: Shapes
) -> Program:
    """The program of an experiment for batches of these shapes.

    Raises:
      UserError: for a task that compares the examples of a batch, which the experiment splits, or
        itself with a base that is not frozen; and for what would break `config.privacy`.
    """
    _check_whole_batches(settings, task, mesh)
    _check_base(settings, task)
    example = {
        key: jax.ShapeDtypeStruct((1, *shape.shape[1:]), shape.dtype)
        for key, shape in batch_shapes.items()
    }

    def init_variables(rng):
        batch = jax.tree.map(lambda shape: jax.numpy.zeros(shape.shape, shape.dtype), example)
        with sharding.without_axes(mesh):
            return dict(task.init(rng, batch))

    def split(params, rng):
        return adapters.split(settings.adapter, params, jax.random.fold_in(rng, 1))

    def begin(variables, rng):
        params, frozen = split(variables['params'], rng)
        return state_lib.init_state(
            {**variables, 'params': params},
            tx=tx,
            use_ema=settings.ema_decay > 0,
            guard=guard_lib.init_memory(settings.guard),
            frozen=frozen,
        )

    key = jax.random.key(0)
    variables = jax.eval_shape(init_variables, key)
    gradient = privacy.transformation(settings, task, variables)
    tx, schedule = _make_optimizer(settings, jax.eval_shape(split, variables['params'], key)[0])
    shapes = jax.eval_shape(begin, variables, key)
    rules = sharding.rules_of(task.model)
    own_rules = adapters.sharding_rules(settings.adapter, rules, variables['params'])
    placed, unplaced = sharding.state_shardings(shapes, own_rules, mesh)

    teacher = teacher_lib.open_teacher(settings, task, mesh, variables, example)
    frozen_by = settings.optimizer.get('freeze', ())

    def join(params, frozen):
        return opening.joined(settings, optimizers.held(params, frozen_by), frozen)

    options, told = xla_options.for_mesh(mesh, settings.xla)
    by_rows = sharding.batch_sharding(mesh)
    return Program(
        init_variables=init_variables,
        begin=begin,
        train_step=functools.partial(
            steps.train_step,
            loss_fn=_loss_fn(settings, task, teacher),
            tx=tx,
            schedule=schedule,
            seed=settings.seed,
            gradients=gradient.gradients,
            spent=gradient.spent,
            accumulate=settings.accumulate,
            ema_decay=settings.ema_decay,
            zeros_stay=settings.prune.sparsity > 0,
            guard=settings.guard,
            join=join,
        ),
        eval_step=evaluation_step(task),
        schedule=schedule,
        spent=lambda step: jax.tree.map(float, gradient.spent(step)),
        join=join,
        # The formulas count a gradient of every parameter, and one model.
        flops=None
        if settings.adapter.rank or teacher
        else task.flops_per_step(shapes.params, batch_shapes),
        mesh=mesh,
        variable_shapes=_placed_variables(variables, rules, mesh),
        state_shapes=sharding.with_shardings(shapes, placed),
        batch_shapes=sharding.with_shardings(batch_shapes, dict.fromkeys(example, by_rows)),
        compiler_options=options,
        init_from=settings.init_from,
        teacher=teacher,
        notes=[*unplaced, *_notes(settings, variables, shapes), *gradient.notes, *told],
    )


def _loss_fn(settings: Experiment, task: Any, teacher: Any) -> Callable:
    """The task's, or that of learning from a teacher; frozen normalisation is as in evaluation."""
    loss_fn = task.loss_fn if teacher is None else teacher.loss_fn(task)
    frozen = settings.optimizer.get('freeze')
    return batch_norm.frozen(frozen)(loss_fn) if frozen else loss_fn


def _make_optimizer(
    settings: Experiment, params: Any
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The chain, within pruning where there is some, and the learning rate by step."""
    tx, schedule = config_lib.build(
        optimizers.make_optimizer,
        settings.optimizer,
        'optimizer',
        params=params,
        total_steps=settings.total_steps,
    )
    if settings.prune.sparsity:
        tx = prune.gradually(tx, settings.prune, params)
    return tx, schedule


def _notes(
    settings: Experiment, variables: Mapping[str, Any], shapes: state_lib.TrainState
) -> list[str]:
    """What the start screen says of the parameters: what they are beside those of the model."""
    notes = []
    if shapes.frozen is not None:
        whole = trees.count(variables['params'])
        notes.append(
            f'the parameters are adapters of a model of {whole:,}, of which '
            f'{trees.size_bytes(shapes.frozen) / 1e6:.1f} MB are kept frozen, see config.adapter'
        )
    if settings.compress.rounds:
        notes.append(
            f'every step rounds weights to {settings.compress.weights} and their inputs to '
            f'{settings.compress.activations}, see config.compress'
        )
    if settings.distill.teacher:
        notes.append(settings.distill.describe())
    if other := settings.init_from.workdir:
        notes.append(f'the parameters began as those of {other}, see config.init_from')
    return notes


def _placed_variables(variables: Mapping, rules: Sequence, mesh: jax.sharding.Mesh) -> dict:
    """A task's variables as shapes with their sharding, as if all of them were trained."""
    rest = dict(variables)
    number = jax.ShapeDtypeStruct((), 'int32')
    alone = state_lib.TrainState(number, rest.pop('params'), rest, opt_state=())
    placed, _ = sharding.state_shardings(alone, rules, mesh)
    placed = sharding.with_shardings(alone, placed)
    return {'params': placed.params, **placed.model_state}


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


def _check_base(settings: Experiment, task: Any) -> None:
    adapter = settings.adapter
    if getattr(task, 'compares_with_base', False) and (adapter.trained or not adapter.rank):
        raise errors.UserError(
            f'The loss of {type(task).__name__} compares the model with its frozen base, but '
            f'config.adapter has rank = {adapter.rank} and trained = {tuple(adapter.trained)}: set '
            f'adapter.rank to at least 1, and adapter.trained to ().'
        )


def evaluation_step(task: Any) -> Callable:
    """(params, model_state, batch) -> (metric pairs, outcomes), see `steps.eval_step`."""
    outcomes = getattr(task, 'outcomes', None)
    return functools.partial(steps.eval_step, loss_fn=task.loss_fn, outcomes=outcomes)


def shapes_of_batch(batch: Mapping[str, np.ndarray], batch_size: int) -> Shapes:
    """The shapes of a global batch, from one host's part of one."""
    return {
        key: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype)
        for key, value in batch.items()
    }
