"""What a compiled program is made of."""

import collections
import re

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_PATTERN = re.compile(rf'= (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\(')


def collective_shapes(compiled) -> list[tuple[str, str]]:
    """(kind, shape as '8,16,2') of the first array that each collective gives.

    Those that only move scalars and vectors are left out. A loop's body counts once.
    """
    found = []
    for line in compiled.as_text().splitlines():
        match = _PATTERN.search(line)
        if match and (shape := re.search(r'\[(\d+(?:,\d+)+)\]', match[1])):
            found.append((match[2], shape[1]))
    return found


def collectives(compiled) -> dict[str, int]:
    """The number of collectives of each kind, as in `collective_shapes`."""
    return dict(collections.Counter(kind for kind, _ in collective_shapes(compiled)))


def memory(compiled) -> tuple[int, int]:
    """Bytes on a device: of the arguments, and beside them while the program runs."""
    analysis = compiled.memory_analysis()
    return analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
