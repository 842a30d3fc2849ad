"""How well numbers are foretold."""

import math


def r2(mse: float, target_mean: float, target_square: float) -> float:
    """The coefficient of determination, 1 - mse / variance of targets; NaN where they are equal.

    Args:
      mse: the mean squared error.
      target_mean, target_square: the means of the targets and of their squares, of standardised
        targets: the variance is their difference.
    """
    variance = target_square - target_mean**2
    return 1 - mse / variance if variance > 0 else math.nan
