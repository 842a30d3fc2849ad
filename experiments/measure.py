"""Runs the training command as a user does, and measures it from outside."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'experiments' / 'results'


def train(
    config: str, workdir: pathlib.Path, cache: pathlib.Path, *arguments: str, only_start=False
) -> dict:
    """Trains in a process of its own; its caches are in `cache`, empty for a cold start.

    Args:
      only_start: stop the run where its first step would begin.

    Returns:
      wall_clock_seconds, seconds_to_first_step (importing, data and compilation included),
      peak_memory_mb of resident memory, and the run's summary.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, '-m', 'bigmodels.main', f'--config={config}', f'--workdir={workdir}',
         *arguments],
        cwd=ROOT, env=os.environ | {'BIGMODELS_CACHE': str(cache)}, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    peak = _Peak(process.pid)
    first_step = None
    for line in process.stderr:
        print(line, end='')
        if line.startswith('compiled'):  # the start screen's last line
            first_step = time.perf_counter() - began
            if only_start:
                process.kill()
    status = process.wait()
    if only_start:
        return {'seconds_to_first_step': round(first_step, 1)}
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f'the run failed with status {status}')
    return {
        'wall_clock_seconds': round(seconds, 1),
        'seconds_to_first_step': round(first_step, 1),
        'peak_memory_mb': round(peak.stop() / 1e6),
        **json.loads((workdir / 'summary.json').read_text()),
    }


class _Peak:
    """The largest resident memory of a process, read from Linux' own account of it."""

    def __init__(self, pid: int):
        self._path = pathlib.Path('/proc', str(pid), 'status')
        self._bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._path.exists():
            lines = self._path.read_text().splitlines()
            high = [line.split()[1] for line in lines if line.startswith('VmHWM')]
            if not high:
                return  # the process has ended
            self._bytes = max(self._bytes, int(high[0]) * 1024)
            time.sleep(0.2)

    def stop(self) -> int:
        self._thread.join()
        return self._bytes


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    header, *rest = ('| ' + ' | '.join(row) + ' |' for row in rows)
    return '\n'.join([header, '| --- ' * len(rows[0]) + '|', *rest])


def write(
    name: str, result: Mapping, folder: pathlib.Path = RESULTS, libraries=('jax', 'flax')
) -> None:
    """Writes experiments/results/NAME.json with the date, the versions and the machine."""
    result = {
        'date': datetime.date.today().isoformat(),
        'command': f'python {" ".join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])}',
        'machine': f'{os.cpu_count()} CPU cores, {platform.machine()}',
        'versions': {name: importlib.metadata.version(name) for name in libraries},
        **result,
    }
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))
