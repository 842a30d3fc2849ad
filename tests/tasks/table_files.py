"""Small tables whose targets follow from their columns, as the files of the configs of tables."""

import csv
import gzip
import pathlib

import numpy as np

from configs import adult, credit_default

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


def write_credit_default(folder: pathlib.Path) -> None:
    """The file of configs/credit_default.py: who is months behind (X6) with little credit fails."""
    rng = np.random.default_rng(2)
    records = []
    for i in range(600):
        values = {f'X{j}': int(rng.integers(0, 100_000)) for j in range(1, 24)}
        values |= {name: int(rng.integers(1, 4)) for name in credit_default.CATEGORICAL}
        values['X6'] = int(rng.integers(-2, 9))
        fails = values['X6'] > 2 and values['X1'] < 70_000
        records.append([str(i + 1), *map(str, values.values()), str(int(fails))])
    header = ('ID', *(f'X{j}' for j in range(1, 24)), 'Y')
    name = 'default_of_credit_card_clients.csv.gz'
    write(folder / 'credit_default' / name, records, header)
