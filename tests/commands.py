"""Runs the project's commands as a user does, most in a process of their own with one device."""

import contextlib
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bigmodels import checkpoint, config, errors, predict, rundir, trees, writers
from bigmodels import train as train_lib
from bigmodels.checkpoint import values

ROOT = pathlib.Path(__file__).parent.parent


def start(module: str, *arguments: str, devices: int = 1, **options) -> subprocess.Popen:
    """python -m module arguments, from the repository's root."""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    options = {
        'cwd': ROOT,
        'stdout': subprocess.PIPE,
        'stderr': subprocess.PIPE,
        'text': True,
        **options,
    }
    return subprocess.Popen([sys.executable, '-m', module, *arguments], env=environment, **options)


def run(module: str, *arguments: str, devices: int = 1, **options) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    process = start(module, *arguments, devices=devices, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train(*arguments: str, **options) -> tuple[int, str, str]:
    """The training command."""
    return run('bigmodels.main', *arguments, **options)


def tiny_text(directory: pathlib.Path) -> tuple[str, list[str]]:
    """A byte-level Transformer on a little text, 20 steps in a second: (config file, overrides)."""
    path = directory / 'input.txt'
    path.write_text((ROOT / 'LICENSE').read_text())
    return f'{ROOT}/configs/shakespeare.py:{path}', [
        'model.vocab_size=256',
        'model.num_layers=2',
        'model.embed_dim=32',
        'model.max_length=128',
        'task.sequence_length=32',
        'task.tokenizer.name=bytes',
        'task.sample_tokens=16',
        'batch_size=8',
        'total_steps=20',
        'log_every=5',
        'checkpoint.every=10',
        'optimizer.schedule.warmup_steps=2',
    ]


def tiny_text_config(directory: pathlib.Path, overrides: tuple[str, ...] | list[str] = ()):
    """The config of `tiny_text`."""
    path, values = tiny_text(directory)
    return config.load(path, [*values, *overrides])


def called(capsys: Any, module: str, *arguments: str) -> tuple[int, str, str]:
    """`run` within this process, which has imported what takes a new one seconds."""
    found = importlib.import_module(module)
    if not hasattr(found, 'main'):  # a package
        found = importlib.import_module(f'{module}.__main__')
    capsys.readouterr()
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, 'argv', [module, *arguments])
        try:
            errors.exit_on_user_error(found.main)
        except SystemExit as stopped:
            status = stopped.code or 0
    return status, *capsys.readouterr()


def printed(module: Any, capsys: Any, **options: Any) -> str:
    """What a command of this package prints, run in this process with its devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['', *(f'--{key}={value}' for key, value in options.items())])
        capsys.readouterr()
        module.main()
    return capsys.readouterr().out


def answered(capsys: Any, workdir: pathlib.Path, given: Any, **options: Any) -> list[dict]:
    """What a run answers to raw input: a file, or a folder."""
    out = printed(predict, capsys, workdir=workdir, input=given, **options)
    return [json.loads(line) for line in out.splitlines()]


def resumed(workdir: pathlib.Path, copy: pathlib.Path, given: Any = None) -> dict[str, float]:
    """What a copy of a finished run reports that lost its last checkpoint, and went on to its end.

    It must end with the same checkpoint, bit for bit. `given`: a config in place of its own.
    """
    shutil.copytree(workdir, copy)
    (copy / rundir.SUMMARY).unlink()
    directory = copy / rundir.CHECKPOINTS
    steps = checkpoint.steps(directory)
    shutil.rmtree(directory / str(steps[-1]))
    kept = directory / str(steps[-2])  # which a run from the beginning would write again
    written = kept.stat().st_mtime_ns
    figures = train_lib.train(given or config.read(copy / rundir.CONFIG), copy)
    assert checkpoint.steps(directory) == steps
    assert kept.stat().st_mtime_ns == written
    ends = (arrays(folder, steps[-1]) for folder in (workdir, copy))
    assert trees.first_difference(*ends) is None
    return figures


@contextlib.contextmanager
def trained(folder: pathlib.Path, load: Callable, source: Callable):
    """A row on data in `folder`: its run, what it reported, and its test as a source.

    Args:
      load: () -> its config, once the data is found.
      source: of the test, from the fields of the config's section.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BIGMODELS_DATA', str(folder))
        loaded = load()
        figures = train_lib.train(loaded, folder / 'run')
        section = {key: value for key, value in loaded.data.evals.test.items() if key != 'name'}
        yield folder / 'run', figures, source(**section)


def losses(workdir: pathlib.Path) -> list[float]:
    """Those of the steps that were logged."""
    rows = writers.read_metrics(workdir / 'metrics.jsonl')
    return [row['train/loss'] for row in rows if 'train/loss' in row]


def arrays(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """Every part of a checkpoint by its name, as numpy arrays."""
    directory = workdir / rundir.CHECKPOINTS
    found = {part: values.read(directory, step, part) for part in checkpoint.PARTS}
    assert found['params']
    assert found['opt_state']
    return found
