"""What an instruction of a compiled program costs: FLOPs, and bytes of main memory."""

import collections
import math
import re

from bigmodels.plan.hlo import Array, Computation, Instruction, Program, Run

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


def flops(program: Program, run: Run) -> dict[str, float]:
    """Of one run of an instruction, by the dtype of its operands.

    Those of matrix products, and what a kernel tells of itself.
    """
    found = collections.Counter()
    if told := run.instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)'):
        found['bf16'] += int(told)
    elif flops := _splash_flops(run.instruction, run.computation):
        found['bf16'] += flops
    pairs = [(run.instruction, run.computation), *program.inside(run.instruction)]
    for instruction, computation in pairs:
        if instruction.opcode in ('dot', 'convolution'):
            left, right = (computation.by_name[name] for name in instruction.operands[:2])
            count = _dot_flops if instruction.opcode == 'dot' else _convolution_flops
            found[left.outputs[0].dtype] += count(instruction, left.outputs[0], right.outputs[0])
    return dict(found)


def all_flops(program: Program) -> float:
    """Of one run of the program, a loop for all its turns."""
    return sum(run.times * sum(flops(program, run).values()) for run in program.runs())


def silent_kernels(program: Program) -> list[str]:
    """Hand-written kernels that do not tell their cost."""
    return [
        run.instruction.name
        for run in program.runs()
        if run.instruction.opcode == 'custom-call'
        and any(f'"{target}"' in run.instruction.attributes for target in _KERNELS)
        and not flops(program, run)
    ]


def bytes_moved(program: Program, run: Run) -> float:
    """What one run of an instruction reads from and writes to the device's main memory.

    Of an array of which only slices are read or written, as in a scanned loop, the slices.
    """
    instruction, computation = run.instruction, run.computation
    if instruction.opcode in ALIASES or any(
        f'"{target}"' in instruction.attributes for target in _ALLOCATIONS
    ):
        return 0
    if instruction.opcode == 'fusion':
        return _fusion_bytes(program, instruction)
    operands = [computation.by_name[name] for name in instruction.operands]
    if instruction.opcode in ('dynamic-slice', 'gather', 'slice'):
        return 2 * instruction.bytes
    if instruction.opcode == 'dynamic-update-slice':
        return 2 * operands[1].bytes
    if instruction.opcode == 'copy-start':  # its outputs are the copy, the source, a context
        return sum(array.bytes for array in instruction.outputs[:2] if array.in_memory)
    if instruction.opcode.endswith('slice-start'):  # the source, the slice, a context
        source, part = instruction.outputs[:2]
        return part.bytes * (source.in_memory + part.in_memory)
    return instruction.bytes + sum(operand.bytes for operand in operands)


def _fusion_bytes(program: Program, fusion: Instruction) -> float:
    [name] = fusion.called('calls')
    body = program.computations[name]
    root = body.root
    if root.opcode != 'tuple' and len(fusion.outputs) > 1:  # as of a reduction of pairs
        written = sum(array.bytes for array in fusion.outputs if array.in_memory)
    else:
        outputs = [body.by_name[n] for n in root.operands] if root.opcode == 'tuple' else [root]
        written = sum(
            _bytes_written(program, output, body)
            for output, array in zip(outputs, fusion.outputs, strict=True)
            if array.in_memory
        )
    parameters = [body.parameter(i) for i in range(len(fusion.operands))]
    read = sum(
        _bytes_read(program, parameter, body)
        for parameter in parameters
        if any(array.in_memory for array in parameter.outputs)
    )
    return read + written


def _bytes_written(program: Program, output: Instruction, body: Computation) -> float:
    """Of an output of a fusion: all of it, or the slice that is put into it."""
    while output.opcode in ('bitcast', 'convert', 'copy'):
        output = body.by_name[output.operands[0]]
    if output.opcode == 'dynamic-update-slice':
        return body.by_name[output.operands[1]].outputs[0].bytes
    if output.opcode == 'fusion' and len(output.outputs) == 1:
        [name] = output.called('calls')
        inner = program.computations[name]
        return _bytes_written(program, inner.root, inner)
    return sum(array.bytes for array in output.outputs)


def _bytes_read(program: Program, value: Instruction, body: Computation) -> float:
    """Of a value within a fusion: all of it, or the slices that are taken of it."""
    whole, total = sum(array.bytes for array in value.outputs), 0
    for user in body.users[value.name]:
        if user.opcode == 'bitcast':
            total += _bytes_read(program, user, body)
        elif user.opcode in ('dynamic-slice', 'slice', 'gather'):
            total += user.outputs[0].bytes
        elif user.opcode == 'fusion':
            [name] = user.called('calls')
            inner = program.computations[name]
            total += sum(
                _bytes_read(program, inner.parameter(i), inner)
                for i, operand in enumerate(user.operands)
                if operand == value.name
            )
        elif not (user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name):
            return whole  # an update in place reads nothing of what it updates
    return min(total, whole)


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
    *_, rows, columns = shapes[0]
    *heads, length, head_dim = shapes[2]  # [H, L, K], or [B, H, L, K]
    num_keys = shapes[3][-2]
    seen = (rows + 1) / (2 * rows) if rows == columns else columns * length / rows / num_keys
    return products[0] * 2 * math.prod(heads) * length * num_keys * head_dim * seen


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
