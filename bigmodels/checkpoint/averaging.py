"""The average of saved steps, as a run that evaluation and generation open like any other.

Averages of the weights along a run often do better than its last ones (Izmailov et al. 2018).
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigmodels import checkpoint, errors, experiment, rundir
from bigmodels.checkpoint import values
from bigmodels.state import TrainState


def average(
    workdir: pathlib.Path,
    steps: Sequence[int],
    out: pathlib.Path,
    weights: Sequence[float] | None = None,
) -> None:
    """Makes the run `out` of the averaged evaluation params of saved steps of a run.

    Each step gives its moving average where it has one. Sums are taken in float64. The model
    state, such as BatchNorm's statistics, is that of the last of the steps, and belongs to that
    step's params rather than to the average. Of adapters each matrix is averaged by itself.

    `out` holds no optimiser state and is not trained on: `rundir.prepare` refuses it by its
    average.json, which says what it was made of.

    Args:
      workdir: the run; only its files are read, no model is built.
      steps: saved steps of it, each once.
      out: a directory that does not exist or is empty.
      weights: positive, one for each step, in proportion; by default equal.

    Raises:
      UserError: for steps that are not saved, are damaged or differ in shape, for weights that
        are no such numbers, and if `out` is in use or cannot be written.
    """
    weights = [1.0] * len(steps) if weights is None else list(weights)
    _check(steps, weights, out)
    settings = experiment.from_config(rundir.read_config(workdir)).checkpoint
    directory = workdir / rundir.CHECKPOINTS
    for step in steps:
        checkpoint.good_step(directory, step, settings)
    _check_shapes(directory, steps)
    params = _weighted_mean(directory, steps, [weight / sum(weights) for weight in weights])

    last = max(steps)
    state = TrainState(
        step=jax.numpy.asarray(last, jax.numpy.int32),
        params=jax.tree.map(jax.numpy.asarray, params),
        model_state=values.read(directory, last, 'model_state'),
        opt_state=(),
    )
    made_of = {
        'workdir': str(workdir),
        'steps': list(steps),
        'parts': [values.evaluation_part(directory, step) for step in steps],
        'weights': weights,
    }
    rundir.derive(out, workdir, {}, state, made_of, rundir.AVERAGE)


def _check(steps: Sequence[int], weights: Sequence[float], out: pathlib.Path) -> None:
    if len(set(steps)) < len(steps):
        raise errors.UserError(f'The steps {_listed(steps)} name one twice: use its weight.')
    if len(weights) != len(steps):
        raise errors.UserError(
            f'There are {len(weights)} weights for {len(steps)} steps: give one for each.'
        )
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise errors.UserError(f'The weights {_listed(weights)} must be positive numbers.')
    rundir.check_unused(out, '--out')


def _check_shapes(directory: pathlib.Path, steps: Sequence[int]) -> None:
    first, *others = (
        values.shapes(directory, step, values.evaluation_part(directory, step)) for step in steps
    )
    for step, other in zip(steps[1:], others, strict=True):
        if other != first:
            raise errors.UserError(
                f'Steps {steps[0]} and {step} in {directory} hold parameters of other names, '
                f'shapes or types, which have no average.'
            )


def _weighted_mean(directory: pathlib.Path, steps: Sequence[int], shares: Sequence[float]) -> Any:
    """sum(share * params) in float64, one step in memory at a time; of the params' own dtype."""
    saved = values.shapes(directory, steps[0], values.evaluation_part(directory, steps[0]))
    mean = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), saved)
    for step, share in zip(steps, shares, strict=True):
        params = values.read(directory, step, values.evaluation_part(directory, step))
        for sums, leaf in zip(jax.tree.leaves(mean), jax.tree.leaves(params), strict=True):
            sums += share * leaf.astype(np.float64)
    return jax.tree.map(lambda sums, leaf: sums.astype(leaf.dtype), mean, saved)


def _listed(numbers: Sequence[float]) -> str:
    return ', '.join(map(str, numbers))
