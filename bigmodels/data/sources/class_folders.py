"""A folder with one sub-folder of files for each class, as a random-access source."""

import abc
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import FileSpans, checked_index, digest, size_of, visible_files


class ClassFolders(abc.ABC):
    """Files by class; a subclass says which, and decodes one.

    Record: what `_decode` gives, {'label': int64, 'path': str}, the path relative to the folder.
    The label is the place of the class in `classes`: by default the names of the sub-folders,
    sorted. Give them where another split's folder may lack one: training refuses sets of others.
    """

    suffixes: ClassVar[tuple[str, ...]]  # of the files that are read, in lower case

    def __init__(self, path: str, classes: tuple[str, ...] = ()):
        self._path = path
        found = _class_folders(path)
        self.classes = tuple(classes or found)
        unknown = [name for name in found if name not in self.classes]
        if unknown:
            raise errors.unknown(f'class folder in {path}', unknown[0], self.classes)
        names, labels, self._left_out = [], [], 0
        for name in found:
            files = [f'{name}/{file}' for file in visible_files(os.path.join(path, name))]
            kept = [file for file in files if file.lower().endswith(self.suffixes)]
            self._left_out += len(files) - len(kept)
            if not kept:
                raise errors.UserError(
                    f'{pathlib.Path(path, name)} holds no {" or ".join(self.suffixes)} file. '
                    'Remove the folder, or fill it.'
                )
            names += kept
            labels += [self.classes.index(name)] * len(kept)
        self._names = tuple(names)
        self._labels = np.array(labels, np.int64)
        paths = [os.path.join(path, name) for name in names]
        self._sizes = [size_of(path) for path in paths]
        self._spans = FileSpans(paths, range(len(paths)), np.zeros(len(paths)), self._sizes)

    @abc.abstractmethod
    def _decode(self, data: bytes, where: str) -> dict[str, np.ndarray]:
        """The content of a file; `where` names it in errors."""

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        decoded = self._decode(self._spans.read(i), f'{self._spans.path(i)} (record {i})')
        return {**decoded, 'label': self._labels[i], 'path': self._names[i]}

    def fingerprint(self) -> str:
        """Over the names and sizes of all files, and the content of 64 of them, evenly spaced.

        Not over all content: there may be millions of files.
        """
        sample = np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)
        listed = zip(self._names, self._sizes, self._labels, strict=True)
        return digest(
            'class_folders',
            *(f'{name} {size} {label}' for name, size, label in listed),
            *(self._spans.read(i) for i in sample),
        )

    def describe(self) -> str:
        left_out = f', {self._left_out:,} other files left out' if self._left_out else ''
        return (
            f'folder {self._path}: {len(self):,} files in {len(self.classes):,} classes, '
            f'{self._spans.num_bytes / 1e6:.1f} MB{left_out}'
        )


def _class_folders(path: str) -> tuple[str, ...]:
    """The sorted names of the folders in a folder; hidden ones do not count."""
    if not os.path.isdir(path):
        raise errors.UserError(f'There is no folder {path!r}, seen from {os.getcwd()}.')
    with os.scandir(path) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.'))
    if not found:
        raise errors.UserError(f'{path} holds no folder: one for each class is needed.')
    return tuple(found)


def check_same_classes(source: Sequence, path: str, trained_on: Sequence[Any]) -> None:
    """Raises UserError where a label is another class in `source` than in the training sources.

    Args:
      path: of the config's section of `source`, for the error.
      trained_on: what has `classes`, or None: the sources, or the task that they were kept in.
    """
    classes = getattr(source, 'classes', None)
    for other in trained_on:
        known = getattr(other, 'classes', None)
        if classes and known and classes != known:
            raise errors.UserError(
                f'{path} has the classes {", ".join(classes)}, where the training data has '
                f'{", ".join(known)}: labels would differ. Set classes to the same in both.'
            )
