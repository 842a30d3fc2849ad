"""What a config would do, told without doing it: python -m bigmodels.main --explain=sharding ...

All of it follows from shapes. Nothing is allocated, so the mesh may be of more devices than this
machine has.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from bigmodels import errors, experiment, program, sharding, tables, trees
from bigmodels.data import pipeline, tokenizers
from bigmodels.experiment import Experiment


def planned_mesh(shape: sharding.MeshShape) -> tuple[Mesh | AbstractMesh, list[str]]:
    """The mesh of a run, and notes on how it differs from this machine.

    Where the sizes of `shape` do not fit the devices here, it is a mesh of those sizes without
    devices, in which an axis of -1 has one.

    Raises:
      UserError: for sizes that no number of devices fits.
    """
    sizes = dataclasses.asdict(shape)
    fixed = [size for size in sizes.values() if size != -1]
    needed, here = math.prod(fixed), len(jax.devices())
    valid = all(size > 0 for size in fixed) and len(sizes) - len(fixed) <= 1
    if not valid or (here == needed if len(fixed) == len(sizes) else here % needed == 0):
        return sharding.make_mesh(shape), []  # it refuses what is not valid
    notes = [f'the mesh is of {needed} devices; this machine has {here}']
    for axis, size in sizes.items():
        if size == -1:
            notes.append(f'config.mesh.{axis} = -1 is taken as 1: set it for more devices')
            sizes[axis] = 1
    types = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types), notes


def plan(settings: Experiment) -> program.Program:
    """The program of an experiment as shapes on its planned mesh, with notes on both.

    A batch that does not divide over the mesh is a note too: the placement of the parameters does
    not depend on it.
    """
    mesh, notes = planned_mesh(settings.mesh)
    try:
        experiment.check_batch(settings, sharding.num_batch_shards(mesh))
    except errors.UserError as error:
        notes.append(str(error))
    _, run = abstract_program(settings, mesh)
    return dataclasses.replace(run, notes=notes + run.notes)


def abstract_program(
    settings: Experiment, mesh: Mesh | AbstractMesh
) -> tuple[Any, program.Program]:
    """The task of an experiment, and its program as shapes on a mesh."""
    task, shapes = _task_and_batch(settings)
    return task, program.make_program(settings, task, mesh, shapes)


def _task_and_batch(settings: Experiment) -> tuple[Any, program.Shapes]:
    """The task and the shapes of a batch: fitted to the training data unless it knows them."""
    task = experiment.make_task(settings)
    if not hasattr(task, 'example_shapes'):
        sources = experiment.training_sources(settings)
        task = task.fit(pipeline.concatenated([source for source, _ in sources]))
        batches, _ = experiment.training_batches(settings, task, sources)
        return task, program.shapes_of_batch(batches[0], settings.batch_size)
    # What ids stand for changes no shape; but a teacher is asked whether it has the same.
    if getattr(task, 'vocabulary', ()) is None and not settings.distill.teacher:
        task = dataclasses.replace(task, vocabulary=tokenizers.Bytes())
    weight = jax.ShapeDtypeStruct((), 'float32')  # as batches give each example without any
    return task, {
        key: jax.ShapeDtypeStruct((settings.batch_size, *shape.shape), shape.dtype)
        for key, shape in {'weights': weight, **task.example_shapes()}.items()
    }


def device_bytes(tree: Any) -> int:
    """The bytes that each device holds of a tree of shapes with shardings."""
    return trees.size_bytes(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype),
            tree,
        )
    )


def explain_sharding(settings: Experiment) -> str:
    """Where every parameter lies, and what a device holds of the state; activations not counted.

    The gradient is counted as one array for each parameter, of its dtype and placement.
    """
    run = plan(settings)
    state = run.state_shapes
    parameters = [('parameter', 'shape', 'mesh axes', 'bytes', 'bytes per device')]
    for name, leaf in trees.flatten_named(state.params).items():
        shape = ' x '.join(map(str, leaf.shape)) or 'scalar'
        sizes = trees.size_bytes(leaf), device_bytes(leaf)
        parameters.append((name, shape, _axes(leaf), *(f'{size:,}' for size in sizes)))
    parts = {
        'parameters': state.params,
        'gradients': state.params,
        'optimiser state': state.opt_state,
        'moving average': state.ema_params,
        'model state': state.model_state,
        **({} if state.frozen is None else {'frozen': state.frozen}),
        **({} if run.teacher is None else {'teacher': run.teacher.state}),
    }
    parts['all'] = tuple(parts.values())
    totals = [('total', 'bytes', 'bytes per device', '')]
    for name, tree in parts.items():
        each = device_bytes(tree)
        totals.append((name, f'{trees.size_bytes(tree):,}', f'{each:,}', f'{each / 1e9:.3f} GB'))
    return '\n\n'.join(
        [
            f'Mesh: {sharding.describe(run.mesh)}. '
            f'Parameters: {trees.count(state.params):,} in {len(parameters) - 1} arrays.',
            tables.aligned(parameters, '<<<>>'),
            tables.aligned(totals, '<>>>'),
            '\n'.join([_whole(state.params), *(f'Note: {note}' for note in run.notes)]),
        ]
    )


def _whole(params: Any) -> str:
    """Which parameters no mesh axis splits, the largest first."""
    sizes = {
        name: trees.size_bytes(leaf)
        for name, leaf in trees.flatten_named(params).items()
        if device_bytes(leaf) == trees.size_bytes(leaf)
    }
    names = sorted(sizes, key=sizes.get, reverse=True)
    listed = ', '.join(names[:5]) + (' and more' if len(names) > 5 else '')
    return f'Whole on every device: {sum(sizes.values()):,} bytes in {listed or "no array"}.'


def _axes(leaf: jax.ShapeDtypeStruct) -> str:
    """The mesh axes that split each dimension, as 'fsdp, -, data+tensor'."""
    sizes = leaf.sharding.mesh.shape
    spec = (*leaf.sharding.spec, *(None,) * (len(leaf.shape) - len(leaf.sharding.spec)))
    named = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    return ', '.join('+'.join(axis for axis in axes if sizes[axis] > 1) or '-' for axes in named)


# By the name that --explain gives; each makes a text from a checked experiment.
EXPLANATIONS: dict[str, Callable[[Experiment], str]] = {'sharding': explain_sharding}


def explain(name: str, config: Mapping) -> str:
    """The explanation of a config by the name that --explain gives.

    Raises:
      UserError: for an unknown name, and for a mistake in the config.
    """
    if name not in EXPLANATIONS:
        raise errors.unknown('explanation --explain =', name, EXPLANATIONS)
    return EXPLANATIONS[name](experiment.from_config(config))
