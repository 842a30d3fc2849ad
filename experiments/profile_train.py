"""Where the time of a step goes: rows of benchmark_train.py, by part of the model and operation.

    python experiments/profile_train.py --rows=vit_ti16,resnet18_cifar --dtypes=bfloat16

Takes JAX's profile of a few steps of our side, and sums the operations of XLA by where in the model
they come from, by the metadata of the compiled program. Durations are of the threads that begin an
operation; what its helpers do meanwhile is not added. Writes results/profile.json and profile.md.
"""

import argparse
import collections
import pathlib
import re
import tempfile
from collections.abc import Iterator

import benchmark_train
import jax
import measure
from twins import workers

STEPS = 3
SHOWN = 14  # lines of a row's table
# An instruction of the compiled program with the name that tracing gave it.
INSTRUCTION = re.compile(r'%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"')


def origins(program: str) -> dict[str, str]:
    """Instruction -> where it comes from, of a compiled program's text."""
    return dict(found.groups() for found in map(INSTRUCTION.search, program.splitlines()) if found)


def part_of(origin: str) -> str:
    """'jit(f)/transpose(jvp(ViT))/layers_3/mlp/up/dot' -> 'backward: ViT/layers/mlp/up'."""
    backward = 'transpose(' in origin or 'bwd' in origin
    names = re.sub(r'\w+\(|\)', '', origin).split('/')[1:-1]  # not the function, nor the primitive
    names = [re.sub(r'_\d+$', '', name) for name in names if name and name != 'while']
    place = '/'.join(dict.fromkeys(names)) or 'step'
    return f'{"backward" if backward else "forward"}: {place}'


def kind_of(instruction: str) -> str:
    """The operation of an instruction: its name without number."""
    return re.sub(r'(\.\w*\d\w*)+$', '', instruction)


def durations(folder: pathlib.Path) -> Iterator[tuple[str, float]]:
    """The instructions in the profile of a folder, each with its milliseconds."""
    [path] = folder.rglob('*.xplane.pb')
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if 'hlo_op' in stats:
                    yield stats['hlo_op'], event.duration_ns / 1e6


def profile(name: str, dtype: str) -> dict:
    """A row's milliseconds of a step by (part, operation), the most first."""
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        step, compiled, _ = workers.compile_ours(benchmark_train.ROWS[name], dtype, folder)
        workers.timed(step, 1)  # warm
        with jax.profiler.trace(str(folder / 'trace')):
            for _ in range(STEPS):
                float(step())
        where, sums = origins(compiled.as_text()), collections.Counter()
        for instruction, milliseconds in durations(folder / 'trace'):
            part = part_of(where.get(instruction, ''))
            sums[part, kind_of(instruction)] += milliseconds / STEPS
    total = sum(sums.values())
    return {
        'row': name,
        'dtype': dtype,
        'milliseconds': round(total, 1),
        'parts': [
            {'part': part, 'operation': kind, 'milliseconds': round(spent, 2),
             'percent': round(100 * spent / total, 1)}
            for (part, kind), spent in sums.most_common(SHOWN)
        ],
    }  # fmt: skip


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    header = ('row', 'dtype', 'part', 'operation', 'ms of a step', '%')
    lines = [
        (result['row'], result['dtype'], part['part'], part['operation'],
         f'{part["milliseconds"]:,}', str(part['percent']))
        for result in results
        for part in result['parts']
    ]  # fmt: skip
    return measure.markdown([header, *lines])


def main() -> None:
    """Profiles the rows, and keeps the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--rows', default=','.join(benchmark_train.ON_CPU))
    parser.add_argument('--dtypes', default=','.join(benchmark_train.DTYPES))
    options = parser.parse_args()
    for name in options.rows.split(','):
        for dtype in options.dtypes.split(','):
            result = profile(name, dtype)
            print(table([result]), flush=True)
            measure.keep('profile', result, benchmark_train.place, table)


if __name__ == '__main__':
    main()
