"""From the command to the first step: with empty and with filled caches, and where it goes.

    python experiments/benchmark_startup.py [--pairs=5] [--against=REF]

Each turn starts configs/transformer.py twice, with an empty cache of programs and tokens and with
what the first start left in it, up to where its first step would begin; and asks for --help. With
--against a turn does it for the tree of a commit too, first. Python's bytecode is there, as after
an installation: one start of each tree before the turns writes it. Writes results/startup.json.
"""

import argparse
import contextlib
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

import measure

CONFIG = 'configs/transformer.py'


def seconds_of_help(tree: pathlib.Path, environment: Mapping[str, str]) -> float:
    """How long `--help` takes."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, '-m', 'bigmodels.main', '--help'],
        cwd=tree, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return time.perf_counter() - began


def turn(tree: pathlib.Path, environment: Mapping[str, str]) -> dict[str, dict | float]:
    """A cold start, a warm one, and --help."""
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (
            measure.train(
                CONFIG, pathlib.Path(folder, name), pathlib.Path(folder, 'cache'),
                only_start=True, tree=tree, environment=environment,
            )
            for name in ('cold', 'warm')
        )  # fmt: skip
    return {'cold': cold, 'warm': warm, 'help': seconds_of_help(tree, environment)}


def parts(starts: list[dict]) -> dict[str, float]:
    """The medians of the parts that a start names; none for a tree that does not name them."""
    said = [start['said'].partition(':')[2] for start in starts]
    named = [dict(re.findall(r'(\w+) ([\d.]+)(?:,|$)', text)) for text in said]
    return {name: statistics.median(float(times[name]) for times in named) for name in named[0]}


def summary(turns: list[dict]) -> dict:
    """Medians over the turns of a tree, and all values."""
    result = {}
    for kind in ('cold', 'warm'):
        starts = [turn[kind] for turn in turns]
        values = [start['seconds_to_first_step'] for start in starts]
        result[f'{kind}_seconds'] = {
            'median': statistics.median(values), 'all': values, 'parts': parts(starts)
        }  # fmt: skip
    result['help_seconds'] = round(statistics.median(turn['help'] for turn in turns), 3)
    return result


def main() -> None:
    """Measures in turns, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--against', metavar='REF', help='a commit')
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        trees = {'here': measure.ROOT}
        if options.against:
            before = stack.enter_context(measure.checkout(options.against))
            trees = {options.against: before} | trees
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {'PYTHONPYCACHEPREFIX': folder, 'PYTHONDONTWRITEBYTECODE': ''}
        turns = {label: [] for label in trees}
        for i in range(options.pairs + 1):
            for label, tree in trees.items():
                measured = turn(tree, environment)
                if i:
                    turns[label].append(measured)
    measure.write('startup', {label: summary(measured) for label, measured in turns.items()})


if __name__ == '__main__':
    main()
