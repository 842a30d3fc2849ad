"""What this machine's cores can do, measured: a CPU has no published figure that XLA reaches."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodels import hardware

# One of a Transformer's products, and an array far larger than any cache.
ROWS, INNER, COLUMNS = 2048, 1024, 2048
FLOATS = 64 * 2**20


@functools.cache
def this_machine(num_devices: int) -> hardware.Chip:
    """The facts of one of `num_devices` simulated devices, which share the cores and the memory.

    The peak is of products of float32 and of bfloat16 matrices, see `Chip.peak_of`.
    """
    products = {
        dtype: 2 * ROWS * INNER * COLUMNS / _seconds(_product, *_matrices(dtype))
        for dtype in ('float32', 'bfloat16')
    }
    bandwidth = 2 * 4 * FLOATS / _seconds(jnp.negative, jnp.zeros(FLOATS))
    return hardware.Chip(
        name='cpu',
        kind='cpu',
        peak_flops=products['bfloat16'] / num_devices,
        memory=float('inf'),
        bandwidth=bandwidth / num_devices,
        links=1,
        link_bandwidth=bandwidth / num_devices,
        network=None,
        watts=0.0,
        float32_flops=products['float32'] / num_devices,
    )


def _matrices(dtype: str) -> tuple[jax.Array, jax.Array]:
    return jnp.ones((ROWS, INNER), dtype), jnp.ones((INNER, COLUMNS), dtype)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _seconds(function: Callable, *arguments: jax.Array, repeats: int = 9) -> float:
    """The median time of a call, after one that compiles."""
    function = jax.jit(function)
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]
