"""Plain-text tables, for commands that print them."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Rows as lines of equally wide columns, two spaces apart.

    Args:
      rows: the cells of each row; usually the first row is a header.
      sides: for each column '<' or '>', the side on which its cells lie.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [f'{cell:{side}{width}}' for cell, side, width in zip(row, sides, widths, strict=True)]
        for row in rows
    ]
    return '\n'.join('  '.join(line).rstrip() for line in lines)
