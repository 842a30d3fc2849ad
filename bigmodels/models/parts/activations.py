"""Activations by name, as functions of float32 that are exact in low precision."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodels import sharding

Array = jax.Array


def _recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same in float32, in the dtype given, of which the backward pass keeps the arguments only.

    In low precision XLA's CPU backend rounds after every operation, at several times the cost. On
    GPUs XLA would undo it: merge what is computed again with the first time, which is then kept in
    float32, and not round the gradient, which the kernel's and the bias' read in float32.
    """

    def wide(*arguments: Array) -> Array:
        return function(*(x.astype(jnp.float32) for x in arguments))

    @jax.custom_vjp
    def compute(*arguments: Array) -> Array:
        return wide(*arguments).astype(arguments[0].dtype)

    def backward(arguments, g):
        _, pull_back = jax.vjp(wide, *sharding.apart_on_gpu(arguments))
        return sharding.apart_on_gpu(pull_back(g.astype(jnp.float32)))

    compute.defvjp(lambda *arguments: (compute(*arguments), arguments), backward)
    return compute


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'relu': jax.nn.relu,
    'relu_squared': _recomputed(lambda x: jnp.square(jax.nn.relu(x))),  # So et al. 2021
    'gelu': _recomputed(jax.nn.gelu),  # the tanh form, as in GPT-2
    'gelu_exact': _recomputed(lambda x: jax.nn.gelu(x, approximate=False)),  # by erf, as in BERT
    'quick_gelu': _recomputed(lambda x: x * jax.nn.sigmoid(1.702 * x)),  # as in CLIP
    'silu': _recomputed(jax.nn.silu),
    'tanh': jnp.tanh,
}
# Gated units (Shazeer 2020): the activation of one projection times a second one, (gate, up) -> it.
GATED_ACTIVATIONS: dict[str, Callable[[Array, Array], Array]] = {
    'swiglu': _recomputed(lambda gate, up: jax.nn.silu(gate) * up),
    'geglu': _recomputed(lambda gate, up: jax.nn.gelu(gate) * up),
}
