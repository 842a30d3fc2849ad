"""Runs the project's commands as a user does, in a process of their own with one device."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def start(module: str, *arguments: str, devices: int = 1, **options) -> subprocess.Popen:
    """python -m module arguments, from the repository's root."""
    environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
    environment |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    return subprocess.Popen(
        [sys.executable, '-m', module, *arguments], cwd=options.pop('cwd', ROOT),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )


def run(module: str, *arguments: str, devices: int = 1, **options) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    process = start(module, *arguments, devices=devices, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train(*arguments: str, **options) -> tuple[int, str, str]:
    """The training command."""
    return run('bigmodels.main', *arguments, **options)
