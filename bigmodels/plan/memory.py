"""What a device's memory holds at the worst moment of a compiled step."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from bigmodels.explain import device_bytes
from bigmodels.plan import hlo
from bigmodels.state import TrainState

# 'Used 40.21G of 31.25G hbm', as TPUs refuse a program.
_REFUSED = re.compile(r'[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) (?:hbm|HBM)')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Fields:
      params, optimiser, average, other: of the state, exactly as sharded; what is frozen counts
        among the params, and `other` is what its
        layout adds to the arrays, the model's state and the batch.
      gradients, activations: of what lies in memory at the worst moment, what has the dtype and
        shape of a parameter and comes from the backward pass, and what the forward pass keeps for
        it; by their order and their names in the compiled program.
      temporaries: the rest of what the compiler sets aside.
      program: the code itself.
    """

    params: int
    optimiser: int
    average: int
    other: int
    gradients: int
    activations: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def of_compiled(compiled: Any, program: hlo.Program, state: TrainState) -> Memory:
    """The memory of a compiled train step, from the compiler's own account of it.

    Args:
      compiled: has `memory_analysis()`.
      program: the same, parsed.
      state: its shapes with shardings.
    """
    sizes = compiled.memory_analysis()
    params, optimiser, average = (
        device_bytes(tree)
        for tree in ((state.params, state.frozen), state.opt_state, state.ema_params)
    )
    # What is written to the memory of a donated argument needs none of its own.
    temporaries = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    held = held_at_peak(program, state.params)
    gradients = min(held['gradients'], temporaries)
    activations = min(held['activations'], temporaries - gradients)
    return Memory(
        params=params,
        optimiser=optimiser,
        average=average,
        other=max(0, sizes.argument_size_in_bytes - params - optimiser - average),
        gradients=gradients,
        activations=activations,
        temporaries=temporaries - gradients - activations,
        program=sizes.generated_code_size_in_bytes,
    )


def of_refusal(message: str) -> tuple[float, float] | None:
    """(bytes that were needed, bytes that there are) from a compiler's message, if it says so."""
    match = _REFUSED.search(message)
    if match is None:
        return None
    used, used_unit, limit, limit_unit = match.groups()
    return float(used) * _UNITS[used_unit], float(limit) * _UNITS[limit_unit]


def held_at_peak(program: hlo.Program, params: Any) -> collections.Counter:
    """Bytes of 'activations', 'gradients' and 'temporaries' when most is held.

    Arguments are not counted. Memory that the compiler shares between arrays is counted for each
    of them, so that the sum is more than it sets aside.
    """
    of_params = {
        (_short(leaf.dtype), leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(params)
    }
    return _Liveness(program, of_params).peak(program.entry)


def _short(dtype: Any) -> str:
    """A dtype as the compiler names it: f32, bf16."""
    name = str(dtype)
    return name.replace('float', 'f').replace('uint', 'u').replace('int', 's')


class _Liveness:
    """Which arrays wait for a later use, in programs whose instructions are in order."""

    def __init__(self, program: hlo.Program, of_params: set[tuple]):
        self._program = program
        self._of_params = of_params

    def peak(self, name: str) -> collections.Counter:
        """What is held at the worst moment of a computation, beside what it is given."""
        computation = self._program.computations[name]
        holds = self._buffers(computation)
        last_use = {}
        for time, instruction in enumerate(computation.instructions):
            for operand in instruction.operands:
                for buffer in holds[operand]:
                    last_use[buffer] = time
        for buffer in holds[computation.root.name]:
            last_use[buffer] = -1  # the caller holds it
        ending = collections.defaultdict(list)
        for buffer, time in last_use.items():
            ending[time].append(buffer)
        now, worst = collections.Counter(), collections.Counter()
        live = set()
        for time, instruction in enumerate(computation.instructions):
            if instruction.opcode == 'while':  # its results take the place of what it is given
                self._release(ending.pop(time, ()), live, now)
            for buffer in holds[instruction.name]:
                if buffer not in live and last_use.get(buffer, -1) >= 0 and buffer.size:
                    live.add(buffer)
                    now[buffer.kind] += buffer.size
            inner = self._inner(instruction)
            if sum((moment := now + inner).values()) > sum(worst.values()):
                worst = moment
            self._release(ending.pop(time, ()), live, now)
        return worst

    @staticmethod
    def _release(buffers: Sequence, live: set, now: collections.Counter) -> None:
        for buffer in buffers:
            if buffer in live:
                live.remove(buffer)
                now[buffer.kind] -= buffer.size

    def _inner(self, instruction: hlo.Instruction) -> collections.Counter:
        called = []
        if instruction.opcode == 'while':
            called = instruction.called('body')
        elif instruction.opcode == 'call':
            called = instruction.called('to_apply', 'calls')
        elif instruction.opcode == 'conditional':
            called = [self._program.likely_branch(instruction)]
        return sum((self.peak(name) for name in called), collections.Counter())

    def _buffers(self, computation: hlo.Computation) -> dict[str, tuple['_Buffer', ...]]:
        """For each instruction the buffer of each element of its output.

        Those that only pass on what another made share its buffers; parameters have empty ones.
        """
        made = {}
        for instruction in computation.instructions:
            name = instruction.name
            given = [made[operand] for operand in instruction.operands]
            if instruction.opcode == 'tuple':
                made[name] = tuple(buffers[0] if buffers else _NOTHING for buffers in given)
            elif instruction.opcode == 'get-tuple-element':
                index = int(instruction.attribute(r'index=(\d+)'))
                made[name] = given[0][index : index + 1]
            elif instruction.opcode in ('bitcast', 'opt-barrier', 'copy-done'):
                made[name] = given[0]
            elif instruction.opcode == 'while':
                made[name] = self._after_loop(instruction, given[0])
            elif instruction.opcode in ('parameter', 'constant'):
                made[name] = (_NOTHING,) * len(instruction.outputs)
            elif instruction.opcode == 'dynamic-update-slice':
                made[name] = given[0]
            else:
                made[name] = tuple(
                    _Buffer(name, i, array.bytes * array.in_memory, self._kind(instruction, array))
                    for i, array in enumerate(instruction.outputs)
                )
        return made

    def _after_loop(self, loop: hlo.Instruction, given: tuple['_Buffer', ...]) -> tuple:
        """What a loop passes on unchanged keeps its buffer; the rest is now of the loop's kind."""
        [body] = loop.called('body')
        body = self._program.computations[body]
        root = body.root
        results = []
        for i, (buffer, array) in enumerate(zip(given, loop.outputs, strict=True)):
            element = body.by_name[root.operands[i]] if root.opcode == 'tuple' else root
            unchanged = element.opcode == 'get-tuple-element' and (
                body.by_name[element.operands[0]].opcode == 'parameter'
                and int(element.attribute(r'index=(\d+)')) == i
            )
            size = array.bytes * array.in_memory
            if buffer is _NOTHING and not unchanged:
                size = 0  # the caller's own memory
            kept = _Buffer(loop.name, i, size, self._kind(loop, array))
            results.append(buffer if unchanged else kept)
        return tuple(results)

    def _kind(self, instruction: hlo.Instruction, array: hlo.Array) -> str:
        name = instruction.op_name
        if 'transpose(' in name:
            of_param = (array.dtype, array.shape) in self._of_params
            return 'gradients' if of_param else 'temporaries'
        return 'activations' if 'jvp(' in name else 'temporaries'


@dataclasses.dataclass(frozen=True)
class _Buffer:
    maker: str
    index: int
    size: int
    kind: str


_NOTHING = _Buffer('', 0, 0, '')
