"""How large the inputs of kernels get, measured over batches: scales that are set once and for all.

What a kernel is multiplied with is known within a model alone. It is asked for by gradients: one of
a probe beside each kernel, whose backward pass gives the largest input in its place. So the same
function measures any model, with scanned layers and remat too, and no model knows of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from bigmodels import compress, errors
from bigmodels.models.parts.kernels import Observed, Rounded
from bigmodels.tasks import base


def measured(task: Any, params: Mapping, model_state: Any, batches: Sequence[Mapping]) -> Mapping:
    """Params of `compress.kept` with the scale of every `Rounded` kernel's inputs.

    Args:
      task: with the model that takes them, fitted.
      batches: of training.

    Raises:
      UserError: for a kernel that multiplies several times in a step.
    """
    once = base.calling_once(task)
    leaves = flax.traverse_util.flatten_dict(params, sep='/')
    plain = flax.traverse_util.flatten_dict(jax.jit(compress.plain)(params), sep='/')
    probes = {name: jnp.zeros((*leaf.scale.shape, 2))
              for name, leaf in leaves.items() if isinstance(leaf, Rounded)}  # fmt: skip

    @jax.jit
    def largest(batch: Mapping) -> Mapping:
        def loss(probes: Mapping) -> jax.Array:
            observed = {name: Observed(plain[name], probe) for name, probe in probes.items()}
            tree = flax.traverse_util.unflatten_dict(plain | observed, sep='/')
            return once.loss_fn(tree, model_state, batch, jax.random.key(0), train=False)[0]

        return jax.grad(loss)(probes)

    found = [largest(batch) for batch in batches]
    most = jax.tree.map(lambda *values: jnp.stack(values).max(0), *found)
    if shared := [name for name, value in most.items() if (value[..., 1] > 1).any()]:
        raise errors.UserError(
            f'One scale does not fit what is multiplied several times in a step: '
            f'{errors.some(shared)}. Take a8, or leave it out of --targets.'
        )
    scales = {name: value[..., 0] / 127 for name, value in most.items()}
    scaled = {
        # Of what no batch multiplies nothing is known.
        name: leaves[name].replace(scale=jnp.where(scale > 0, scale, 1 / 127))
        for name, scale in scales.items()
    }
    return flax.traverse_util.unflatten_dict(leaves | scaled, sep='/')
