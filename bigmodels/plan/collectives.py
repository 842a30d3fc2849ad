"""Which collectives a compiled program runs, over which axes of its mesh, and what they send."""

import collections
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from bigmodels.plan import hlo

KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Fields:
      kind: of KINDS.
      groups: int [groups, devices in each], positions in the mesh's flat order of devices; of a
        permutation its pairs (source, target).
      axes: the mesh axes along which the devices of a group differ, as 'fsdp' or 'data+fsdp'.
      size: bytes on one device of the whole array: of what is gathered, reduced or exchanged.
      sent: bytes that each device sends by the best algorithm on a ring: size * (n - 1) / n of n
        devices, twice that for an all-reduce, all of it for a permutation.
      times: how often a step runs it.
      op_name: where in the traced program it comes from.
    """

    kind: str
    groups: np.ndarray
    axes: str
    size: int
    sent: float
    times: float
    op_name: str


def collectives(program: hlo.Program, mesh_shape: dict[str, int]) -> list[Collective]:
    """All collectives of a step; those between no devices are left out.

    One that is split over several fusions, to run beside other work, counts once.
    """
    found = {}
    for run in program.runs():
        inner = [run.instruction, *(each for each, _ in program.inside(run.instruction))]
        for instruction in inner:
            kind = instruction.opcode.removesuffix('-start')
            if kind not in KINDS:
                continue
            one = _collective(kind, instruction, mesh_shape, run.times)
            channel = instruction.attribute(r'channel_id=(\d+)')
            # The pieces of one are in different fusions of the same computation.
            key = (id(run.computation), channel) if channel else id(instruction)
            if one is not None and key not in found:
                found[key] = one
    return list(found.values())


def summary(found: Sequence[Collective]) -> list[tuple[str, str, int, float, float]]:
    """(kind, axes, how many run in a step, bytes of their arrays, bytes sent), largest first."""
    rows = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for one in found:
        row = rows[one.kind, one.axes]
        row[0] += one.times
        row[1] += one.times * one.size
        row[2] += one.times * one.sent
    ordered = sorted(rows.items(), key=lambda item: -item[1][2])
    return [(*key, int(count), size, sent) for key, (count, size, sent) in ordered]


def _collective(kind, instruction, mesh_shape, times) -> Collective | None:
    num_devices = int(np.prod(list(mesh_shape.values())))
    groups = replica_groups(instruction.attributes, num_devices)
    n = groups.shape[1]
    if n == 1:
        return None
    # An asynchronous start also lists its operands; the result comes last.
    arrays = instruction.outputs
    if instruction.opcode.endswith('-start') and kind in ('all-gather', 'collective-permute'):
        arrays = arrays[len(arrays) // 2 :] if kind == 'all-gather' else arrays[1:2]
    size = sum(array.bytes for array in arrays)
    if kind == 'reduce-scatter':
        size *= n
    share = (n - 1) / n
    factors = {'all-reduce': 2 * share, 'collective-permute': 1, 'collective-broadcast': 1}
    return Collective(
        kind=kind,
        groups=groups,
        axes=axes_of(groups, mesh_shape),
        size=size,
        sent=size * factors.get(kind, share),
        times=times,
        op_name=instruction.op_name,
    )


def axes_of(groups: np.ndarray, mesh_shape: dict[str, int]) -> str:
    """The mesh axes along which the devices of the groups differ, joined by '+'."""
    places = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())), axis=-1)
    differs = (places != places[:, :1]).any((0, 1))
    return '+'.join(axis for axis, used in zip(mesh_shape, differs, strict=True) if used) or '-'


def replica_groups(attributes: str, num_devices: int) -> np.ndarray:
    """The groups of devices in a collective's attributes, int [groups, devices in each].

    XLA writes them as lists, as a reshaped and transposed range, or as axes of a mesh of its own;
    no groups are one of all devices.
    """
    if match := re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', attributes):
        return np.array(re.findall(r'(\d+),(\d+)', match[1]), int).reshape(-1, 2)
    if match := re.search(r'replica_groups=(mesh\[.*?\{.*?\})', attributes):
        return _groups_of_mesh(match[1])
    numbers = r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
    if match := re.search(numbers, attributes):
        return _iota(match[2], match[3]).reshape(_numbers(match[1]))
    if match := re.search(r'replica_groups=\{((?:\{[\d,]*\},?)+)\}', attributes):
        return np.array([_numbers(group) for group in re.findall(r'\{([\d,]*)\}', match[1])], int)
    return np.arange(num_devices)[None]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',') if number]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """The numbers from 0 on, in an array of these sizes whose axes are then reordered."""
    ids = np.arange(np.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return ids.transpose(_numbers(order)) if order else ids


def _groups_of_mesh(text: str) -> np.ndarray:
    """Of "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}": the devices that differ along a.

    An axis may be written in parts: 'a':(2)2 is the part of size 2 within blocks of 2.
    """
    layout, _, used = text.rpartition('{')
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", layout)}
    ids = np.arange(np.prod(list(sizes.values())))
    if match := re.search(r'device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)', layout):
        ids = _iota(match[1], match[2])
    used = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", used)
    ]
    shape, inside, outside = [], {}, []
    for name, size in sizes.items():
        part = next((x for x in used if x[0] == name), None)
        if part is None:
            outside.append(len(shape))
            shape.append(size)
            continue
        _, before, width = part
        outside += [len(shape), len(shape) + 2]
        inside[name] = len(shape) + 1
        shape += [before, width, size // (before * width)]
    order = [*outside, *(inside[name] for name, _, _ in used)]
    group = int(np.prod([width for _, _, width in used]))
    return ids.reshape(shape).transpose(order).reshape(-1, group)
