"""What this machine's cores can do, measured: a CPU has no published figure that XLA reaches."""

import functools
import statistics
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
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    products = {}
    for dtype in ('float32', 'bfloat16'):
        a, b = jnp.ones((ROWS, INNER), dtype), jnp.ones((INNER, COLUMNS), dtype)
        products[dtype] = 2 * ROWS * INNER * COLUMNS / _seconds(lambda a=a, b=b: product(a, b))
    # In place: a training process keeps its memory, a new array's pages would first be zeroed.
    negative = jax.jit(jnp.negative, donate_argnums=0)
    held = [jnp.zeros(FLOATS)]

    def negate() -> jax.Array:
        held[0] = negative(held[0])
        return held[0]

    bandwidth = 2 * 4 * FLOATS / _seconds(negate)
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


def _seconds(call: Callable[[], jax.Array], repeats: int = 9) -> float:
    """The median time of a call, after one that compiles."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
