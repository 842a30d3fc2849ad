"""What a compiled program says of itself: instructions, how often each runs, FLOPs and bytes.

XLA's own cost analysis counts the body of a loop once, and a scanned model is a loop over its
layers; so the text of the compiled program is read, and loops are counted. The text is that of one
device, in the order in which it runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_ITEM_BITS = {'pred': 8, 'token': 0, 'opaque': 0}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """The dtype, the shape on one device, and whether it lies in the device's main memory."""

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool = True

    @functools.cached_property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        bits = re.search(r'\d+', self.dtype)
        width = _ITEM_BITS[self.dtype] if self.dtype in _ITEM_BITS else int(bits[0]) if bits else 8
        return math.ceil(math.prod(self.shape) * width / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: `%name = outputs opcode(operands), attributes`."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str  # the text between the parentheses, for constants and parameters
    attributes: str
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """The computations that these attributes name."""
        found = []
        for key in keys:
            if match := re.search(rf'\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)', self.attributes):
                found += _NAME.findall(match[1])
        return found

    def attribute(self, pattern: str) -> str:
        """What the first group of a pattern finds in the attributes; '' for nothing."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ''

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def bytes(self) -> int:
        """Of its outputs, those in the device's main memory."""
        return sum(array.bytes for array in self.outputs if array.in_memory)


class Computation:
    """Instructions in the order in which they run, by name."""

    def __init__(self, instructions: Sequence[Instruction]):
        self.instructions = instructions
        self.by_name = {instruction.name: instruction for instruction in instructions}
        self.users = collections.defaultdict(list)
        for instruction in instructions:
            for operand in instruction.operands:
                self.users[operand].append(instruction)

    @property
    def root(self) -> Instruction:
        return next(x for x in reversed(self.instructions) if x.is_root)

    def parameter(self, index: int) -> Instruction:
        return next(
            x for x in self.instructions if x.opcode == 'parameter' and x.argument == str(index)
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a compiled program, by name; `entry` is the first to run."""

    computations: Mapping[str, Computation]
    entry: str

    def runs(self, name: str | None = None, times: float = 1) -> Iterator['Run']:
        """Each instruction that runs and how often, without what only fusions contain.

        Of the branches of a conditional, the longest is taken. A loop whose number of turns is
        not found counts once, see `unknown_loops`.
        """
        computation = self.computations[name or self.entry]
        for instruction in computation.instructions:
            yield Run(instruction, computation, times)
            if instruction.opcode == 'while':
                turns = self.turns(instruction, computation)
                [body] = instruction.called('body')
                yield from self.runs(body, times * (1 if turns is None else turns))
            elif instruction.opcode == 'conditional':
                yield from self.runs(self.likely_branch(instruction), times)
            elif instruction.opcode in ('call', 'async-start'):
                for called in instruction.called('to_apply', 'calls'):
                    yield from self.runs(called, times)

    def likely_branch(self, conditional: Instruction) -> str:
        """Of a conditional's computations, that with most instructions."""
        branches = conditional.called(
            'branch_computations', 'true_computation', 'false_computation'
        )
        return max(branches, key=lambda name: len(list(self.runs(name))))

    def unknown_loops(self) -> list[str]:
        """The loops whose number of turns is not known."""
        return [
            run.instruction.name
            for run in self.runs()
            if run.instruction.opcode == 'while'
            and self.turns(run.instruction, run.computation) is None
        ]

    def turns(self, loop: Instruction, around: Computation) -> int | None:
        """How often a loop's body runs, None where the text does not say.

        Some compilers write it down; else it follows from a condition `counter < constant` and
        the counter's first value, counted in ones. Where that is not in sight it is 0, as
        `jax.lax.scan` begins.
        """
        if known := loop.attribute(r'known_trip_count[^}]*"n":"(\d+)"'):
            return int(known)
        [condition] = loop.called('condition')
        condition = self.computations[condition]
        compare = condition.root
        if compare.opcode == 'fusion':
            return None
        if compare.opcode != 'compare' or 'direction=LT' not in compare.attributes:
            return None
        counter, limit = (condition.by_name[operand] for operand in compare.operands)
        if counter.opcode != 'get-tuple-element':
            return None
        first = self._element(loop, around, counter)
        if limit.opcode == 'get-tuple-element':
            limit = self._element(loop, around, limit)
        if limit is None or limit.opcode != 'constant':
            return None
        begins = 0
        if first is not None and first.opcode == 'constant':
            begins = int(first.argument)
        return int(limit.argument) - begins

    def _element(self, loop: Instruction, around: Computation, element: Instruction):
        """What a loop is given as the element of its tuple; None where that is not in sight."""
        given = around.by_name[loop.operands[0]]
        if given.opcode != 'tuple':
            return None
        value = around.by_name[given.operands[int(element.attribute(r'index=(\d+)'))]]
        while value.opcode in ('copy', 'bitcast') and value.operands:
            value = around.by_name[value.operands[0]]
        return value

    def inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions within a fusion, at any depth; nothing for others."""
        if instruction.opcode != 'fusion':
            return
        for name in instruction.called('calls'):
            computation = self.computations[name]
            for inner in computation.instructions:
                yield inner, computation
                yield from self.inside(inner)


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction, the computation that it is in, and how often it runs in a step."""

    instruction: Instruction
    computation: Computation
    times: float


def parse(text: str) -> Program:
    """A program from `compiled.as_text()`."""
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        if line.startswith(('%', 'ENTRY')) and line.endswith('{'):
            name, lines = _NAME.search(line)[1], []
            entry = name if line.startswith('ENTRY') else entry
        elif line == '}' or line.startswith('}, execution_thread'):
            computations[name] = Computation([_instruction(each) for each in lines])
            name = None
        elif name is not None and line.startswith(('  %', '  ROOT %')):
            lines.append(line)
        elif name is not None:  # the metadata of kernels has several lines
            lines[-1] += line
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(' = ')
    is_root = name.lstrip().startswith('ROOT ')
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    match = _OPCODE.match(rest, end)
    closing = _closing(rest, match.end() - 1)
    argument = rest[match.end() : closing]
    return Instruction(
        name=_NAME.search(name)[1],
        opcode=match[1],
        outputs=arrays(rest[:end]),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=rest[closing + 1 :],
        is_root=is_root,
    )


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in the text of a shape, 'f32[2,3]{1,0}' or a tuple of such."""
    return tuple(
        Array(
            dtype,
            tuple(int(size) for size in sizes.split(',') if size),
            in_memory=re.search(r'S\([1-9]\d*\)', layout) is None,
        )
        for dtype, sizes, layout in _ARRAY.findall(shape)
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at a place is closed."""
    depth = 0
    for i in range(opening, len(text)):
        if text[i] == '(':
            depth += 1
        elif text[i] == ')':
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f'no closing parenthesis in {text[opening : opening + 80]!r}')
