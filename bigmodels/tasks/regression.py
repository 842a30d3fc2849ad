"""What tasks share whose targets are numbers: losses, mean errors, and R2."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodels import losses, metrics
from bigmodels.scores import regression

Loss = Literal['squared', 'absolute', 'huber']  # keys of `losses.REGRESSION`


def pairs(
    loss: Loss, predictions: jax.Array, targets: jax.Array, weights: jax.Array, train: bool
) -> dict[str, metrics.Pair]:
    """'loss', 'mse' and 'mae' of standardised numbers [B, ...]; in evaluation what R2 needs too.

    Args:
      weights: [B]; an example counts by the mean over its numbers.
    """
    errors = predictions.astype(jnp.float32) - targets
    values = {'loss': losses.REGRESSION[loss](predictions, targets)}
    values |= {'mse': jnp.square(errors), 'mae': jnp.abs(errors)}
    if not train:
        values |= {'target_mean': targets, 'target_square': jnp.square(targets)}
    return {
        name: metrics.pair(value.reshape(len(weights), -1).mean(1), weights)
        for name, value in values.items()
    }


def with_r2(values: Mapping[str, float]) -> dict[str, float]:
    """The means of `pairs`, with 'r2' in the place of what it is made of."""
    values = dict(values)
    moments = values.pop('target_mean'), values.pop('target_square')
    return values | {'r2': regression.r2(values['mse'], *moments)}
