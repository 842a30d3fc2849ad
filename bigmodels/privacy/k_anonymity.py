"""The command that tells how many people of a table share what others may know of them.

python -m bigmodels.privacy.k_anonymity --input=patients.csv --columns=age,postcode --k=5

A table is k-anonymous (Sweeney 2002) in columns, its quasi-identifiers, if every combination of
values that occurs in them occurs in at least k rows. It says nothing of the other columns: where
all rows of a combination have the same illness, everybody's is known.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import read_text
from bigmodels.data.sources.table_sources import whole_rows


def class_sizes(columns: Sequence[np.ndarray]) -> np.ndarray:
    """For each of n rows, how many rows have its values in all columns, int64 [n].

    Args:
      columns: each [n], of any type that can be sorted.
    """
    codes = [np.unique(column, return_inverse=True)[1].ravel() for column in columns]
    _, group, sizes = np.unique(np.stack(codes), axis=1, return_inverse=True, return_counts=True)
    return sizes[group.ravel()]


def main() -> None:
    """The command: prints the smallest class and the rows in classes under k, as JSON; status 1
    where there are some.
    """
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.privacy.k_anonymity', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--input', type=pathlib.Path, required=True, help='a CSV file with a header'
    )
    parser.add_argument('--columns', required=True, help='the quasi-identifiers, with commas')
    parser.add_argument('--k', type=int, required=True, help='the least size of a class')
    options = parser.parse_args()
    if options.k < 1:
        raise errors.UserError(f'--k = {options.k} must be at least 1.')
    header, rows = whole_rows(str(options.input), read_text(str(options.input)))
    names = options.columns.split(',')
    for name in names:
        if name not in header:
            raise errors.unknown('column', name, header)
    # As they are written: numbers of a type could be equal where these are not.
    places = [header.index(name) for name in names]
    sizes = class_sizes([np.array([row[place] for row in rows]) for place in places])
    offending = np.flatnonzero(sizes < options.k)
    report = {
        'rows': len(sizes),
        'smallest_class': int(sizes.min()),
        'offending_rows': len(offending),
        'first_offending': [int(row) + 1 for row in offending[:20]],  # the header not counted
    }
    print(json.dumps(report))
    if len(offending):
        raise SystemExit(1)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
