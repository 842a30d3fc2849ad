"""Runs the project's commands as a user does, most in a process of their own with one device."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from bigmodels import checkpoint, config, predict, rundir, runs, trees
from bigmodels import train as train_lib

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
    path.write_text((ROOT / 'bigmodels' / 'steps.py').read_text())
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

    It must end with the run's own params, bit for bit. `given`: a config in place of its own.
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
    ends = (runs.open_run(folder).params for folder in (workdir, copy))
    assert trees.first_difference(*ends) is None
    return figures
