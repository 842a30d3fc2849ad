"""The state of a run: everything that the next step needs, and nothing else."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """What a step maps to the next.

    Fields:
      step: int32, the number of updates made.
      params: trained arrays, float32.
      model_state: the model's other collections, such as BatchNorm's averages.
      opt_state: of the optax chain.
      ema_params: moving average of params, used in evaluation; None where it is off.
      guard: a `guard.Memory`, or None where the guard needs none.
      frozen: what no step changes, in types of its own, see `adapters`; None where all is trained.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema_params: Any = None
    guard: Any = None
    frozen: Any = None

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and to deploy; `frozen` is joined to them."""
        return self.params if self.ema_params is None else self.ema_params


def init_state(
    variables: Mapping[str, Any],
    *,
    tx: optax.GradientTransformation,
    use_ema: bool,
    guard: Any = None,
    frozen: Any = None,
) -> TrainState:
    """The state before the first step. Pure, so `jax.eval_shape` gives its shapes.

    Args:
      variables: 'params', those that are trained, and the model's other collections.
      tx: the optimiser.
      guard: the memory before the first step, see `guard.init_memory`.
      frozen: see `TrainState`.
    """
    model_state = dict(variables)
    params = model_state.pop('params')
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if use_ema else None,
        guard=guard,
        frozen=frozen,
    )
