"""How well numbers are foretold."""

import math


def r2(mse: float, target_mean: float, target_square: float) -> float:
    """The coefficient of determination, 1 - mse / variance of targets.

    NaN where the targets are equal, or so nearly that the difference of the two means, which are of
    float32, tells little of their variance: where they are 100 deviations from 0.

    Args:
      mse: the mean squared error.
      target_mean, target_square: the means of the targets and of their squares, of standardised
        targets: the variance is their difference.
    """
    variance = target_square - target_mean**2
    return 1 - mse / variance if variance > 1e-4 * target_square else math.nan
