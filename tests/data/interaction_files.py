"""Files of interactions for tests."""

import pathlib

import numpy as np

COLUMNS = ('user_id', 'movie_id', 'rating', 'timestamp')
NUM_ITEMS = 12


def write(path: pathlib.Path, rows, columns=COLUMNS) -> str:
    """A CSV file with a header; returns its path."""
    lines = [','.join(map(str, row)) for row in (columns, *rows)]
    path.write_text('\n'.join(lines) + '\n')
    return str(path)


def circular(num_users: int = 60, seed: int = 0) -> list[tuple]:
    """Users who go round NUM_ITEMS items from a start of their own: after item i comes i + 1.

    Every item is as frequent as any other, but nearly; times are distinct. Even items are liked.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        first, count = rng.integers(NUM_ITEMS), rng.integers(4, 9)
        for place in range(count):
            item = (first + place) % NUM_ITEMS
            rating = 9 - 4 * (item % 2)
            rows.append((f'u{user}', f'{item:03d}', rating, 1000 * place + user))
    return [rows[i] for i in rng.permutation(len(rows))]
