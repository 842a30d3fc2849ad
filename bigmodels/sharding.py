"""Where arrays live: a mesh with named axes, rules from parameter names to axes, compiled steps."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from bigmodels import errors, trees

# Slowest network first: neighbours along the last axes talk most.
AXES = ('replica', 'data', 'stage', 'fsdp', 'expert', 'sequence', 'tensor')
# The axes that a batch's leading dimension is split over.
BATCH_AXES = ('replica', 'data', 'fsdp', 'expert')
GPU = ('gpu', 'cuda')  # the names that JAX has for the platform


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1, at most once, takes all that are left.

    Fields:
      replica: copies of everything else, one a slice of TPUs; only gradients cross.
      data: data parallelism.
      stage: pipeline parallelism: consecutive layers on each device (scanned layers only).
      fsdp: parameters and optimiser are split, and gathered where they are used.
      expert: experts of a mixture are split; elsewhere the same as data.
      sequence: each sequence is split; attention goes round in a ring.
      tensor: heads and hidden units of each layer are split.
    """

    replica: int = 1
    data: int = -1
    stage: int = 1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of `shape` over `devices`, by default all.

    Raises:
      UserError: if the shape does not use each device once.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.astuple(shape)
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise errors.UserError(f'config.mesh {shape}: sizes are positive, and one may be -1.')
    wanted = ' x '.join(f'{axis} {size}' for axis, size in zip(AXES, sizes, strict=True))
    sizes = tuple(len(devices) // fixed if size == -1 else size for size in sizes)
    if math.prod(sizes) != len(devices):
        raise errors.UserError(
            f'config.mesh asks for {wanted} devices (fixed sizes multiply to {fixed}), but there '
            f'are {len(devices)}. Set one axis to -1 to take what is left.'
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    num_slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if num_slices > 1 and devices[0].platform in GPU:  # JAX counts hosts of GPUs as slices too
        arranged = mesh_utils.create_device_mesh(sizes, devices)
        return jax.sharding.Mesh(arranged, AXES, axis_types=axis_types)
    if num_slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=list(devices))
    replicas, rest = sizes[0], sizes[1:]
    if replicas % num_slices:
        raise errors.UserError(
            f'These devices are in {num_slices} slices, between which only gradients should '
            f'travel: set config.mesh.replica to a multiple of {num_slices}, not {replicas}.'
        )
    within = (replicas // num_slices, *rest)
    across = (num_slices, *(1 for _ in rest))
    arranged = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    return jax.sharding.Mesh(arranged, AXES, axis_types=axis_types)


def describe(mesh: jax.sharding.Mesh) -> str:
    """'data 4 x fsdp 2', leaving out axes of one device."""
    used = [f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1]
    return ' x '.join(used) or 'one device'


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Leading dimension split over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: jax.sharding.Mesh | None = None) -> int:
    """Into how many parts a batch is split, by default on the mesh that is set while tracing."""
    if mesh is None:
        return math.prod(axis_size(axis) for axis in BATCH_AXES)
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_shard(mesh: jax.sharding.Mesh) -> tuple[tuple[int, ...], int]:
    """(blocks, count): of the `count` equal blocks of a global batch's rows, those fed here.

    They are the blocks that this process's devices hold, ascending: in one piece or not, and
    perhaps held by other processes too, as the mesh has it.
    """
    count = num_batch_shards(mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return tuple(sorted({rows.start or 0 for (rows,) in held})), count


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with the placement that each array is to have."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> Mapping[str, jax.Array]:
    """The rows of `batch_shard` -> the global batch, each device taking the block it is to hold.

    Args:
      batch: arrays [rows of this process, ...], in the order of their blocks.

    Returns:
      Arrays [rows of all processes, ...], split over the batch axes.
    """
    placed = batch_sharding(mesh)
    blocks, count = batch_shard(mesh)

    def put(value: np.ndarray) -> jax.Array:
        size = len(value) // len(blocks)

        def held(index: tuple[slice, ...]) -> np.ndarray:
            rows, *others = index
            start = blocks.index((rows.start or 0) // size) * size
            return value[(slice(start, start + size), *others)]

        return jax.make_array_from_callback((count * size, *value.shape[1:]), placed, held)

    return {key: put(np.asarray(value)) for key, value in batch.items()}


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh that is set while tracing; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get(axis, 1)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what is compiled for while tracing.

    It is the platform of the mesh that is set, whose devices need not be of this machine; of this
    process where there is no mesh, or one without devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_gpu() -> bool:
    """Whether that is a GPU."""
    return platform() in GPU


def apart_on_gpu(tree: Any) -> Any:
    """Arrays that a GPU's compiler does not fuse with what made them, nor merge with its others."""
    return jax.lax.optimization_barrier(tree) if on_gpu() else tree


def without_axes(mesh: jax.sharding.Mesh | AbstractMesh) -> contextlib.AbstractContextManager:
    """Tracing for the platform of `mesh` as if there were no mesh: nothing is split."""
    device = mesh.abstract_mesh.abstract_device
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def constrain(x: jax.Array, axes: Sequence[str | tuple[str, ...] | None]) -> jax.Array:
    """Keeps the leading dimensions of x split over these mesh axes, the rest whole.

    A dimension that does not divide is left whole. Needs `jax.set_mesh`; without a mesh, as in a
    notebook, x is returned as it is.

    Args:
      axes: a mesh axis, several as a tuple, or None for each dimension.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(AXES) - set(mesh.axis_names):
        return x
    sizes = [math.prod(mesh.shape[axis] for axis in _as_tuple(split)) for split in axes]
    fitting = [
        split if dimension % size == 0 else None
        for dimension, size, split in zip(x.shape, sizes, axes, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitting))


def mapped_size() -> int:
    """The number of devices under pmap; elsewhere 1: under jit arrays are global."""
    try:
        return jax.lax.axis_size('data')
    except NameError:  # no axis of that name is mapped
        return 1


def mapped_mean(tree: Any) -> Any:
    """The mean over the devices of `mapped_size`."""
    return tree if mapped_size() == 1 else jax.lax.pmean(tree, 'data')


def _as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def constrain_activations(
    x: jax.Array, *features: str | None, rows: Sequence[str] = BATCH_AXES
) -> jax.Array:
    """Keeps x [B, L, ...] split by rows and by position; see `constrain`.

    Args:
      features: the mesh axes of the dimensions after L; whole where none is named.
      rows: the mesh axes of B.
    """
    return constrain(x, (tuple(rows), 'sequence', *features))


def rules_of(model: Any) -> Sequence[tuple[str, tuple]]:
    """The rules of a model; none means the default of `param_specs`."""
    return getattr(model, 'sharding_rules', ())


def param_specs(
    params: Any, rules: Sequence[tuple[str, tuple]], mesh: jax.sharding.Mesh
) -> tuple[Any, list[str]]:
    """A PartitionSpec for each parameter, and notes on what could not be split as ruled.

    A rule names the axes of a parameter's trailing dimensions; the leading one of stacked layers
    is split over `stage`. Without rules, the largest dimension that divides is split over `fsdp`.

    Raises:
      UserError: if a parameter has no rule, or a rule is longer than the parameter's shape or
        names an axis twice.
    """
    if not rules:
        return jax.tree.map(lambda leaf: _largest_dimension(leaf.shape, mesh), params), [
            f'the model has no rules for the axis {axis}: its devices all do the same'
            for axis in ('stage', 'sequence', 'tensor')
            if mesh.shape[axis] > 1
        ]
    notes = []

    def spec(name: str, leaf: Any, axes: tuple) -> PartitionSpec:
        if len(axes) > len(leaf.shape):
            raise errors.UserError(f'Sharding rule {axes} is too long for {name} {leaf.shape}.')
        used = [axis for axis in axes if axis]
        if set(used) - set(mesh.axis_names):
            raise errors.UserError(
                f'Sharding rule {axes} of {name} names an axis that is not among '
                f'{", ".join(mesh.axis_names)}.'
            )
        if len(set(used)) < len(used):
            raise errors.UserError(f'Sharding rule {axes} of {name} names an axis twice.')
        leading = ['stage' if trees.is_scanned(name) and i == 0 else None
                   for i in range(len(leaf.shape) - len(axes))]  # fmt: skip
        axes = (*leading, *axes)
        fitting = []
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis and size % mesh.shape[axis]:
                notes.append(
                    f'{name}: {size} does not divide by {axis} {mesh.shape[axis]}, '
                    f'so that dimension is not split'
                )
                axis = None
            fitting.append(axis)
        return PartitionSpec(*fitting)

    # Each rule is wrapped: a bare tuple would be a subtree, not a leaf.
    wrapped = [(pattern, _Axes(axes)) for pattern, axes in rules]
    matched = trees.match_rules(wrapped, params, 'The sharding table')
    return trees.map_named(lambda n, leaf, axes: spec(n, leaf, axes.axes), params, matched), notes


@dataclasses.dataclass(frozen=True)
class _Axes:
    axes: tuple


def _largest_dimension(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    divisible = [(size, i) for i, size in enumerate(shape) if size % mesh.shape['fsdp'] == 0]
    if not divisible:
        return PartitionSpec()
    return PartitionSpec(*(None,) * max(divisible)[1], 'fsdp')


def state_shardings(
    abstract_state: Any, rules: Sequence[tuple[str, tuple]], mesh: jax.sharding.Mesh
) -> tuple[Any, list[str]]:
    """The placement of every leaf of a TrainState, and notes as in `param_specs`.

    What is frozen is placed by the same rules. Optimiser moments and averages lie where their
    parameter lies; they are recognised by name and shape. Whatever else there is is small, and
    replicated.
    """
    by_name, notes = {}, []
    for params in (abstract_state.params, abstract_state.frozen):
        specs, told = param_specs(params, rules, mesh)
        specs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
        leaves = trees.flatten_named(params)
        by_name |= {
            name: (leaf.shape, spec)
            for (name, leaf), spec in zip(leaves.items(), specs, strict=True)
        }
        notes += [note for note in told if note not in notes]

    def place(name: str, leaf: Any) -> NamedSharding:
        parts = name.split('/')
        for i in range(len(parts)):
            shape, spec = by_name.get('/'.join(parts[i:]), (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    return trees.map_named(place, abstract_state), notes


def compile_step(
    step: Callable,
    mesh: jax.sharding.Mesh,
    state: Any,
    batch: Mapping[str, Any],
    parallel: Literal['jit', 'pmap'] = 'jit',
    options: Mapping[str, Any] | None = None,
    given: Sequence[Any] = (),
) -> Callable:
    """Compiles (state, batch, *given) -> (state, metrics) for these shapes; the state is donated.

    A later call with other shapes raises instead of compiling again. With 'pmap' neither holds:
    it compiles in its first call and keeps the old state until the new one is there.

    Args:
      step: takes `axis_name`, the axis to average gradients over, None under jit.
      state, batch: shapes with shardings.
      parallel: 'jit' over the mesh, or 'pmap' over its devices with a replicated state.
      options: of XLA, see `xla_options`; pmap takes none.
      given: shapes with shardings of what else the step takes, see `steps.train_step`.
    """
    if parallel == 'pmap':
        return _pmap_step(step, mesh, len(given))
    placed = jax.tree.map(lambda shape: shape.sharding, state)
    with jax.set_mesh(mesh):
        jitted = jax.jit(
            step, out_shardings=(placed, NamedSharding(mesh, PartitionSpec())), donate_argnums=0
        )
        return jitted.lower(state, batch, *given).compile(compiler_options=dict(options or {}))


def _pmap_step(step: Callable, mesh: jax.sharding.Mesh, num_given: int) -> Callable:
    """Data parallelism by `jax.pmap`: each device computes on its part, gradients are averaged."""
    if mesh.size != mesh.shape['data'] or jax.process_count() > 1:
        raise errors.UserError(
            'parallel = "pmap" splits only the batch, over the axis data of one process: set the '
            'other axes of config.mesh to 1, or use "jit".'
        )
    mapped = jax.pmap(
        lambda *arguments: step(*arguments, axis_name='data'),
        axis_name='data',
        in_axes=(None, 0, *(None,) * num_given),
        out_axes=(None, None),
        devices=list(mesh.devices.flat),
    )

    def run(state, batch, *given):
        split = jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)
        return mapped(state, split, *given)

    return run
