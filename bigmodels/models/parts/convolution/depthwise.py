"""Convolution of sequences in which each channel has taps of its own.

Axes: B batch, L length, D channels, K taps.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """x [B, L, D], kernel [K, D], K odd -> [B, L, D] in x's dtype, summed in float32.

    y[t] = sum over k of kernel[k] * x[t + k - K // 2], with zeros around the sequences.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted, default=_convolve)


def _convolve(x: Array, kernel: Array) -> Array:
    """XLA's own convolution, which has no fast form on CPUs."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, None].astype(x.dtype),
        window_strides=(1,),
        padding='SAME',
        dimension_numbers=('NWC', 'WIO', 'NWC'),
        feature_group_count=x.shape[-1],
    )


def _shifted(x: Array, kernel: Array) -> Array:
    """A sum of shifted products, which XLA fuses into one loop."""
    total = sum(part * tap for part, tap in zip(_shifts(x, len(kernel)), kernel, strict=True))
    return total.astype(x.dtype)


def _shifts(x: Array, count: int) -> list[Array]:
    """x[t + k - count // 2] for each k < count, float32 [B, L, D]."""
    length = x.shape[1]
    padded = jnp.pad(x.astype(jnp.float32), [(0, 0), (count // 2, count // 2), (0, 0)])
    return [padded[:, k : k + length] for k in range(count)]


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(residuals, g):
    def shifted(x, kernel, g):
        wide = g.astype(jnp.float32)
        taps = [(part * wide).sum((0, 1)) for part in _shifts(x, len(kernel))]
        return _shifted(g, kernel[::-1]), jnp.stack(taps).astype(kernel.dtype)

    def own(x, kernel, g):
        return jax.vjp(_convolve, x, kernel)[1](g)

    return jax.lax.platform_dependent(*residuals, g, cpu=shifted, default=own)


convolve.defvjp(_forward, _backward)
