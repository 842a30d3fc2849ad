"""What a directory of checkpoints holds, from names, sizes and manifests; no values are read."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping

from bigmodels import checkpoint


@dataclasses.dataclass(frozen=True)
class Saved:
    """A saved step.

    Fields:
      step: its number.
      date: local time at which it was sealed.
      num_bytes: of all its files.
      parts: those of `checkpoint.PARTS` that it holds.
      metrics: of the evaluation at this step; empty where there was none.
      problem: why its manifest cannot be read, or None. Checksums are for `checkpoint.damage`.
    """

    step: int
    date: datetime.datetime
    num_bytes: int
    parts: tuple[str, ...]
    metrics: Mapping[str, float]
    problem: str | None = None


def describe(directory: pathlib.Path, step: int) -> Saved:
    """What a saved step is, without reading its values."""
    root = directory / str(step)
    path = root / checkpoint.MANIFEST
    try:
        metrics, problem = json.loads(path.read_text())['metrics'], None
    except (OSError, ValueError, KeyError) as error:
        metrics, problem = {}, f'its manifest cannot be read ({error})'
    return Saved(
        step=step,
        date=datetime.datetime.fromtimestamp((root if problem else path).stat().st_mtime),
        num_bytes=num_bytes(root),
        parts=tuple(part for part in checkpoint.PARTS if (root / part).is_dir()),
        metrics=metrics,
        problem=problem,
    )


def remainders(directory: pathlib.Path) -> dict[str, str]:
    """The directories that are no steps, by name: what each is, in words."""
    if not directory.is_dir():
        return {}
    kinds = {
        '.damaged': 'set aside as damaged',
        '.orbax-checkpoint-tmp': 'being written, or left by a save that was killed',
    }
    return {
        path.name: kind
        for path in sorted(directory.iterdir())
        for mark, kind in kinds.items()
        if path.is_dir() and mark in path.name
    }


def num_bytes(root: pathlib.Path) -> int:
    """The size of all files below a directory."""
    return sum(path.stat().st_size for path in root.rglob('*') if path.is_file())
