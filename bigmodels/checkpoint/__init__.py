"""Checkpoints: orbax writes them in the background; a manifest of checksums proves them.

Orbax returns wrong values for most damaged files without an error. So each step's directory
holds `manifest.json`, the SHA-256 of its every other file, written before the directory gets its
final name: a step that has its name is complete, and one whose sums agree is as it was saved.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from bigmodels import errors
from bigmodels.checkpoint import copies
from bigmodels.state import TrainState

MANIFEST = 'manifest.json'
UNSEALED = (MANIFEST, '_CHECKPOINT_METADATA')  # orbax stamps times in the latter after the rename
PARTS = ('params', 'model_state', 'opt_state', 'ema_params', 'guard')  # one orbax item each
EVALUATION_PARTS = ('params', 'model_state', 'ema_params')  # what a model is used with
# The part that no step changes lies beside the steps, once: what they need to be of use.
FROZEN = 'frozen'


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.checkpoint.

    Fields:
      every: steps between saves; the last step is always saved.
      keep_last: how many of the latest are kept.
      best_metric: a figure of the evaluation, such as 'valid/loss': every evaluated step is saved
        too, and the one with its best value is kept. '' for none.
      best_mode: whether its smallest or largest value is best.
      timeout: seconds after which a save that has not ended has failed.
      deadline: seconds in which a run that is asked to stop must have saved its step, see
        `preemption`. Clusters commonly give 30 to 120 before they kill.
      copy_to: a directory or URL to which each saved step is copied, with what is needed to open
        the run; '' for none. For one run alone.
    """

    every: int = 1000
    keep_last: int = 2
    best_metric: str = ''
    best_mode: Literal['min', 'max'] = 'min'
    timeout: int = 1200
    deadline: float = 60.0
    copy_to: str = ''


def steps(directory: pathlib.Path) -> list[int]:
    """The steps that are saved, ascending; unfinished saves have other names."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _manifest(directory: pathlib.Path, step: int | str) -> dict[str, Any]:
    return json.loads((directory / str(step) / MANIFEST).read_text())


def damage(directory: pathlib.Path, step: int, parts: Sequence[str] = PARTS) -> str | None:
    """What is wrong with a saved step, in words, or None if every file is as it was written.

    Files of parts other than `parts` are not looked at; those of the part `FROZEN` are.
    """
    frozen = _damage(directory, FROZEN) if (directory / FROZEN).is_dir() else None
    return _damage(directory, step, parts) or (frozen and f'{FROZEN}: {frozen}')


def _damage(directory: pathlib.Path, step: int | str, parts: Sequence[str] = PARTS) -> str | None:
    """`damage` of one directory alone."""
    try:
        sums = _manifest(directory, step)['files']
    except (OSError, ValueError, KeyError) as error:
        return f'its manifest cannot be read ({error})'
    others = set(PARTS) - set(parts)
    for name, digest in sums.items():
        path = directory / str(step) / name
        if name.partition('/')[0] in others:
            continue
        if not path.is_file():
            return f'{name} is missing'
        if _sha256(path) != digest:
            return f'the checksum of {name} does not agree'
    return None


def newest_good(
    directory: pathlib.Path, parts: Sequence[str] = PARTS
) -> tuple[int | None, dict[int, str]]:
    """The latest step whose `parts` are undamaged, and what is wrong with each later one.

    Raises:
      UserError: if there are saved steps and all are damaged.
    """
    damaged = {}
    for step in reversed(steps(directory)):
        problem = damage(directory, step, parts)
        if problem is None:
            return step, damaged
        damaged[step] = problem
    if damaged:
        listed = '; '.join(f'step {step}: {problem}' for step, problem in damaged.items())
        raise errors.UserError(
            f'Every checkpoint in {directory} is damaged ({listed}). Nothing '
            f'was deleted. Start again with --resume=restart.'
        )
    return None, {}


def best_step(directory: pathlib.Path, settings: Settings) -> int | None:
    """The saved step with the best value of the metric, or None if none has one; NaN is none."""
    values = {}
    for step in steps(directory):
        try:
            values[step] = _manifest(directory, step)['metrics'][settings.best_metric]
        except (OSError, ValueError, KeyError):
            continue  # damaged, or saved without an evaluation: not the best
    values = {step: value for step, value in values.items() if not math.isnan(value)}
    return (min if settings.best_mode == 'min' else max)(values, key=values.get, default=None)


def check_saved(directory: pathlib.Path, step: int) -> None:
    """Raises UserError if the last step is not there: the run is not complete."""
    saved = steps(directory)
    if step not in saved:
        raise errors.UserError(
            f'The last step, {step}, was not saved, as the warning above says; the last one that '
            f'was is {saved[-1] if saved else "none"}. Mend this, and the same command goes on.'
        )


def good_step(
    directory: pathlib.Path, step: int | Literal['last', 'best'], settings: Settings
) -> int:
    """The number of the step that is meant, whose parts for evaluation are undamaged.

    Args:
      directory: of the run's checkpoints.
      step: a saved step; the last undamaged one; or the best one by config.checkpoint.best_metric.
      settings: the run's, which say what is best.

    Raises:
      UserError: if there is no such step, or it is damaged.
    """
    asked = step
    if asked == 'last':
        step, _ = newest_good(directory, EVALUATION_PARTS)
    elif asked == 'best':
        step = best_step(directory, settings)
    saved = steps(directory)
    if step not in saved:
        by = (
            f' with a value of config.checkpoint.best_metric = {settings.best_metric!r}'
            if asked == 'best'
            else ''
        )
        raise errors.UserError(
            f'{directory} has no such checkpoint{by}; it has steps: '
            f'{", ".join(map(str, saved)) or "none"}.'
        )
    problem = None if asked == 'last' else damage(directory, step, EVALUATION_PARTS)
    if problem is not None:
        raise errors.UserError(
            f'Checkpoint {step} in {directory} is damaged: {problem}. Choose another step; there '
            f'are: {", ".join(map(str, saved))}.'
        )
    return step


def fingerprint(directory: pathlib.Path, step: int) -> str:
    """A hex digest of what a model is used with at a saved step; check `damage` first."""
    sums = [
        (name, digest)
        for name, digest in sorted(_manifest(directory, step)['files'].items())
        if name.partition('/')[0] in EVALUATION_PARTS
    ]
    if (directory / FROZEN).is_dir():
        sums += sorted(_manifest(directory, FROZEN)['files'].items())
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def figures(directory: pathlib.Path, step: int) -> dict[str, float]:
    """The figures of the evaluation that a saved step was saved with; {} if there was none."""
    return _manifest(directory, step)['metrics']


def add_figures(directory: pathlib.Path, step: int, values: Mapping[str, float]) -> None:
    """Notes an evaluation that was made after its step had been saved."""
    if jax.process_index() != 0:
        return
    path = directory / str(step) / MANIFEST
    manifest = _manifest(directory, step) | {'metrics': dict(values)}
    temporary = path.with_name(MANIFEST + '.tmp')
    temporary.write_text(json.dumps(manifest, indent=1))
    temporary.replace(path)


def set_aside(directory: pathlib.Path, step: int) -> None:
    """Renames a damaged step, so that its number can be saved again, and again be damaged."""
    names = itertools.chain(['damaged'], (f'{again}.damaged' for again in itertools.count(2)))
    paths = (directory / f'{step}.{name}' for name in names)
    (directory / str(step)).rename(next(path for path in paths if not path.exists()))


def restore(directory: pathlib.Path, step: int, abstract: TrainState) -> TrainState:
    """A saved step as a TrainState of the shapes, dtypes and shardings of `abstract`.

    Parts that `abstract` leaves empty are not read. Check `damage` first.
    """
    wanted = {name: tree for name in PARTS if jax.tree.leaves(tree := getattr(abstract, name))}
    root = directory.absolute() / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            restored = {name: checkpointer.restore(root / name, tree)
                        for name, tree in wanted.items()}  # fmt: skip
            if jax.tree.leaves(abstract.frozen):
                restored[FROZEN] = checkpointer.restore(
                    directory.absolute() / FROZEN / FROZEN, abstract.frozen
                )
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise errors.UserError(
                f'The checkpoint {root} does not fit the config: {" ".join(str(error).split())}'
            ) from error
    number = jax.device_put(jax.numpy.asarray(step, jax.numpy.int32), abstract.step.sharding)
    return abstract.replace(step=number, **restored)


class _Manager(ocp.CheckpointManager):
    """Leaves preemption to the loop.

    Orbax would ask JAX about the steps of saves begun earlier, and JAX takes the step that it was
    last asked about for the one that this process is at.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Saver:
    """Saves states in the background, keeping the latest ones and the best one.

    A step is only deleted after a later one has been written and sealed. What goes wrong is
    returned in words; with several processes, which could wait for each other, it is raised.
    """

    def __init__(self, directory: pathlib.Path, settings: Settings, beside: Sequence[str] = ()):
        """`beside` names the run's files that belong into its copy, see `copies`."""
        self.directory = directory.absolute()
        self._settings = settings
        self._saving: tuple[int, Mapping[str, float]] | None = None
        self._began, self._cost, self._copier = 0.0, {}, None
        self._manager = _Manager(
            self.directory,
            # `_clear` removes half written steps: orbax's own thread for that would race with it.
            options=ocp.CheckpointManagerOptions(
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=settings.timeout, post_finalization_callback=self._seal
                ),
            ),
        )

        if settings.copy_to and jax.process_index() == 0:
            self._copier = copies.Copier(self.directory, settings.copy_to, beside, MANIFEST, FROZEN)
            for step in reversed(steps(self.directory)):  # what an earlier process left
                self._copier.start(step, if_there=True)

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> str | None:
        """Starts saving; returns what went wrong with the save before, or None."""
        problem = self.wait()
        self._clear()
        self._saving, self._began = (step, dict(metrics)), time.perf_counter()
        items = {
            name: ocp.args.StandardSave(tree)
            for name in PARTS
            if jax.tree.leaves(tree := getattr(state, name))
        }
        try:
            if jax.tree.leaves(state.frozen) and not steps(self.directory):
                self._save_frozen(state.frozen)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError) as error:  # the latter of what is written at once
            problem = self._failed(error)
        return problem

    def _save_frozen(self, frozen: Any) -> None:
        """Writes and seals it before the first step that needs it."""
        root = self.directory / FROZEN
        if jax.process_index() == 0:
            shutil.rmtree(root, ignore_errors=True)  # of a run that had not come to a step
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(root / FROZEN, frozen, force=True)
        if jax.process_index() == 0:
            (root / MANIFEST).write_text(json.dumps({'files': _sums(root)}, indent=1))

    def poll(self) -> str | None:
        """What went wrong with a save or copy since the last call, or None; never waits."""
        problem = None
        if self._saving is not None and not self._manager.is_saving_in_progress():
            problem = self.wait()
        return problem or (self._copier.poll() if self._copier else None)

    def cost(self) -> dict[str, tuple[float, str]]:
        """Figures with units of a save that has ended since the last call; {} if none has."""
        cost, self._cost = self._cost, {}
        return cost

    def wait(self) -> str | None:
        """Waits for the save under way; returns what went wrong, or None."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:  # what tensorstore and orbax raise
            return self._failed(error)
        if self._saving is None:
            return None
        (step, _), self._saving = self._saving, None
        problem = self._prune()
        if self._copier:
            self._copier.start(step)
        return problem

    def finish_copies(self, timeout: float | None) -> str | None:
        """After `close`: waits for the copies, for so many seconds; returns what went wrong."""
        return self._copier.close(timeout) if self._copier else None

    def close(self) -> str | None:
        """Waits and lets go of the directory; returns what went wrong, or None."""
        problem = self.wait()
        self._manager.close()
        return problem

    def _failed(self, error: Exception) -> str:
        """What went wrong, in words; raised where other processes may wait for this one's part."""
        step, _ = self._saving
        self._saving = None
        if jax.process_count() > 1 and not isinstance(error, ValueError):
            raise error  # whose kind tells a full disk, or a process that is gone
        self._clear()
        text = str(error)
        if len(text) > 500:  # tensorstore gives the reason at the end
            text = f'{text[:150]} ... {text[-300:]}'
        problem = f'step {step} was not saved: {type(error).__name__}: {text}'
        if jax.process_count() > 1:
            raise errors.UserError(f'{problem}. The other processes stop too.') from error
        return problem

    def _clear(self) -> None:
        """Makes room: deletes what failed saves left. Only while no save is under way."""
        if jax.process_index() == 0:
            for half_written in self.directory.glob('*.orbax-checkpoint-tmp*'):
                shutil.rmtree(half_written, ignore_errors=True)  # other parts may still come in

    def _seal(self) -> None:
        """Writes the manifest; orbax calls it when all files are written, before the rename."""
        if jax.process_index() != 0:
            return
        step, metrics = self._saving
        [root] = [
            path
            for path in self.directory.iterdir()
            if path.name.split('.')[0] == str(step) and not path.name.endswith('.damaged')
        ]
        sums = _sums(root)
        manifest = {'step': step, 'metrics': metrics, 'files': sums}
        (root / MANIFEST).write_text(json.dumps(manifest, indent=1))
        megabytes = sum((root / name).stat().st_size for name in sums) / 1e6
        seconds = time.perf_counter() - self._began
        self._cost = {'seconds_saving': (seconds, 's'), 'megabytes_saved': (megabytes, 'MB')}

    def _prune(self) -> str | None:
        """Deletes what is not kept; the first process alone does, so that no other waits."""
        if jax.process_index() != 0:
            return None
        saved = steps(self.directory)
        keep = {*saved[-self._settings.keep_last :], best_step(self.directory, self._settings)}
        for step in saved:
            if step not in keep:
                try:
                    shutil.rmtree(self.directory / str(step))
                except OSError as error:
                    return f'step {step} could not be deleted to make room: {error}'
        return None


def _sums(root: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of every file below a directory that is sealed."""
    return {
        path.relative_to(root).as_posix(): _sha256(path)
        for path in sorted(root.rglob('*'))
        if path.is_file() and path.name not in UNSEALED
    }


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
