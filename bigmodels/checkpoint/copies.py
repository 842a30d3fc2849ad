"""Copies of saved steps in a second place, a directory or a URL, made in the background.

A step's manifest is copied last, so that a copy which has one is complete and a copy cut short is
seen to be damaged. What opens a run lies beside it: copied back, a copy is a run.
"""

import pathlib
import queue
import threading
from collections.abc import Sequence

from etils import epath

from bigmodels import errors


class Copier:
    """Copies steps in a thread of its own, one after the other.

    Only copies of this run's steps are ever deleted, and only after a later one is complete. A run
    that has saved none yet begins no copy where there is one: with the steps of both it would be
    of no use, and what is there may be all that is left of a run.

    Args:
      checkpoints: the directory of the saved steps, within that of the run.
      target: the directory of the copy of the run.
      beside: names of the run's other files and directories to copy.
      marker: the file of a step that is copied last.
      once: the name of what lies beside the steps, if it is there: copied likewise, before them.

    Raises:
      UserError: if the target cannot be made, or has the copy of another run.
    """

    def __init__(
        self,
        checkpoints: pathlib.Path,
        target: str,
        beside: Sequence[str],
        marker: str,
        once: str,
    ):
        self._checkpoints, self._beside, self._marker = checkpoints, beside, marker
        self._once = once
        self._target = epath.Path(target)
        try:
            self._target.mkdir(parents=True, exist_ok=True)
            there = _steps(self._target / checkpoints.name)
            copied = [step for step, path in there.items() if (path / marker).exists()]
        except Exception as error:  # what each kind of storage raises is its own
            raise errors.UserError(
                f'config.checkpoint.copy_to = {target!r} cannot be written: {error}. Give a '
                f'directory or a URL that this machine may write, or "" for no copies.'
            ) from error
        self._wanted, self._problems = queue.SimpleQueue(), queue.SimpleQueue()
        self._known = set(_steps(checkpoints))
        if not self._known and copied:
            raise errors.UserError(
                f'config.checkpoint.copy_to = {target!r} has a copy of another run than the new '
                f'one in {checkpoints.parent}, up to step {max(copied)}. To go on from it, copy it '
                f'back there; to begin anew, give another place, or move it aside.'
            )
        self._copying = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, step: int, if_there: bool = False) -> None:
        """Has a saved step copied, after those that were asked for before.

        if_there: it is nothing to tell if it has been deleted by then.
        """
        self._known.add(step)
        self._wanted.put((step, if_there))

    def poll(self) -> str | None:
        """What went wrong since the last call, or None; never waits."""
        problems = []
        while not self._problems.empty():
            problems.append(self._problems.get())
        return '; '.join(problems) or None

    def close(self, timeout: float | None) -> str | None:
        """Waits for the copies for so many seconds, None for ever; returns what went wrong."""
        self._wanted.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            return f'step {self._copying} was not copied to {self._target} within {timeout:g} s'
        return self.poll()

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            step, if_there = wanted
            self._copying = step
            try:
                self._copy_step(step)
            except Exception as error:  # a failed copy must not end the training
                why = f'{type(error).__name__}: {error}'
                if not (self._checkpoints / str(step)).is_dir():
                    if if_there:
                        continue
                    why = 'it was deleted before; a larger config.checkpoint.keep_last leaves time'
                self._problems.put(f'step {step} was not copied to {self._target}: {why}')

    def _copy_step(self, step: int) -> None:
        copies, once = self._target / self._checkpoints.name, self._checkpoints / self._once
        if self._is_copied(self._checkpoints / str(step), copies / str(step)):
            return
        for name in self._beside:
            _copy(self._checkpoints.parent / name, self._target / name)
        if once.is_dir() and not self._is_copied(once, copies / self._once):
            self._copy_sealed(once, copies / self._once)
        self._copy_sealed(self._checkpoints / str(step), copies / str(step))
        for number, old in _steps(copies).items():
            if number in self._known and not (self._checkpoints / old.name).is_dir():
                self._delete(old)

    def _is_copied(self, source: pathlib.Path, target: epath.Path) -> bool:
        marker = target / self._marker
        return marker.exists() and marker.read_bytes() == (source / self._marker).read_bytes()

    def _copy_sealed(self, source: pathlib.Path, target: epath.Path) -> None:
        """Copies a directory, its marker last."""
        self._delete(target)
        for file in source.iterdir():
            if file.name != self._marker:
                _copy(file, target / file.name)
        _copy(source / self._marker, target / self._marker)

    def _delete(self, copy: epath.Path) -> None:
        if copy.exists():
            (copy / self._marker).unlink(missing_ok=True)  # from here on it is no copy
            copy.rmtree()


def _steps(directory: pathlib.Path | epath.Path) -> dict[int, pathlib.Path | epath.Path]:
    """Those of a directory that may not be there, by number."""
    listed = directory.iterdir() if directory.exists() else ()
    return {int(path.name): path for path in listed if path.name.isdigit()}


def _copy(source: pathlib.Path, target: epath.Path) -> None:
    """Copies a file or a directory over what is there."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            _copy(path, target / path.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(source).copy(target, overwrite=True)
