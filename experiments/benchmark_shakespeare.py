"""Loss on Tiny Shakespeare against wall clock, beside nanoGPT's published CPU recipe.

    python experiments/benchmark_shakespeare.py [--text=../shared/data/tinyshakespeare/input.txt]

Starts `python -m bigmodels.main --config=configs/shakespeare.py` as a user does, with an empty
cache, so that importing, tokenising, compiling, training, saving and the final evaluation all
count; and prints the validation loss in nats per character. Writes
experiments/results/shakespeare.json. Anchor: nanoGPT's CPU recipe (2,000 steps of 12 x 64
characters, README of karpathy/nanoGPT) ended at 1.886 nats after 83 s on two such cores.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
ANCHOR = {'loss': 1.886, 'seconds': 83.0}


def main() -> None:
    """Runs the config once and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--text', default='../shared/data/tinyshakespeare/input.txt')
    text = parser.parse_args().text
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory, 'run')
        environment = os.environ | {'BIGMODELS_CACHE': str(pathlib.Path(directory, 'cache'))}
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, '-m', 'bigmodels.main', f'--config=configs/shakespeare.py:{text}',
             f'--workdir={workdir}'],
            cwd=ROOT, env=environment, check=True,
        )
        seconds = time.perf_counter() - began
        summary = json.loads((workdir / 'summary.json').read_text())
    result = {
        'date': datetime.date.today().isoformat(),
        'command': 'python experiments/benchmark_shakespeare.py',
        'hardware': f'{os.cpu_count()} cores, {platform.machine()}',
        'jax': _version('jax'),
        'steps': summary['step'],
        'validation_nats_per_character': round(summary['final']['valid/loss'], 4),
        'wall_clock_seconds': round(seconds, 1),
        'anchor': ANCHOR,
    }
    path = ROOT / 'experiments' / 'results' / 'shakespeare.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == '__main__':
    main()
