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
# Only names for what another instruction made: nothing is read, written or held for them.
ALIASES = (
    *('parameter', 'constant', 'iota', 'partition-id', 'replica-id', 'after-all'),
    *('tuple', 'get-tuple-element', 'bitcast', 'opt-barrier'),
    *('while', 'conditional', 'call', 'async-start', 'async-update', 'async-done'),
    *('copy-done', 'slice-done', 'dynamic-slice-done', 'dynamic-update-slice-done'),
    *('all-gather-done', 'all-reduce-done', 'collective-permute-done', 'send-done', 'recv-done'),
)
_KERNELS = ('tpu_custom_call', '__gpu$xla.gpu.triton', 'mosaic_gpu_v2')
# Matrix products of queries with keys that JAX's splash attention makes in each of its kernels.
_SPLASH_PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
_ALLOCATIONS = ('AllocateBuffer', 'AssumeGatherIndicesInBound', 'Sharding')


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
                turns = self.turns(instruction, computation) or 1
                for body in instruction.called('body'):
                    yield from self.runs(body, times * turns)
            elif instruction.opcode == 'conditional':
                yield from self.runs(self.likely_branch(instruction), times)
            elif instruction.opcode == 'call':
                for called in instruction.called('to_apply', 'calls'):
                    yield from self.runs(called, times)
            elif instruction.opcode == 'async-start':
                for called in instruction.called('calls'):
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
        the counter's first value, counted in ones, as `jax.lax.scan` does.
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

    def silent_kernels(self) -> list[str]:
        """Hand-written kernels that do not tell their cost."""
        return [
            run.instruction.name
            for run in self.runs()
            if run.instruction.opcode == 'custom-call'
            and any(f'"{target}"' in run.instruction.attributes for target in _KERNELS)
            and not self.flops(run)
        ]

    def inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions within a fusion, at any depth; nothing for others."""
        if instruction.opcode != 'fusion':
            return
        for name in instruction.called('calls'):
            computation = self.computations[name]
            for inner in computation.instructions:
                yield inner, computation
                yield from self.inside(inner)

    def flops(self, run: 'Run') -> dict[str, float]:
        """Of one run of an instruction, by the dtype of its operands.

        Those of matrix products, and what a kernel tells of itself.
        """
        found = collections.Counter()
        if told := run.instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)'):
            found['bf16'] += int(told)
        elif flops := _splash_flops(run.instruction, run.computation):
            found['bf16'] += flops
        pairs = [(run.instruction, run.computation), *self.inside(run.instruction)]
        for instruction, computation in pairs:
            if instruction.opcode in ('dot', 'convolution'):
                left, right = (computation.by_name[name] for name in instruction.operands[:2])
                count = _dot_flops if instruction.opcode == 'dot' else _convolution_flops
                found[left.outputs[0].dtype] += count(
                    instruction, left.outputs[0], right.outputs[0]
                )
        return dict(found)

    def bytes_moved(self, run: 'Run') -> float:
        """What one run of an instruction reads from and writes to the device's main memory.

        Of an array of which only slices are read or written, as in a scanned loop, the slices.
        """
        instruction, computation = run.instruction, run.computation
        if instruction.opcode in ALIASES or any(
            f'"{target}"' in instruction.attributes for target in _ALLOCATIONS
        ):
            return 0
        if instruction.opcode == 'fusion':
            [name] = instruction.called('calls')
            return self._fusion_bytes(instruction, self.computations[name])
        operands = [computation.by_name[name] for name in instruction.operands]
        if instruction.opcode in ('dynamic-slice', 'gather', 'slice'):
            return 2 * instruction.bytes
        if instruction.opcode == 'dynamic-update-slice':
            return 2 * operands[1].bytes
        if instruction.opcode == 'copy-start':  # its outputs are the copy, the source, a context
            return sum(array.bytes for array in instruction.outputs[:2] if array.in_memory)
        return instruction.bytes + sum(operand.bytes for operand in operands)

    def _fusion_bytes(self, fusion: Instruction, body: Computation) -> float:
        written = 0
        root = body.root
        outputs = (
            [body.by_name[name] for name in root.operands] if root.opcode == 'tuple' else [root]
        )
        for output, array in zip(outputs, fusion.outputs, strict=True):
            source = _through_bitcasts(output, body)
            if source.opcode == 'dynamic-update-slice':
                written += body.by_name[source.operands[1]].outputs[0].bytes * array.in_memory
            else:
                written += array.bytes * array.in_memory
        read = 0
        for i in range(len(fusion.operands)):
            parameter = body.parameter(i)
            read += _bytes_read(parameter, body)
        return read + written


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction, the computation that it is in, and how often it runs in a step."""

    instruction: Instruction
    computation: Computation
    times: float


def _through_bitcasts(instruction: Instruction, computation: Computation) -> Instruction:
    while instruction.opcode in ('bitcast', 'convert', 'copy') and instruction.operands:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _bytes_read(parameter: Instruction, body: Computation) -> float:
    """Of a fusion's parameter in main memory: all of it, or the slices that are taken of it."""
    [array] = parameter.outputs if len(parameter.outputs) == 1 else [None]
    if array is None or not array.in_memory:
        return parameter.bytes
    total, left = 0, [parameter]
    while left:
        value = left.pop()
        for user in body.users[value.name]:
            if user.opcode == 'bitcast':
                left.append(user)
            elif user.opcode in ('dynamic-slice', 'slice', 'gather'):
                total += user.outputs[0].bytes
            elif user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name:
                continue  # in place
            else:
                return array.bytes
    return min(total, array.bytes)


def _dimensions(instruction: Instruction, key: str) -> list[int]:
    return [int(i) for i in instruction.attribute(rf'{key}=\{{([\d,]*)\}}').split(',') if i]


def _dot_flops(dot: Instruction, left: Array, right: Array) -> float:
    contracted = math.prod(left.shape[i] for i in _dimensions(dot, 'lhs_contracting_dims'))
    return 2 * math.prod(dot.outputs[0].shape) * contracted


def _splash_flops(kernel: Instruction, computation: Computation) -> float:
    """Of one of the kernels of splash attention, which tell none; 0 for other instructions.

    They leave out the blocks that their mask hides: of a square grid of blocks, [1, rows, columns],
    all above the diagonal; a narrower one has only the columns that a window lets be seen.
    """
    products = [n for name, n in _SPLASH_PRODUCTS.items() if kernel.name.startswith(name)]
    if kernel.opcode != 'custom-call' or not products:
        return 0
    shapes = [computation.by_name[name].outputs[0].shape for name in kernel.operands]
    (_, rows, columns), *_ = shapes
    queries, keys = (shape for shape in shapes[2:4])  # [H, L, K], [N, S, K]
    heads, length, head_dim = queries
    seen = (rows + 1) / (2 * rows) if rows == columns else columns * length / rows / keys[1]
    return products[0] * 2 * heads * length * keys[1] * head_dim * seen


def _convolution_flops(convolution: Instruction, left: Array, right: Array) -> float:
    """Multiplications with what is not padding or a gap, twice.

    TPUs have no other matrix product, and write a batched one as a convolution whose window is
    as large as the batch and sees one element at a time.
    """
    inputs, kernels, outputs = re.split('_|->', convolution.attribute(r'dim_labels=([\w>\-]+)'))
    output = convolution.outputs[0].shape
    features_in = right.shape[kernels.index('i')]
    total = 2 * features_in * output[outputs.index('b')] * output[outputs.index('f')]
    window = dict(re.findall(r'(\w+)=(\S+)', convolution.attribute(r'window=\{([^}]*)\}')))
    num_spatial = len(inputs) - 2

    def option(name: str, default: str) -> list[str]:
        return window[name].split('x') if name in window else [default] * num_spatial

    pads = [pair.split('_') for pair in option('pad', '0_0')]
    for i in range(num_spatial):
        total *= _overlaps(
            size=left.shape[inputs.index(str(i))],
            kernel=right.shape[kernels.index(str(i))],
            output=output[outputs.index(str(i))],
            stride=int(option('stride', '1')[i]),
            padding=int(pads[i][0]),
            gap=int(option('lhs_dilate', '1')[i]),
            kernel_gap=int(option('rhs_dilate', '1')[i]),
        )
    return total


def _overlaps(*, size, kernel, output, stride, padding, gap, kernel_gap) -> int:
    """Along one dimension, the pairs of an output and a kernel element that meet an input."""
    return sum(
        0 <= (at := o * stride - padding + k * kernel_gap) <= (size - 1) * gap and at % gap == 0
        for o in range(output)
        for k in range(kernel)
    )


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
