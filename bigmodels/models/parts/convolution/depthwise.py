"""Convolution of sequences and images in which each channel has taps of its own.

Axes: B batch, L... one or two axes of length, D channels, K... taps along these.
"""

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

Array = jax.Array
LAYOUTS = {1: ('NWC', 'WIO', 'NWC'), 2: ('NHWC', 'HWIO', 'NHWC')}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """x [B, L..., D], kernel [K..., D], K odd -> [B, L / stride..., D], summed in float32.

    y[t] = sum over k of kernel[k] * x[stride * t + k - K // 2], with zeros around x; in its dtype.
    """
    shifted = functools.partial(_shifted, stride=stride)
    own = functools.partial(_convolve, stride=stride)
    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=own)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    """XLA's own convolution, which has no fast form on CPUs."""
    return jax.lax.conv_general_dilated(
        x,
        jnp.expand_dims(kernel, -2).astype(x.dtype),
        window_strides=(stride,) * (x.ndim - 2),
        padding=[(taps // 2, taps // 2) for taps in kernel.shape[:-1]],
        dimension_numbers=LAYOUTS[x.ndim - 2],
        feature_group_count=x.shape[-1],
    )


def _shifted(x: Array, kernel: Array, stride: int) -> Array:
    """A sum of shifted products, which XLA fuses into one loop."""
    taps = kernel.reshape(-1, kernel.shape[-1])
    parts = _shifts(x, kernel.shape[:-1], stride)
    return sum(part * tap for part, tap in zip(parts, taps, strict=True)).astype(x.dtype)


def _shifts(x: Array, counts: tuple[int, ...], stride: int) -> Iterator[Array]:
    """x[stride * t + k - count // 2] for each k, the last axis' the fastest: float32."""
    around = [(count // 2, count // 2) for count in counts]
    padded = jnp.pad(x.astype(jnp.float32), [(0, 0), *around, (0, 0)])
    for first in itertools.product(*map(range, counts)):
        within = (slice(k, k + n, stride) for k, n in zip(first, x.shape[1:-1], strict=True))
        yield padded[:, *within]


def _kernel_gradient(x: Array, g: Array, taps: tuple[int, ...], stride: int) -> Array:
    """The sums of g times what each tap meets: float32 [K..., D].

    One example and tap after the other: XLA sums over leading axes value by value with long
    strides, which is fast only within the caches; and all taps written out take long to compile.
    """
    around = [(count // 2, count // 2) for count in taps]
    spans = [stride * (count - 1) + 1 for count in g.shape[1:-1]]

    def add(sums, example):
        x, g = (one.astype(jnp.float32) for one in example)
        padded = jnp.pad(x, [*around, (0, 0)])

        def sum_of(tap):
            first = jnp.unravel_index(tap, taps)
            part = jax.lax.dynamic_slice(padded, (*first, 0), (*spans, x.shape[-1]))
            part = part[(slice(None, None, stride),) * len(taps)]
            return (part * g).sum(tuple(range(len(taps))))

        return sums + jax.lax.map(sum_of, jnp.arange(math.prod(taps))), None

    zeros = jnp.zeros((math.prod(taps), x.shape[-1]))
    return jax.lax.scan(add, zeros, (x, g))[0].reshape(*taps, -1)


def _forward(x, kernel, stride):
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
    def shifted(x, kernel, g):
        dkernel = _kernel_gradient(x, g, kernel.shape[:-1], stride)
        # Zeros between the gradients, and behind the last as far as x goes.
        apart = [
            (0, size - 1 - stride * (count - 1), stride - 1)
            for size, count in zip(x.shape[1:-1], g.shape[1:-1], strict=True)
        ]
        apart = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *apart, (0, 0, 0)])
        dx = _shifted(apart, jnp.flip(kernel, range(kernel.ndim - 1)), 1)
        return dx, dkernel.astype(kernel.dtype)

    def own(x, kernel, g):
        return jax.vjp(functools.partial(_convolve, stride=stride), x, kernel)[1](g)

    return jax.lax.platform_dependent(*residuals, g, cpu=shifted, default=own)


convolve.defvjp(_forward, _backward)
