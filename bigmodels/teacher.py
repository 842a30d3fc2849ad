"""Learning from what another run answers: the run of config.distill, see `compress.distill`."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bigmodels import checkpoint, errors, opening, rundir, sharding
from bigmodels import config as config_lib
from bigmodels.compress import distill
from bigmodels.experiment import Experiment
from bigmodels.state import TrainState
from bigmodels.tasks import TASKS

LENGTHS = ('sequence_length', 'source_length', 'target_length')  # of texts, fields of tasks


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Another run, as the steps of this one take it.

    Fields:
      settings: config.distill of this run; its step is a number.
      experiment, task: of the other one.
      state: what its model is used with, as shapes with their sharding on this run's mesh.
    """

    settings: distill.Settings
    experiment: Experiment
    task: Any
    state: TrainState

    def read(self) -> TrainState:
        """`state` as arrays."""
        directory = pathlib.Path(self.settings.teacher, rundir.CHECKPOINTS)
        return checkpoint.restore(directory, self.settings.step, self.state)

    def loss_fn(self, task: Any) -> Callable:
        """The loss of a task with this teacher, which takes `state` behind a task's arguments."""

        def loss_fn(params, model_state, batch, rng, state: TrainState, train: bool):
            own = opening.joined(self.experiment, state.eval_params, state.frozen)
            return distill.loss_fn(
                params,
                model_state,
                batch,
                rng,
                {'params': own, **state.model_state},
                task=task,
                teacher=self.task.model,
                settings=self.settings,
                train=train,
            )

        return loss_fn


def open_teacher(
    settings: Experiment,
    task: Any,
    mesh: Any,
    variables: Mapping[str, Any],
    example: Mapping[str, jax.ShapeDtypeStruct],
) -> Teacher | None:
    """The teacher of an experiment, if it has one.

    Args:
      task: of the experiment, with what it has learnt from the data, if that was opened.
      variables: of its model, as shapes.
      example: the shapes of a batch of one.

    Raises:
      UserError: if there is no such run, and for one that does not answer what this run asks.
    """
    if not settings.distill.teacher:
        return None
    workdir = pathlib.Path(settings.distill.teacher)
    _, theirs, their_task = opening.open_task(workdir, settings.distill.trust)
    _check_private(settings)
    _check_alike(task, their_task, workdir)
    _check_inputs(task, their_task, workdir, example)
    state = opening.evaluation_shapes(workdir, theirs, their_task, mesh)
    teacher = Teacher(settings.distill, theirs, their_task, state)
    rest = dict(variables)
    with sharding.without_axes(mesh):  # whatever does not fit is told now
        jax.eval_shape(
            functools.partial(teacher.loss_fn(task), train=True),
            rest.pop('params'), rest, example, jax.random.key(0), state,
        )  # fmt: skip
    return teacher


def _check_private(settings: Experiment) -> None:
    if settings.privacy.on or settings.federated.on:
        raise errors.UserError(
            'config.distill does not go with config.privacy nor config.federated: what the '
            'teacher has learnt of the examples would pass on to the model unaccounted for.'
        )


def _check_alike(task: Any, theirs: Any, workdir: pathlib.Path) -> None:
    """Raises UserError for a teacher that reads inputs, or counts classes, in another way."""
    name = type(task).__name__
    if task.alike_in_teacher is None:
        able = [key for key, kind in TASKS.items() if kind.alike_in_teacher is not None]
        raise errors.UserError(
            f'config.distill: a {name} has no teacher. Tasks that may have one: {", ".join(able)}.'
        )
    if type(theirs) is not type(task):
        raise errors.UserError(
            f'The teacher {workdir} is of the task {type(theirs).__name__}, and this config of '
            f'{name}: take a run of the same.'
        )
    for field in task.alike_in_teacher:
        own, other = (config_lib.to_plain(getattr(each, field)) for each in (task, theirs))
        if own != other:
            raise errors.UserError(
                f'config.task.{field} is {own!r}, and that of the teacher {workdir} {other!r}: '
                'set it to the same, so that both read and answer alike.'
            )
    names = [tuple(getattr(each, 'classes', ())) for each in (task, theirs)]
    if all(names) and names[0] != names[1]:
        raise errors.UserError(
            f'The teacher {workdir} has the classes {", ".join(names[1])}, and this run '
            f'{", ".join(names[0])}: its answers would be of others.'
        )
    vocabularies = [getattr(each, 'vocabulary', None) for each in (task, theirs)]
    if None not in vocabularies and len({each.fingerprint() for each in vocabularies}) > 1:
        raise errors.UserError(
            f'The teacher {workdir} has another tokenizer: the {vocabularies[1].vocab_size} tokens '
            f'of {workdir / rundir.PREPROCESSING}, which this run has to read by too.'
        )
    if any(getattr(task, 'class_weights', ())):
        raise errors.UserError(
            'config.task.class_weights weighs examples by their class, and config.distill does '
            'not: leave one out.'
        )


def _check_inputs(task: Any, theirs: Any, workdir: pathlib.Path, example: Mapping) -> None:
    """Raises UserError for a teacher whose model cannot take the inputs of this run."""
    if hasattr(theirs, 'vocabulary'):
        lengths = {key: value for key, value in vars(task).items() if key in LENGTHS}
        dataclasses.replace(theirs, **lengths)  # it refuses what is too long for its model
        return
    own, other = example['inputs'].shape, rundir.batch_shapes(workdir, 1)['inputs'].shape
    if own != other:
        raise errors.UserError(
            f'The teacher {workdir} takes inputs of {list(other[1:])}, and this config has '
            f'{list(own[1:])}: both need the same images or features.'
        )
