"""A small table whose target follows from its columns, as the files of configs/adult.py."""

import csv
import gzip
import pathlib

import numpy as np

from configs import adult

HEADER = (*adult.NUMERIC, *adult.CATEGORICAL, 'income')


def rows(count: int, seed: int) -> list[list[str]]:
    """Records of the header's columns: those over 40 with one of two educations earn more."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        numbers = rng.integers(17, 90, len(adult.NUMERIC)).tolist()
        categories = rng.choice(['a', 'b', '?'], len(adult.CATEGORICAL)).tolist()
        rich = numbers[0] > 40 and categories[1] != 'b'
        made.append([*map(str, numbers), *categories, '>50K' if rich else '<=50K'])
    return made


def write(path: pathlib.Path, records: list[list[str]], header=HEADER) -> None:
    """A CSV file, compressed if it is named so."""
    opener = gzip.open if path.name.endswith('.gz') else open
    path.parent.mkdir(parents=True, exist_ok=True)
    with opener(path, 'wt', newline='') as stream:
        csv.writer(stream).writerows([header, *records])


def write_adult(folder: pathlib.Path) -> None:
    """Both files where configs/adult.py looks for them, below $BIGMODELS_DATA."""
    write(folder / 'adult' / 'adult_train.csv.gz', rows(400, 0))
    write(folder / 'adult' / 'adult_test.csv.gz', rows(100, 1))
