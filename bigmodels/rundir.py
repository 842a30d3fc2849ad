"""A run's directory: made and guarded by training, read by everything else.

config.json      the resolved config, read back as data
data.json        fingerprints of the training sources, and the shapes of a batch
preprocessing/   what preprocessing learnt from the training data, such as a tokenizer
checkpoints/     see `checkpoint`
metrics.jsonl    a row per logged step and evaluation; tensorboard/ holds the same
average.json     in an average of checkpoints only: what it was made of
merged.json      in a run of merged adapters only, likewise
compressed.json  in a run made smaller only, likewise, with its figures before and after
converted.json   in a run of converted weights only: what they were converted from
curves.png, summary.json, and what the task demonstrates, such as sample.txt
.lock            held while a run is under way, see `lock`
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import ml_collections

from bigmodels import checkpoint, errors, experiment, lock, metrics, processes
from bigmodels import config as config_lib
from bigmodels import guard as guard_lib
from bigmodels.state import TrainState

CONFIG, DATA, SUMMARY = 'config.json', 'data.json', 'summary.json'
# Files of runs that no loop has trained -> what these are.
AVERAGE, MERGED, CONVERTED = 'average.json', 'merged.json', 'converted.json'
COMPRESSED = 'compressed.json'
UNTRAINED = {
    AVERAGE: 'an average of checkpoints',
    MERGED: 'merged adapters',
    CONVERTED: 'converted weights',
    COMPRESSED: 'a compressed model',
}
PREPROCESSING, CHECKPOINTS = 'preprocessing', 'checkpoints'
OPENED_WITH = (CONFIG, DATA, PREPROCESSING)  # beside the checkpoints
Resume = Literal['same', 'changed', 'restart']
RESUME_RULES = (
    '--resume=changed goes on from its last checkpoint under what is given now; --resume=restart '
    'moves it aside and starts anew; --workdir=... starts another run'
)


def default(spec: str) -> pathlib.Path:
    """Where the run of `configs/x.py:variant` is kept if nobody says: runs/x_variant.

    Of a variant that is a path it is the last part.
    """
    path, _, variant = spec.partition(':')
    parts = filter(None, (pathlib.Path(path).stem, pathlib.Path(variant).name))
    return pathlib.Path('runs', '_'.join(parts))


@contextlib.contextmanager
def held(workdir: pathlib.Path, resume: Resume) -> Iterator[None]:
    """Makes the directory and keeps other runs out of it; 'restart' moves what it holds aside.

    With several processes the first one acts, in a directory that all share.

    Raises:
      UserError: if it cannot be written, or another run is under way in it.
    """
    locks = []
    processes.on_first(lambda: locks.append(_taken(workdir, resume)))
    try:
        yield
    finally:
        for held_lock in locks:
            held_lock.release()


def _taken(workdir: pathlib.Path, resume: Resume) -> lock.Lock:
    if resume == 'restart' and not workdir.name:
        raise errors.UserError(f'{workdir} cannot be moved aside: run from the folder above it.')
    with errors.unwritten(f'The work directory {workdir}'):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / '.writable').touch()
        (workdir / '.writable').unlink(missing_ok=True)  # another start may have done it
        taken = lock.Lock(workdir)
        if resume == 'restart' and any(path.name != lock.NAME for path in workdir.iterdir()):
            _move_aside(workdir)  # the old lock goes with it
            workdir.mkdir(exist_ok=True)  # another start may have made it
            taken.release()
            taken = lock.Lock(workdir)
    return taken


def _move_aside(workdir: pathlib.Path) -> None:
    """To its name with a number behind it."""
    number = 1
    while (aside := workdir.with_name(f'{workdir.name}.{number}')).exists():
        number += 1
    workdir.rename(aside)


@contextlib.contextmanager
def storage_errors(workdir: pathlib.Path) -> Iterator[None]:
    """What a full or read-only disk refuses in here is a UserError that says what is safe."""
    try:
        yield
    except OSError as error:
        if error.errno not in errors.STORAGE:
            raise
        saved = checkpoint.steps(workdir / CHECKPOINTS)
        file = f' ({error.filename})' if error.filename else ''
        raise errors.UserError(
            f'{workdir} cannot be written: {error.strerror}{file}. '
            + (f'Nothing that was saved is lost, step {saved[-1]} is the last. ' if saved else '')
            + 'Make room, and the same command goes on.'
        ) from error


def prepare(workdir: pathlib.Path, config: Mapping, resume: Resume) -> int | None:
    """Checks a directory that is `held`; returns the step to go on from, None for a new run.

    With several processes the first one acts, in a directory that all share.

    Raises:
      UserError: if it holds a run of another config that `resume` does not allow to go on.
    """
    return processes.on_first(lambda: _prepare(workdir, config, resume))


def how_to_go_on(workdir: pathlib.Path) -> str:
    """What the same command will do with a run that ends now, in a sentence."""
    try:
        saved = checkpoint.steps(workdir / CHECKPOINTS)
    except OSError as error:  # it may be moved aside right now, or its disk may be what failed
        return f'The checkpoints in {workdir} cannot be listed: {error}.'
    if not saved:
        return f'There is no checkpoint in {workdir} yet: the same command starts anew.'
    return f'The last checkpoint in {workdir} is step {saved[-1]}; the same command resumes there.'


def read_config(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run, as data: pass it to `config.check_trusted` before building from it.

    Raises:
      UserError: if the directory holds no run.
    """
    if not (directory / CONFIG).is_file():
        raise errors.UserError(f'{directory} holds no run: {CONFIG} is missing.')
    return config_lib.read(directory / CONFIG)


def resolved(config: Mapping) -> Mapping[str, Any]:
    """`experiment.resolved`, in which a teacher's step is a number and has its fingerprint.

    Raises:
      UserError: if there is no such teacher or step, it is damaged, or another than it was.
    """
    plain = experiment.resolved(config)
    teacher, expected = plain['distill']['teacher'], plain['distill']['fingerprint']
    if not teacher:
        return plain
    directory = pathlib.Path(teacher, CHECKPOINTS)
    theirs = read_config(pathlib.Path(teacher))
    kept = config_lib.build(checkpoint.Settings, theirs['checkpoint'], 'checkpoint')
    wanted = plain['distill']['step']
    step = processes.on_first(lambda: checkpoint.good_step(directory, wanted, kept))
    found = checkpoint.fingerprint(directory, step)
    if expected not in ('', found):
        raise errors.UserError(
            f'The teacher {teacher} has the fingerprint {found} at step {step}, and '
            f'config.distill.fingerprint is {expected}: it is another one.'
        )
    plain['distill'] |= {'step': step, 'fingerprint': found}
    return plain


def _prepare(workdir: pathlib.Path, config: Mapping, resume: Resume) -> int | None:
    for file, kind in UNTRAINED.items():
        if (workdir / file).exists():
            raise errors.UserError(
                f'{workdir} holds {kind}, without optimiser state to go on from. Evaluate it, '
                f'generate from it, or begin another run with it: '
                f'--config.init_from.workdir={workdir} --workdir=...; --resume=restart moves it '
                f'aside and starts anew.'
            )
    checkpoints = workdir / CHECKPOINTS
    if checkpoint.steps(checkpoints) and resume == 'changed':
        _check_not_private(workdir, config)
    if checkpoint.steps(checkpoints) and resume == 'same':
        # What an earlier version did not know of, its runs have as this one has it by default.
        kept = experiment.resolved(config_lib.read(workdir / CONFIG))
        changes = experiment.blocking_differences(kept, config)
        if changes:
            listed = [f'  {key}: {old!r} -> {new!r}' for key, (old, new) in changes.items()]
            raise errors.UserError(
                '\n'.join([f'{workdir} holds a run with another config:', *listed, RESUME_RULES])
            )
    start, damaged = checkpoint.newest_good(checkpoints)
    for step, problem in damaged.items():
        print(f'WARNING: checkpoint {step} is damaged and was set aside: {problem}')
        checkpoint.set_aside(checkpoints, step)
    return start


def _check_not_private(workdir: pathlib.Path, config: Mapping) -> None:
    """Raises UserError where a run would go on with another guarantee than it began with."""
    for one in (read_config(workdir), config):
        if experiment.from_config(one).privacy.on:
            raise errors.UserError(
                f'{workdir} holds a run that is private, or is to be: what it has spent is known '
                f'only if it goes on as it began, so there is no --resume=changed. '
                f'--resume=restart moves it aside and starts anew; what it has spent adds up.'
            )


def check_sources(workdir: pathlib.Path, fingerprints: Sequence[str], resume: Resume) -> None:
    """Raises UserError if a run would go on with other training data than it began with."""
    if resume == 'same' and read(workdir / DATA)['sources'] != list(fingerprints):
        raise errors.UserError(
            f'The training data is not what the run in {workdir} began with: its batches would '
            f'be others. {RESUME_RULES}.'
        )


def record(
    workdir: pathlib.Path,
    config: Mapping,
    fingerprints: Sequence[str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    guarded_since: int,
) -> None:
    """Writes config.json and data.json, once everything that they describe is known to work."""
    record_data(workdir, fingerprints, shapes, guarded_since)
    write_json(workdir / CONFIG, config_lib.to_plain(config))


def derive(
    out: pathlib.Path,
    workdir: pathlib.Path,
    changes: Mapping[str, Any],
    state: TrainState,
    made_of: Mapping[str, Any],
    name: str,
) -> None:
    """Makes a run of another one's config and data, and of a state without an optimiser's.

    Args:
      out: its directory, which does not exist or is empty.
      changes: of the config of `workdir`.
      made_of: written to the file `name`, of UNTRAINED.

    Raises:
      UserError: if `out` is in use or cannot be written.
    """

    def fill(out: pathlib.Path) -> None:
        shutil.copy(workdir / DATA, out / DATA)
        shutil.copytree(workdir / PREPROCESSING, out / PREPROCESSING)
        frozen = workdir / CHECKPOINTS / checkpoint.FROZEN
        if frozen.is_dir() and 'adapter' not in changes:
            shutil.copytree(frozen, out / CHECKPOINTS / checkpoint.FROZEN)

    config = read_config(workdir).to_dict() | changes
    check_unused(out, '--out')
    make_untrained(out, name, made_of, config, state, fill)


def batch_shapes(workdir: pathlib.Path, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a run's batches, for a batch size."""
    return {
        key: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for key, (shape, dtype) in read(workdir / DATA)['batch'].items()
    }


def make_untrained(
    out: pathlib.Path,
    kind: str,
    made_of: Mapping,
    config: Mapping,
    state: TrainState,
    fill: Callable[[pathlib.Path], None],
) -> None:
    """Makes a run of one saved step that no loop has trained, which everything else opens.

    The config is written last, so that what is left half made is no run.

    Args:
      out: a directory that does not exist or is empty, see `check_unused`.
      kind: of UNTRAINED: the file that says what the run was made of.
      config: resolved; its moving average is left out.
      state: what is saved, at its step.
      fill: writes data.json and what preprocessing keeps.

    Raises:
      UserError: if `out` cannot be written.
    """
    with errors.unwritten(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / kind, made_of)
        fill(out)
        saver = checkpoint.Saver(out / CHECKPOINTS, checkpoint.Settings())
        for problem in (saver.save(int(state.step), state, {}), saver.close()):
            if problem is not None:
                raise errors.UserError(f'{UNTRAINED[kind]} cannot be saved in {out}: {problem}')
        # What it has is saved as params; with a decay they would be looked for in ema_params.
        write_json(out / CONFIG, {**config, 'ema_decay': 0.0})


def check_unused(out: pathlib.Path, option: str) -> None:
    """Raises UserError if there is something where a command's option has a directory made."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise errors.UserError(f'{out} exists already: choose another {option}, or remove it.')


def record_data(
    workdir: pathlib.Path,
    fingerprints: Sequence[str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    guarded_since: int = 0,
) -> None:
    """Writes data.json, of batches of these shapes; for the last see `guarded_since`."""
    per_example = {key: [shape.shape[1:], str(shape.dtype)] for key, shape in shapes.items()}
    found = {'sources': list(fingerprints), 'batch': per_example, 'guarded_since': guarded_since}
    write_json(workdir / DATA, found)


def guarded_since(workdir: pathlib.Path, start: int | None, guard: guard_lib.Guard) -> int:
    """The step behind which saved steps hold what the guard of the config remembers.

    Those up to it have the memory of another guard, or none.
    """
    if start is None:
        return 0
    kept = read_config(workdir).get('guard', {})
    if config_lib.with_defaults(guard_lib.Guard, kept) != dataclasses.asdict(guard):
        return start
    return min(start, read(workdir / DATA).get('guarded_since', 0))


def write_summary(
    workdir: pathlib.Path, step: int, figures: Mapping, cost: Mapping, startup: Mapping
) -> None:
    """Sums up a run that is complete: the cost of its loop, see `energy`, and the seconds of its
    start by name; both since it was last resumed."""
    times = {**cost, 'startup_seconds': startup}
    write_json(workdir / SUMMARY, {'step': step, 'final': metrics.plain(figures), **times})


def final_figures(workdir: pathlib.Path, step: int | None, total_steps: int) -> dict | None:
    """The figures of a run that has made all its steps and summed them up; None otherwise.

    Raises:
      UserError: if it has made more, without summing them up.
    """
    path = workdir / SUMMARY
    if step is None or step < total_steps:
        return None
    summary = read(path) if path.is_file() else {'step': None}
    if summary['step'] == step:
        final = summary['final'].items()
        return {name: math.nan if value is None else value for name, value in final}
    if step > total_steps:
        raise errors.UserError(
            f'{workdir} is at step {step}, beyond config.total_steps = {total_steps}: give {step} '
            f'or more, or evaluate it as it is.'
        )
    return None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file that is either the old one or the new one; the first process does."""
    if jax.process_index() != 0:
        return
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(json.dumps(value, indent=1) + '\n')
    temporary.replace(path)


def read(path: pathlib.Path) -> dict:
    """What `write_json` has written."""
    return json.loads(path.read_text())
