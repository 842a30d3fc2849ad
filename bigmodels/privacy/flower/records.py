"""What server and clients send each other."""

import pathlib
from typing import Any

import jax
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from bigmodels import errors, rundir, trees


def of_tree(tree: Any) -> ArrayRecord:
    """The arrays of a tree by name."""
    return ArrayRecord({
        name: Array(np.asarray(leaf)) for name, leaf in trees.flatten_named(tree).items()
    })  # fmt: skip


def to_tree(record: ArrayRecord, like: Any) -> Any:
    """A tree of numpy arrays, with the names, shapes and types of `like`.

    Raises:
      UserError: if the record has others.
    """
    wanted = trees.flatten_named(like)
    found = {name: array.numpy() for name, array in record.items()}
    for name in wanted | found:
        of = [(tree[name].shape, tree[name].dtype) if name in tree else None
              for tree in (wanted, found)]  # fmt: skip
        if of[0] != of[1]:
            raise errors.UserError(
                f'The parameter {name} came as {of[1]}, wanted {of[0]}: server and clients need '
                'one version of the code, and clients no overrides of the model.'
            )
    return jax.tree.structure(like).unflatten([found[name] for name in wanted])


def of_run(workdir: pathlib.Path) -> ConfigRecord:
    """All that a run is opened with but its checkpoints, file by file."""
    kept = [workdir / name for name in rundir.OPENED_WITH]
    files = [path for top in kept for path in (top, *top.rglob('*')) if path.is_file()]
    return ConfigRecord({path.relative_to(workdir).as_posix(): path.read_bytes() for path in files})


def to_run(record: ConfigRecord, workdir: pathlib.Path) -> None:
    """Writes what `of_run` has read; other values of the record are none of it.

    Raises:
      UserError: for a file that is not of a run: a server may not write where it likes.
    """
    for name, data in record.items():
        if not isinstance(data, bytes):
            continue
        path = pathlib.PurePosixPath(name)
        if path.parts[0] not in rundir.OPENED_WITH or '..' in path.parts:
            raise errors.UserError(f'The server sends a file {name!r}, which no run has.')
        (workdir / path).parent.mkdir(parents=True, exist_ok=True)
        (workdir / path).write_bytes(data)
