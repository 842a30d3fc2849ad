"""What a compiled program is made of."""

import collections
import re

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_PATTERN = re.compile(rf'= (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\(')


def collectives(compiled) -> dict[str, int]:
    """The number of collectives of each kind that move arrays; scalars and vectors do not count.

    A loop's body counts once.
    """
    found = collections.Counter()
    for line in compiled.as_text().splitlines():
        match = _PATTERN.search(line)
        if match and re.search(r'\[\d+,', match[1]):
            found[match[2]] += 1
    return dict(found)


def memory(compiled) -> tuple[int, int]:
    """Bytes on a device: of the arguments, and beside them while the program runs."""
    analysis = compiled.memory_analysis()
    return analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
