"""Runs the training command as a user does, and measures it from outside."""

import collections
import contextlib
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from bigmodels import hardware

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'experiments' / 'results'
MEMORY_SETTINGS = ('GLIBC_TUNABLES', 'MALLOC_ARENA_MAX')  # see benchmark_memory.py


def data_path(name: str = '') -> pathlib.Path:
    """Where a data set's files are, as `configs/common.py` has it, from any working directory."""
    folder = os.environ.get('BIGMODELS_DATA') or ROOT.parent / 'shared' / 'data'
    return pathlib.Path(folder, name).resolve()


def train(
    config: str,
    workdir: pathlib.Path,
    cache: pathlib.Path,
    *arguments: str,
    only_start=False,
    tree: pathlib.Path = ROOT,
    environment: Mapping[str, str] = {},
) -> dict:
    """Trains in a process of its own; its caches are in `cache`, empty for a cold start.

    Args:
      only_start: stop the run where its first step would begin.
      tree: the checkout whose code runs.
      environment: variables in addition.

    Returns:
      wall_clock_seconds, seconds_to_first_step (importing, data and compilation included),
      peak_memory_mb of resident memory, and the run's summary; with `only_start`
      seconds_to_first_step and said, the line that tells of it.
    """
    commit()  # before a long run rather than after it
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, '-m', 'bigmodels.main', f'--config={config}', f'--workdir={workdir}',
         *arguments],
        cwd=tree, env=os.environ | {'BIGMODELS_CACHE': str(cache)} | environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = _Peak(process.pid)
    first_step = None
    for line in process.stderr:
        print(line, end='')
        if line.startswith('compiled'):  # the start screen's last line
            first_step, said = time.perf_counter() - began, line.strip()
            if only_start:
                process.kill()
    status = process.wait()
    if only_start:
        return {'seconds_to_first_step': round(first_step, 2), 'said': said}
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
        self._pid = pid
        self._bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while bytes_now := peak_memory(self._pid):
            self._bytes = max(self._bytes, bytes_now)
            time.sleep(0.2)

    def stop(self) -> int:
        self._thread.join()
        return self._bytes


def peak_memory(pid: int | str) -> int:
    """The most bytes of memory that a process, or 'self', has held; 0 once it has ended."""
    path = pathlib.Path('/proc', str(pid), 'status')
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))


def matmul_flops(dtype) -> float:
    """The FLOP/s of a large matrix product here, accumulated in float32: best of ten."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == 'cpu' else 8192
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(a, a).block_until_ready()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


@contextlib.contextmanager
def checkout(ref: str) -> Iterator[pathlib.Path]:
    """The tree of a commit, in a temporary folder."""
    git = ['git', '-C', str(ROOT), 'worktree']
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, 'tree')
        subprocess.run([*git, 'add', '--quiet', '--detach', str(path), ref], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, 'remove', '--force', str(path)], check=True)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    header, *rest = ('| ' + ' | '.join(row) + ' |' for row in rows)
    return '\n'.join([header, '| --- ' * len(rows[0]) + '|', *rest])


@functools.cache
def machine() -> str:
    """Its processors in words, NVIDIA's GPUs first; asks their driver and so takes none of them."""
    gpus = []
    if shutil.which('nvidia-smi'):
        command = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        counts = collections.Counter(names.splitlines())
        gpus = [f'{count} {name}' for name, count in counts.items()]
    return ', '.join([*gpus, f'{hardware.num_cores()} CPU cores', platform.machine()])


@functools.cache
def commit() -> str:
    """That of this checkout when first asked, '+' where the code differs; '' without git."""
    if not (ROOT / '.git').exists():
        return ''
    git = ['git', '-C', str(ROOT)]
    head, changes = (
        subprocess.run([*git, *arguments], check=True, capture_output=True, text=True).stdout
        for arguments in (
            ('rev-parse', '--short', 'HEAD'),
            ('status', '--porcelain', '--untracked-files=no', 'bigmodels', 'configs'),
        )
    )
    return head.strip() + ('+' if changes else '')


def stamp(libraries: Sequence[str]) -> dict:
    """The date, the commit, the command, the machine and the versions of libraries.

    The command begins with what the C library was told of memory, as one would type it.
    """
    told = [f'{name}={os.environ[name]}' for name in MEMORY_SETTINGS if name in os.environ]
    command = shlex.join(['python', os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    return {
        'date': datetime.date.today().isoformat(),
        'commit': commit(),
        'command': ' '.join([*told, command]),
        'machine': machine(),
        'versions': {name: importlib.metadata.version(name) for name in libraries},
    }


def write(
    name: str,
    result: Mapping,
    folder: pathlib.Path = RESULTS,
    libraries=('jax', 'flax'),
    quiet: bool = False,
) -> None:
    """Writes experiments/results/NAME.json with a stamp, and prints it unless `quiet`."""
    result = json.dumps({**stamp(libraries), **result}, indent=1)
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.json').write_text(f'{result}\n')
    if not quiet:
        print(result)


def keep(
    name: str,
    result: Mapping,
    place: Callable[[Mapping], tuple],
    table: Callable[[Sequence[Mapping]], str],
    libraries=('jax', 'flax'),
    folder: pathlib.Path = RESULTS,
) -> None:
    """Writes a result among those measured before, in place of its own last one.

    Args:
      place: of a result: results of the same place are of the same thing, and they are in order.
      table: the results as Markdown, written beside the JSON file.
    """
    path = folder / f'{name}.json'
    kept = json.loads(path.read_text())['results'] if path.exists() else []
    results = [other for other in kept if place(other) != place(result)]
    results = sorted([*results, {**result, **stamp(libraries)}], key=place)
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps({'results': results}, indent=1) + '\n')
    stamps = sorted({(r['date'], r['machine'], *r['versions'].items()) for r in results})
    lines = [
        f'{date}, {machine}: {", ".join(f"{key} {value}" for key, value in installed)}'
        for date, machine, *installed in stamps
    ]
    (folder / f'{name}.md').write_text('\n'.join([table(results), '', *lines]) + '\n')
