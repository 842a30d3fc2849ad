"""A config on a topology: its train step compiled, read, and timed by rooflines."""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bigmodels import errors, experiment, explain, hardware, sharding, trees, xla_options
from bigmodels.experiment import Experiment
from bigmodels.plan import costs, hlo, memory
from bigmodels.plan.collectives import KINDS, Collective, collectives, summary
from bigmodels.plan.topology import Topology

# A plan leaves to XLA what a run asks of it: its larger tiles take twice as long to compile and
# change no figure that is read here.
UNASKED = dict.fromkeys(name for options in xla_options.TABLE.values() for name in options)
# Collectives that are fused with products hide time, on which "expected" does not count, and the
# two could not be told apart.
IN_TURN = {'xla_tpu_enable_async_collective_fusion': False}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same mesh axes, in one step and on one device.

    Fields:
      count: how many run.
      size: bytes of the arrays that they gather, reduce or exchange.
      sent: bytes that the device sends for them.
      seconds: at the bandwidth of its links.
    """

    kind: str
    axes: str
    count: int
    size: float
    sent: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in a step.

    Fields:
      flops: of matrix products, as compiled: with recomputation, and what a mask hides.
      bytes_moved: between its main memory and its cores, but for collectives.
      compute_seconds, memory_seconds: these over the chip's peak and bandwidth.
      operation_seconds: of each instruction the larger of the two, added up.
      traffic: its collectives.
      xla_seconds: the compiler's own `optimal_seconds` where it gives one. It counts the body of
        a loop once.
    """

    flops: float
    bytes_moved: float
    compute_seconds: float
    memory_seconds: float
    operation_seconds: float
    traffic: Sequence[Traffic]
    xla_seconds: float | None

    @property
    def link_seconds(self) -> float:
        return sum(one.seconds for one in self.traffic)

    @property
    def step_seconds(self) -> float:
        """Instructions and collectives one after the other: nothing hides behind anything else."""
        return self.operation_seconds + self.link_seconds

    @property
    def best_seconds(self) -> float:
        """The roofline of the whole step: all hides behind the slowest of the three."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `make_plan` finds.

    Fields:
      mesh: in words.
      parameters: how many.
      memory: None where the compiler refused the program.
      refused: (bytes needed, bytes there are) where it did and said so; else None.
      model_flops: of all devices, by the model's own count (causal), without recomputation.
      items, unit: in a step, as tokens.
      compile_seconds: tracing included.
      notes: what the figures do not say.
    """

    topology: Topology
    mesh: str
    parameters: int
    memory: memory.Memory | None
    refused: tuple[float, float] | None
    cost: Cost | None
    model_flops: float | None
    items: int
    unit: str
    compile_seconds: float
    notes: Sequence[str]

    @property
    def bytes_needed(self) -> float:
        """On one device; infinite where the compiler refused without saying."""
        if self.memory is not None:
            return self.memory.total
        return self.refused[0] if self.refused else float('inf')

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.total <= self.topology.chip.memory

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs over what all chips could do in this time."""
        if self.model_flops is None:
            return None
        chips = self.topology.chip.peak_flops * len(self.topology.devices)
        return self.model_flops / (chips * seconds)


def make_plan(settings: Experiment, topology: Topology) -> Plan:
    """Compiles the train step for the topology and reads what it does.

    Raises:
      UserError: where the mesh does not fit the topology, or the batch the mesh.
    """
    try:
        mesh = sharding.make_mesh(settings.mesh, topology.devices)
    except NotImplementedError as error:  # JAX lays no axis over a part of a torus' dimension
        raise errors.UserError(
            f'config.mesh {settings.mesh} cannot be laid on {topology.name}: the size of each axis '
            f'must be a product of some of the dimensions of the slice.'
        ) from error
    experiment.check_batch(settings, sharding.num_batch_shards(mesh))
    began = time.perf_counter()
    if topology.kind == 'tpu':
        settings = dataclasses.replace(settings, xla={**UNASKED, **settings.xla, **IN_TURN})
    task, run = explain.abstract_program(settings, mesh)
    compiled, message = _compiled(run)
    items, unit = task.items(run.batch_shapes)
    held = refused = cost = None
    notes = list(run.notes)
    if compiled is None:
        refused = memory.of_refusal(message)
    else:
        parsed = hlo.parse(compiled.as_text())
        held = memory.of_compiled(compiled, parsed, run.state_shapes)
        cost = _cost(compiled, parsed, topology, mesh, held)
        notes += _notes(parsed, topology)
    return Plan(
        topology=topology,
        mesh=sharding.describe(mesh),
        parameters=trees.count(run.state_shapes.params),
        memory=held,
        refused=refused,
        cost=cost,
        model_flops=run.flops,
        items=items,
        unit=unit,
        compile_seconds=time.perf_counter() - began,
        notes=notes,
    )


def _compiled(run: Any) -> tuple[Any, str]:
    """The compiled step, or None and the message of a compiler that had not enough memory."""
    try:
        return run.compile_train_step('jit'), ''
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return None, str(error)


def _cost(
    compiled: Any,
    program: hlo.Program,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    held: memory.Memory,
) -> Cost:
    chip = topology.chip
    flops, moved, computing, one_by_one = 0.0, 0.0, 0.0, 0.0
    for run in program.runs():
        if run.instruction.opcode.removesuffix('-start') in KINDS:
            continue  # their links are slower than the memory
        products, read_and_written = costs.flops(program, run), costs.bytes_moved(program, run)
        seconds = sum(count / chip.peak_of(dtype) for dtype, count in products.items())
        flops += run.times * sum(products.values())
        moved += run.times * read_and_written
        computing += run.times * seconds
        one_by_one += run.times * max(seconds, read_and_written / chip.bandwidth)
    if topology.is_stand_in:  # another compiler fuses otherwise: only what no compiler avoids
        state = held.params + held.optimiser + held.average
        moved = 2 * (state + held.gradients + held.activations)
        one_by_one = max(computing, moved / chip.bandwidth)
    analysis = compiled.cost_analysis() or {}
    return Cost(
        flops=flops,
        bytes_moved=moved,
        compute_seconds=computing,
        memory_seconds=moved / chip.bandwidth,
        operation_seconds=one_by_one,
        traffic=_traffic(collectives(program, dict(mesh.shape)), topology, list(mesh.devices.flat)),
        xla_seconds=None if topology.is_stand_in else analysis.get('optimal_seconds'),
    )


def _traffic(
    found: Sequence[Collective], topology: Topology, devices: Sequence[jax.Device]
) -> list[Traffic]:
    seconds = collections.Counter()
    for one in found:
        seconds[one.kind, one.axes] += one.times * topology.seconds(one, devices)
    return [
        Traffic(kind, axes, count, size, sent, seconds[kind, axes])
        for kind, axes, count, size, sent in summary(found)
    ]


def _notes(program: hlo.Program, topology: Topology) -> list[str]:
    notes = []
    if topology.kind == 'tpu':
        notes.append(
            'compiled with collectives and products apart, unlike a run, in which they hide behind '
            'each other'
        )
    if loops := program.unknown_loops():
        notes.append(f'the turns of {errors.some(loops)} are not known: counted once')
    if kernels := costs.silent_kernels(program):
        notes.append(f'FLOPs and bytes of {errors.some(kernels)} are not known: not counted')
    if topology.is_stand_in:
        notes.append(
            'there is no GPU compiler here: a program for as many CPU devices stands in. '
            'Collectives and FLOPs are its; bytes are of the state and of what the backward pass '
            'keeps, once read and once written; its temporaries are those of another compiler'
        )
    if topology.kind == 'cpu':
        notes.append(
            'peak and bandwidth of the cores were measured just now, and are shared by the '
            'simulated devices'
        )
    return notes


@dataclasses.dataclass(frozen=True)
class Training:
    """A whole run, at the pace of one plan.

    Fields:
      kilowatt_hours: of the chips alone, see `hardware.POWER_SOURCES`.
      dollars: None where no price is known.
    """

    seconds: float
    chip_hours: float
    kilowatt_hours: float
    dollars: float | None


def training(plan: Plan, items: float, watts: float | None, price: float | None) -> Training:
    """What it takes to train on so many items.

    Args:
      watts, price: of one chip, and per hour; None for those of the table.
    """
    chip, count = plan.topology.chip, len(plan.topology.devices)
    seconds = items / plan.items * plan.cost.step_seconds
    hours = count * seconds / 3600
    price = chip.dollars_per_hour if price is None else price
    return Training(
        seconds=seconds,
        chip_hours=hours,
        kilowatt_hours=hardware.kilowatt_hours(
            count * (chip.watts if watts is None else watts), seconds
        ),
        dollars=None if price is None else price * hours,
    )


def as_data(plan: Plan) -> Mapping[str, Any]:
    """The figures of a plan as plain data."""
    cost = plan.cost
    return {
        'topology': plan.topology.name,
        'chips': len(plan.topology.devices),
        'mesh': plan.mesh,
        'parameters': plan.parameters,
        'fits': plan.fits,
        'bytes_per_device': plan.bytes_needed,
        'limit': plan.topology.chip.memory,
        'memory': plan.memory and dataclasses.asdict(plan.memory),
        'items': plan.items,
        'unit': plan.unit,
        'model_flops': plan.model_flops,
        'compile_seconds': round(plan.compile_seconds, 1),
        'notes': list(plan.notes),
        **({} if cost is None else {
            'cost': dataclasses.asdict(cost),
            'step_seconds': cost.step_seconds,
            'best_seconds': cost.best_seconds,
            'mfu': plan.mfu(cost.step_seconds),
            'best_mfu': plan.mfu(cost.best_seconds),
        }),
    }  # fmt: skip
