"""Kills a training run at random instants until it completes, and compares it with a whole one.

    python experiments/chaos.py --kills=100

SIGKILL, so that nothing in the process can react. Two thirds of the kills fall uniformly over the
wall-clock life of an uninterrupted process, start-up and finishing included; one third is aimed at
saves: a random save is awaited, or its manifest, and the kill follows within milliseconds. A run
that completes is compared bit for bit and the next one begins, until the kills are made.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

import jax
import measure
import numpy as np
import orbax.checkpoint as ocp

from bigmodels import checkpoint, rundir, trees, writers

TOTAL_STEPS, EVAL_EVERY, SAVE_EVERY = 160, 40, 5
CONFIG = (  # small and slow to finish: every kind of state, many saves, some evaluations
    '--config=configs/transformer.py:tiny',
    f'--config.total_steps={TOTAL_STEPS}',
    f'--config.eval_every={EVAL_EVERY}',
    f'--config.checkpoint.every={SAVE_EVERY}',
    '--config.checkpoint.best_metric=',
    '--config.log_every=1',
    '--config.ema_decay=0.9',
    '--config.model.dropout_rate=0.1',
    '--config.model.embed_dim=32',
    '--config.task.sequence_length=64',
    '--config.task.sample_tokens=32',
)
AIMS, WEIGHTS = ('life', 'save', 'manifest'), (4, 1, 1)
SAVE_SECONDS, RENAME_SECONDS = 0.1, 0.003  # about as long as each lasts
PHASES = (
    'before the first step',
    'in steps, nothing being saved',
    'saving: arrays, no manifest',
    'saving: manifest, not yet renamed',
    'evaluating',
    'after the last step: finishing',
)


def start(workdir: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    """The training command with one device; its caches are beside the runs."""
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    environment |= {
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': '1',
        'BIGMODELS_CACHE': str(workdir.parent / 'cache'),
    }
    with log.open('w') as output:
        return subprocess.Popen(
            [sys.executable, '-m', 'bigmodels.main', *CONFIG, f'--workdir={workdir}'],
            cwd=measure.ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip


def temporary(workdir: pathlib.Path) -> dict[int, pathlib.Path]:
    """The directories of saves under way, or left by a kill, by inode."""
    found = {}
    for path in (workdir / rundir.CHECKPOINTS).glob('*.orbax-checkpoint-tmp*'):
        with contextlib.suppress(FileNotFoundError):  # renamed since it was listed
            found[path.stat().st_ino] = path
    return found


def wait_for_save(process: subprocess.Popen, workdir: pathlib.Path, count: int) -> None:
    """Returns when the process has begun its `count`-th save, or has ended."""
    seen = set(temporary(workdir))
    while count and process.poll() is None:
        new = temporary(workdir).keys() - seen
        seen |= new
        count -= len(new)
        time.sleep(0.0005)


def wait_for_manifest(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Returns when a save has written its manifest and is to be renamed, or just was."""
    saves = list(temporary(workdir).values())
    while process.poll() is None and any(path.exists() for path in saves):
        if any((path / checkpoint.MANIFEST).exists() for path in saves):
            return
        time.sleep(0.0002)


def phase(workdir: pathlib.Path, log: pathlib.Path, stale: set[int]) -> str:
    """Where a kill fell, by what is on the disk and what the process had said."""
    saves = [path for inode, path in temporary(workdir).items() if inode not in stale]
    if saves:
        return PHASES[3 if any((path / checkpoint.MANIFEST).exists() for path in saves) else 2]
    step, evaluated = last_step(log), f'evaluation at step {last_step(log)}' in log.read_text()
    if step is None:
        return PHASES[0]
    if (step % EVAL_EVERY == 0 or step == TOTAL_STEPS) and not evaluated:
        return PHASES[4]
    return PHASES[5 if step == TOTAL_STEPS else 1]


def last_step(log: pathlib.Path) -> int | None:
    """The last step that a process reported."""
    found = re.findall(rf'^step (\d+)/{TOTAL_STEPS}', log.read_text(), re.MULTILINE)
    return int(found[-1]) if found else None


def kill_once(workdir: pathlib.Path, life: float, chance: random.Random) -> dict | None:
    """Goes on with a run and kills it; what was found then, or None if it completed before."""
    [aim] = chance.choices(AIMS, WEIGHTS)
    stale = set(temporary(workdir)) if workdir.exists() else set()
    log = workdir.with_suffix('.log')
    process = start(workdir, log)
    try:
        if aim == 'life':
            process.wait(chance.uniform(0, life))
        else:
            wait_for_save(process, workdir, count=chance.randint(1, 12))
            if aim == 'manifest':
                wait_for_manifest(process, workdir)
            time.sleep(chance.uniform(0, SAVE_SECONDS if aim == 'save' else RENAME_SECONDS))
    except subprocess.TimeoutExpired:
        pass  # it lives, to be killed
    ended = process.poll()
    process.kill()
    process.wait()
    if ended is not None:
        if ended:
            raise SystemExit(f'a resumed run failed with status {ended}:\n{log.read_text()}')
        return None
    good, damaged = checkpoint.newest_good(workdir / rundir.CHECKPOINTS)
    made = last_step(log)
    return {
        'aim': aim,
        'phase': phase(workdir, log, stale),
        'lost_steps': 0 if made is None else made - (good or 0),
        'damaged': len(damaged),
    }


def arrays(workdir: pathlib.Path) -> dict:
    """Every array of the last step: params, model state, optimiser state and their average."""
    root = (workdir / rundir.CHECKPOINTS / str(TOTAL_STEPS)).absolute()
    items = sorted(path for path in root.iterdir() if path.is_dir())
    with ocp.StandardCheckpointer() as checkpointer:
        values = {path.name: checkpointer.restore(path) for path in items}
    return jax.tree.map(np.asarray, values)


def differences(whole: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What is not bit for bit the same in two finished runs."""
    rows, shown = [], []
    for workdir in (whole, other):
        rows.append(
            [
                {key: value for key, value in row.items() if not key.startswith('perf/')}
                for row in writers.read_metrics(workdir / 'metrics.jsonl')
            ]
        )
        final = rundir.final_figures(workdir, TOTAL_STEPS, TOTAL_STEPS)
        shown.append((final, (workdir / 'sample.txt').read_text()))
    found = trees.first_difference(arrays(whole), arrays(other))
    same = {f'arrays: {found}': found is None, 'metrics': rows[0] == rows[1],
            'final figures or sample': shown[0] == shown[1]}  # fmt: skip
    return [name for name, equal in same.items() if not equal]


def finish(
    workdir: pathlib.Path, most: int, until: float, life: float, chance: random.Random
) -> list[dict]:
    """Goes on with a run until it completes, killing it `most` times at most."""
    outcomes = []
    while len(outcomes) < most and time.perf_counter() < until:
        outcome = kill_once(workdir, life, chance)
        if outcome is None:
            return outcomes
        outcomes.append(outcome)
        print(f'{workdir.name}, kill {len(outcomes)}: {outcome}', flush=True)
    run(workdir)
    return outcomes


def run(workdir: pathlib.Path) -> float:
    """Goes on with a run to its end; the seconds that it took."""
    log, began = workdir.with_suffix('.log'), time.perf_counter()
    if status := start(workdir, log).wait():
        raise SystemExit(f'a run that was not killed failed, {status}:\n{log.read_text()}')
    return time.perf_counter() - began


def chaos(directory: pathlib.Path, kills: int, minutes: float, chance: random.Random) -> dict:
    """Makes the kills; returns the report."""
    began = time.perf_counter()
    until = began + 60 * minutes
    whole = directory / 'whole'
    run(directory / 'fills_the_caches')
    life = run(whole)
    outcomes, different, completed = [], [], 0
    while len(outcomes) < kills and time.perf_counter() < until:
        workdir = directory / f'run_{completed}'
        outcomes += finish(workdir, kills - len(outcomes), until, life, chance)
        found = differences(whole, workdir)
        print(f'{workdir.name} completed, differences: {found or "none"}', flush=True)
        different += [f'{workdir.name}: {what}' for what in found]
        completed += 1
    lost = [outcome['lost_steps'] for outcome in outcomes]
    return {
        'kills': len(outcomes),
        'aimed': collections.Counter(outcome['aim'] for outcome in outcomes),
        'fell': {name: sum(outcome['phase'] == name for outcome in outcomes) for name in PHASES},
        'runs_completed': completed,
        'differences_from_the_uninterrupted_run': different,
        'damaged_checkpoints_found': sum(outcome['damaged'] for outcome in outcomes),
        'steps_between_saves': SAVE_EVERY,
        'lost_steps': {'largest': max(lost), 'mean': round(sum(lost) / len(lost), 2)},
        'seconds_of_an_uninterrupted_run': round(life, 1),
        'seconds': round(time.perf_counter() - began),
    }


def show(report: dict) -> None:
    """Prints where the kills fell, as a table."""
    for name, count in report['fell'].items():
        print(f'{name:<36} {count:>4}')
    print(f'{"kills":<36} {report["kills"]:>4}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--minutes', type=float, default=120, help='after which no kill is made')
    parser.add_argument('--seed', type=int, default=0, help='of the instants')
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        chance = random.Random(options.seed)
        report = chaos(pathlib.Path(directory), options.kills, options.minutes, chance)
    measure.write('chaos', report, options.results)
    show(report)
    if report['differences_from_the_uninterrupted_run'] or report['damaged_checkpoints_found']:
        raise SystemExit('The killed runs are not what the uninterrupted one is.')
