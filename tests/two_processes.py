"""One of two processes of a run: python -m tests.two_processes INDEX WORKDIR TEXT_DIR OVERRIDES."""

import pathlib
import sys
import zlib

import jax

from bigmodels import train
from tests import commands

if __name__ == '__main__':
    index, workdir, directory, *overrides = sys.argv[1:]
    port = 20_000 + zlib.crc32(directory.encode()) % 20_000
    jax.distributed.initialize(f'localhost:{port}', 2, int(index))
    train.train(commands.tiny_text_config(pathlib.Path(directory), overrides), workdir)
