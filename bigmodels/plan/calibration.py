"""What this machine's cores can do, measured: a CPU has no published figure that XLA reaches."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodels import hardware
from bigmodels.models.parts import layers

# One of a Transformer's layers, and one of its activations: larger ones measure how fast the
# system zeroes new pages, which a training process is spared, see `runs.keep_freed_memory`.
ROWS, INNER, COLUMNS = 2048, 1024, 2048
FLOATS = 4 * 2**20


@functools.cache
def this_machine(num_devices: int) -> hardware.Chip:
    """The facts of one of `num_devices` simulated devices, which share the cores and the memory.

    The peak is what a layer's three products reach, those of its gradients included, in float32
    and in bfloat16, see `Chip.peak_of`.
    """
    products = {}
    for dtype in ('float32', 'bfloat16'):
        x, kernel = jnp.ones((ROWS, INNER), dtype), jnp.ones((INNER, COLUMNS), dtype)
        g = jnp.ones((ROWS, COLUMNS), dtype)
        seconds = _seconds(functools.partial(_forward_and_backward, x, kernel, g))
        products[dtype] = 3 * 2 * ROWS * INNER * COLUMNS / seconds
    negative, x = jax.jit(jnp.negative), jnp.zeros(FLOATS)
    bandwidth = 2 * 4 * FLOATS / _seconds(lambda: negative(x), repeats=99)
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


@jax.jit
def _forward_and_backward(x, kernel, g):
    y, gradients = jax.vjp(layers.matmul, x, kernel)
    return y, gradients(g)


def _seconds(call: Callable[[], jax.Array], repeats: int = 9) -> float:
    """The median time of a call, after one that compiles."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
