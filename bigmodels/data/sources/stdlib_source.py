"""A random-access source that every machine has: the source text of Python's standard library."""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from bigmodels.data.sources import FileSpans, checked_index, digest

# Folders of the standard library that hold tests, vendored tools or other packages.
_STDLIB_SKIPPED = (
    'site-packages',
    'dist-packages',
    'test',
    'tests',
    'idlelib',
    'lib2to3',
    '__pycache__',
    'ensurepip',
    'turtledemo',
)


class Stdlib:
    """The running Python's own standard library: one document per `.py` file.

    Record: {'text': str, 'path': str}, the path relative to the library. About one file in
    twenty, chosen by a hash of its relative path alone, is held out as 'valid'.
    """

    def __init__(self, split: Literal['train', 'valid'] = 'train'):
        self._split = split
        root = pathlib.Path(sysconfig.get_path('stdlib'))
        names, sizes, contents = [], [], hashlib.sha256()
        for name in sorted(_library_files(root)):
            held_out = int(digest(name)[:8], 16) % 20 == 0
            if held_out != (split == 'valid'):
                continue
            data = (root / name).read_bytes()
            if data and _is_utf8(data):
                names.append(name)
                sizes.append(len(data))
                contents.update(digest(name, data).encode())
        self._names = tuple(names)
        paths = [str(root / name) for name in names]
        self._spans = FileSpans(paths, range(len(paths)), np.zeros(len(paths)), sizes)
        self._fingerprint = digest('stdlib', contents.hexdigest())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        return {'text': self._spans.read(i).decode(), 'path': self._names[i]}

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'stdlib {self._split}: {len(self):,} files, {self._spans.num_bytes / 1e6:.1f} MB'


def _library_files(root: pathlib.Path) -> Iterator[str]:
    """The POSIX paths of the `.py` files below `root`, relative to it."""
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in _STDLIB_SKIPPED and not name.startswith('config-')
        ]
        relative = pathlib.Path(folder).relative_to(root)
        for name in files:
            # A distribution may leave a link there whose target is not installed.
            if name.endswith('.py') and os.path.isfile(os.path.join(folder, name)):
                yield (relative / name).as_posix()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
