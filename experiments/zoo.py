"""Trains rows of the README's table of models and writes what they reach.

    python experiments/zoo.py [--rows=mnist_mlp,graph] [--keep=FOLDER]

Each row is its config's own command, in a process of its own, as it is: the figure is that of the
held-out set in its summary. A row's result takes the place of its last one in
experiments/results/zoo.json and in the table beside it, which hold the rows measured so far.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import tempfile

import measure


@dataclasses.dataclass(frozen=True)
class Row:
    """A config, the figure that counts, and what it should reach in how many minutes.

    Fields:
      bar: at least this; at most, where `lowest`.
    """

    config: str
    figure: str
    bar: float
    minutes: float
    lowest: bool = False


ROWS = {
    'mnist_mlp': Row('mnist_mlp', 'test/accuracy', 0.983, 1),
    'mnist_lenet': Row('mnist_lenet', 'test/accuracy', 0.991, 3),
    'cifar10_cnn': Row('cifar10_cnn', 'test/accuracy', 0.80, 15),
    'cifar10_resnet': Row('cifar10_resnet', 'test/accuracy', 0.92, 60),
    'cifar10_vit': Row('cifar10_vit', 'test/accuracy', 0.75, 60),
    'sst2_lstm': Row('sst2_lstm', 'test/accuracy', 0.80, 10),
    'translate': Row('translate', 'test/bleu', 35, 90),
    'speech_digits': Row('speech_digits', 'test/accuracy', 0.97, 10),
    'speech_ctc': Row('speech_ctc', 'test/wer', 0.05, 10, lowest=True),
    'segment': Row('segment', 'test/dice', 0.88, 30),
    'forecast': Row('forecast', 'test/mse', 0.39, 30, lowest=True),
}


def reached(name: str, row: Row, workdir: pathlib.Path) -> dict:
    """Trains a row; its figure, its cost, and whether it reaches its bar."""
    with tempfile.TemporaryDirectory() as cache:
        run = measure.train(f'configs/{row.config}.py', workdir, pathlib.Path(cache))
    if row.figure not in run['final']:
        raise SystemExit(f'{name} has no figure {row.figure}; there are: {", ".join(run["final"])}')
    value = run['final'][row.figure]
    return {
        'row': name,
        'date': datetime.date.today().isoformat(),
        'figure': row.figure,
        'value': round(value, 4),
        'bar': row.bar,
        'reached': value <= row.bar if row.lowest else value >= row.bar,
        'minutes': round(run['wall_clock_seconds'] / 60, 1),
        'minutes_allowed': row.minutes,
        'peak_memory_mb': run['peak_memory_mb'],
    }


def keep(result: dict) -> None:
    """Writes a row's result among those that are there."""
    path = measure.RESULTS / 'zoo.json'
    kept = json.loads(path.read_text())['results'] if path.exists() else []
    results = [other for other in kept if other['row'] != result['row']] + [result]
    results.sort(key=lambda r: list(ROWS).index(r['row']))
    measure.write('zoo', {'results': results}, quiet=True)
    header = (
        'config',
        'figure',
        'value',
        'bar',
        'reached',
        'minutes',
        'allowed',
        'peak MB',
        'date',
    )
    lines = [
        (r['row'], r['figure'], f'{r["value"]:.4g}', f'{r["bar"]:g}',
         'yes' if r['reached'] else 'no', f'{r["minutes"]:.1f}', f'{r["minutes_allowed"]:g}',
         f'{r["peak_memory_mb"]:,}', r['date'])
        for r in results
    ]  # fmt: skip
    (measure.RESULTS / 'zoo.md').write_text(measure.markdown([header, *lines]) + '\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', default=','.join(ROWS))
    parser.add_argument('--keep', type=pathlib.Path, help='a folder in which the runs stay')
    options = parser.parse_args()
    names = options.rows.split(',')
    if unknown := set(names) - set(ROWS):
        parser.error(f'unknown {", ".join(sorted(unknown))}; there are: {", ".join(ROWS)}')
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            folder = (options.keep or pathlib.Path(directory)).resolve() / name
            result = reached(name, ROWS[name], folder)
        keep(result)
        print(json.dumps(result), flush=True)
