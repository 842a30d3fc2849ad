"""What happens at a step whose loss or gradient is not finite, or whose loss is a spike.

The device decides inside the step and keeps the old state at a bad one, without waiting for the
host. The host reads of it some steps later, tells what the step saw, and stops or goes on.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors


@dataclasses.dataclass(frozen=True)
class Guard:
    """config.guard.

    A step is bad if its loss or the norm of its gradient is not finite, or if its loss is a spike.
    A bad step changes nothing but the step's number: schedules and pruning wait too.

    Fields:
      policy: 'stop' ends the command at a bad step; 'skip' warns and goes on.
      max_skips: 'skip' stops when more steps than this are bad in a row.
      spike_sigma: a loss this many standard deviations above the mean of the last `spike_window`
        losses of good steps is a spike; 0 for none. Nothing is one before there are as many.
      spike_window: the number of losses.
    """

    policy: Literal['stop', 'skip'] = 'stop'
    max_skips: int = 10
    spike_sigma: float = 0.0
    spike_window: int = 128


STOP = Guard()


class Memory(flax.struct.PyTreeNode):
    """What the decision needs to know of earlier steps; a part of the TrainState.

    Fields:
      skips_in_a_row, skips, accepted: int32, the bad steps up to now without a good one between,
        all bad ones, and all good ones.
      losses: float32 [spike_window], of good steps, the oldest overwritten first; None where
        spikes are not looked for.
    """

    skips_in_a_row: jax.Array
    skips: jax.Array
    accepted: jax.Array
    losses: jax.Array | None = None


def init_memory(settings: Guard) -> Memory | None:
    """The memory before the first step; None where the decision needs none."""
    if settings.policy == 'stop' and not settings.spike_sigma:
        return None
    # One array each: all are donated.
    zero = lambda: jnp.zeros((), jnp.int32)
    losses = jnp.zeros(settings.spike_window, jnp.float32) if settings.spike_sigma else None
    return Memory(zero(), zero(), zero(), losses)


def judge(
    settings: Guard, memory: Memory | None, loss: jax.Array, grad_norm: jax.Array
) -> tuple[jax.Array, Memory | None, dict[str, jax.Array]]:
    """Whether a step is good (a bool scalar), the memory after it, and metrics.

    Args:
      loss, grad_norm: float32 scalars.

    Returns:
      The metrics are float32 scalars: 'skipped', 1 for a bad step, and where there is a memory
      'skips_in_a_row' and 'skips', with this step counted.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if memory is None:
        return good, None, {'skipped': 1 - good.astype(jnp.float32)}
    losses = memory.losses
    if losses is not None:
        limit = losses.mean() + settings.spike_sigma * losses.std()
        good &= (memory.accepted < len(losses)) | (loss <= limit)
        recorded = losses.at[memory.accepted % len(losses)].set(loss)
        losses = jnp.where(good, recorded, losses)
    memory = Memory(
        skips_in_a_row=jnp.where(good, 0, memory.skips_in_a_row + 1),
        skips=memory.skips + ~good,
        accepted=memory.accepted + good,
        losses=losses,
    )
    counts = {'skips_in_a_row': memory.skips_in_a_row, 'skips': memory.skips}
    figures = {'skipped': ~good, **counts}
    return good, memory, jax.tree.map(lambda x: x.astype(jnp.float32), figures)


@dataclasses.dataclass(frozen=True)
class Watch:
    """The host's side: reads a step's figures, and tells of a bad one or stops.

    Fields:
      settings: of the run.
      names: of the parameters, in the order of the metric 'grad_squares'.
      describe_batch: (step) -> which examples the step saw, and how to look at them.
    """

    settings: Guard = Guard()
    names: Sequence[str] = ()
    describe_batch: Callable[[int], str] = lambda step: ''

    def check(self, step: int, values: Mapping[str, float], grad_squares: np.ndarray) -> str | None:
        """What was wrong with a skipped step, in words, or None if it was good.

        Raises:
          UserError: where the run must stop.
        """
        skipped = values.get('skipped', 0.0) > 0
        if not skipped and math.isfinite(values['loss']) and math.isfinite(values['param_norm']):
            return None
        grad_norm = values.get('grad_norm', math.nan)
        in_a_row, skips = values.get('skips_in_a_row', 0.0), values.get('skips', 0.0)
        # A good gradient's update that is not finite has already been made, whatever the policy.
        goes_on = self.settings.policy == 'skip' and skipped and in_a_row <= self.settings.max_skips
        outcome = f'skipped, {in_a_row:.0f} in a row, {skips:.0f} in all' if goes_on else 'stopped'
        if skipped and math.isfinite(values['loss']) and math.isfinite(grad_norm):
            outcome = f'a spike, {outcome}'
        told = [
            f'At step {step} (batch {step - 1}) the loss is {values["loss"]:.6g}, the norm of the '
            f'gradient {grad_norm:.6g} and that of the parameters '
            f'{values["param_norm"]:.6g}: {outcome}.',
            self._gradients(grad_squares),
            self.describe_batch(step),
        ]
        if goes_on:
            return ' '.join(filter(None, told))
        raise errors.UserError(' '.join(filter(None, [*told, self._advice()])))

    def _gradients(self, squares: np.ndarray) -> str:
        finite = np.isfinite(squares)
        bad = [name for name, good in zip(self.names, finite, strict=True) if not good]
        if not bad:
            return ''
        return f'Gradients that are not finite, {len(bad)} of {len(finite)}: {errors.some(bad)}.'

    def _advice(self) -> str:
        advice = (
            'Checkpoints of earlier steps are good. A lower learning rate, longer warm-up or a '
            'clip_norm may help'
        )
        if self.settings.policy == 'stop':
            return f'{advice}, or --config.guard.policy=skip --resume=changed to skip such steps.'
        return f'{advice}; config.guard.max_skips = {self.settings.max_skips} was not enough.'


UNNAMED = Watch()
