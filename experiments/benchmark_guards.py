"""What the guards of a run cost: the default config with and without them, in turns.

    python experiments/benchmark_guards.py [--steps=500] [--pairs=5]

Each pair trains configs/transformer.py twice in this process, once as it is and once with every
guard of GUARDS taken out, saving as often as the config does; the first pair, which compiles, is
not counted. Compared is the time of the loop, saves included: the slowdown is the
median of the pairs' ratios.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax.numpy as jnp
import measure

from bigmodels import checkpoint, config, guard, preemption, rundir, runs, train

SAVE_EVERY = 500
# What is put in a guard's place: (object, attribute, replacement).
GUARDS = {
    'manifest of checksums': (checkpoint.Saver, '_seal', lambda self: None),
    'errors of saves at every step': (checkpoint.Saver, 'poll', lambda self: None),
    'signals': (preemption.Signals, 'reached', lambda self, step: False),
    'finite check': (guard, 'judge', lambda settings, memory, loss, grad_norm: (
        True, memory, {'skipped': jnp.float32(0)})),
    'lock': (rundir, 'held', lambda workdir, resume: contextlib.nullcontext(workdir.mkdir())),
}  # fmt: skip


def seconds_of_loop(guarded: bool, steps: int) -> float:
    """Trains in a new directory; the seconds from the first batch to the last step's save."""
    loop, taken = train._loop, []

    def timed(*arguments):
        began = time.perf_counter()
        result = loop(*arguments)
        taken.append(time.perf_counter() - began)
        return result

    overrides = [f'total_steps={steps}', f'checkpoint.every={SAVE_EVERY}', 'eval_every=0',
                 'checkpoint.best_metric=', 'optimizer.schedule.warmup_steps=10']  # fmt: skip
    loaded = config.load(str(measure.ROOT / 'configs' / 'transformer.py'), overrides)
    with contextlib.ExitStack() as stack:
        workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), 'run')
        stack.enter_context(mock.patch.object(train, '_loop', timed))
        # Neither has them: the last evaluation and the sample are the same, and long.
        stack.enter_context(mock.patch.object(train.evaluate, 'evaluate', return_value={}))
        stack.enter_context(mock.patch.object(train, '_finish'))
        for owner, name, replacement in () if guarded else GUARDS.values():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        train.train(loaded, workdir)
    return taken[0]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=500)
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    pairs = [
        [seconds_of_loop(guarded, options.steps) for guarded in (True, False)]
        for _ in range(options.pairs + 1)
    ][1:]
    guarded, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    result = {
        'guards': list(GUARDS),
        'steps': options.steps,
        'steps_between_saves': SAVE_EVERY,
        'seconds_guarded_and_bare': [[round(value, 2) for value in pair] for pair in pairs],
        'median_ms_per_step_guarded': round(1e3 * guarded / options.steps, 2),
        'median_ms_per_step_bare': round(1e3 * bare / options.steps, 2),
        'slowdown_percent': round(100 * (statistics.median(a / b for a, b in pairs) - 1), 2),
    }
    measure.write('guards', result, options.results)
