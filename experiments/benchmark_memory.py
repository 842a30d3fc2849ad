"""What settings of the C library's memory gain on CPUs: short runs with each of them, in turns.

    python experiments/benchmark_memory.py [--turns=3] [--configs=cifar10_resnet,transformer]

They are variables of the environment that Linux' C library reads when a process starts, so each
run is a process of its own. A turn trains each config under each setting for STEPS steps; what
counts is the median of its rows of metrics but the first, and the median over the turns. Writes
results/memory.json and the table beside it.
"""

import argparse
import collections
import pathlib
import statistics
import tempfile

import measure

from bigmodels import writers

STEPS = 60
# Beside `runs.keep_freed_memory`, which every run does by itself.
SETTINGS = {
    'as it is': {},
    'MALLOC_ARENA_MAX=1': {'MALLOC_ARENA_MAX': '1'},
    'GLIBC_TUNABLES=glibc.malloc.hugetlb=1': {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'},
}


def trained(config: str, environment: dict, cache: pathlib.Path) -> tuple[float, float]:
    """(examples/s or tokens/s, peak memory in MB) of a short run."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder, 'run')
        run = measure.train(
            f'configs/{config}.py', workdir, cache, f'--config.total_steps={STEPS}',
            '--config.log_every=10', '--config.eval_every=0', '--config.checkpoint.every=100000',
            '--config.optimizer.schedule.warmup_steps=10', environment=environment,
        )  # fmt: skip
        rows = writers.read_metrics(workdir / 'metrics.jsonl')
    rates = [value for row in rows for name, value in row.items() if name.endswith('/s')]
    return statistics.median(rates[1:]), run['peak_memory_mb']


def table(results) -> str:
    """Rates as ratios of the first setting's."""
    plain = {r['config']: r['rate'] for r in results if r['setting'] == 'as it is'}
    rows = [('config', 'setting', 'examples or tokens/s', 'ratio', 'peak memory, MB')]
    for r in results:
        ratio = r['rate'] / plain[r['config']]
        cells = (f'{r["rate"]:,.0f}', f'{ratio:.2f}', f'{r["peak_memory_mb"]:,.0f}')
        rows.append((r['config'], r['setting'], *cells))
    return measure.markdown(rows)


def main() -> None:
    """Measures in turns, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--configs', default='cifar10_resnet,transformer')
    options = parser.parse_args()
    measured = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(options.turns):
            for config in options.configs.split(','):
                for setting, environment in SETTINGS.items():
                    run = trained(config, environment, pathlib.Path(cache))
                    measured[config, setting].append(run)
    for (config, setting), runs in measured.items():
        rates, peaks = zip(*runs, strict=True)
        result = {
            'config': config,
            'setting': setting,
            'rate': round(statistics.median(rates), 1),
            'peak_memory_mb': statistics.median(peaks),
            'all_rates': [round(rate, 1) for rate in rates],
        }
        place = lambda r: (r['config'], list(SETTINGS).index(r['setting']))
        measure.keep('memory', result, place, table)


if __name__ == '__main__':
    main()
