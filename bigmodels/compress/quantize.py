"""Weights in few bits: symmetric rounding, one scale for each output feature or group of inputs.

Axes: D input features, F output features, G groups; L scanned layers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.models.parts.kernels import Kernel

Array = jax.Array
# Name -> the type of the values, and the largest of them that is used. The integers are symmetric,
# so that -x is rounded as x; fp8 is e4m3 of Micikevicius et al. 2022.
FORMATS = {
    'int8': (jnp.int8, 127),
    'int4': (jnp.int4, 7),
    'fp8': (jnp.float8_e4m3fn, 448),
}


@dataclasses.dataclass(frozen=True)
class Format:
    """How weights are kept.

    Fields:
      name: of FORMATS.
      group_size: so many neighbouring inputs share a scale; None for all inputs of an output.
    """

    name: str = 'int8'
    group_size: int | None = None

    def __post_init__(self):
        if self.name not in FORMATS:
            raise errors.UserError(
                f'There is no format {self.name!r} of weights; choose from: {", ".join(FORMATS)}.'
            )
        if self.group_size is not None and self.group_size < 1:
            raise errors.UserError(f'group_size = {self.group_size} must be at least 1, or None.')


def quantize(transposed: Array, form: Format) -> Kernel:
    """transposed [F, D], or [F, ...] with D inputs in all, as the nearest values * scales.

    An integer is off by at most half of its scale, the largest magnitude it is for over 127 or 7;
    fp8 by at most 1/16 of the value itself, or half of its smallest step, scale / 1024.

    Raises:
      UserError: if D is not divisible by the group size.
    """
    dtype, top = FORMATS[form.name]
    outputs, inputs = len(transposed), math.prod(transposed.shape[1:])
    size = form.group_size or inputs
    if inputs % size:
        raise errors.UserError(
            f'A kernel of {inputs} inputs has no whole number of groups of {size}: choose a '
            f'group_size that divides {inputs}.'
        )
    grouped = transposed.astype(jnp.float32).reshape(outputs, -1, size)
    largest = jnp.abs(grouped).max(-1)
    scales = jnp.where(largest > 0, largest, 1) / top
    values = jnp.clip(grouped / scales[..., None], -top, top)
    if jnp.issubdtype(dtype, jnp.integer):
        values = jnp.round(values)
    return Kernel(values.astype(dtype).reshape(transposed.shape), scales)
