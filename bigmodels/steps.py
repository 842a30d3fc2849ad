"""The training and evaluation steps: pure functions of (state, batch)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigmodels import guard as guard_lib
from bigmodels import metrics as metrics_lib
from bigmodels.state import TrainState

Batch = Mapping[str, jax.Array]


def step_rng(seed: int, step: jax.Array | int) -> jax.Array:
    """rng(t): the key of step t, from the seed and t alone."""
    return jax.random.fold_in(jax.random.key(seed), step)


def accumulated_gradients(
    params: Any, model_state: Any, batch: Batch, rng: jax.Array, loss_fn: Callable, parts: int
) -> tuple[Any, Mapping[str, metrics_lib.Pair], Any]:
    """Gradient, summed metrics and model state of a batch taken in `parts`.

    Each part's gradient counts by its share of the weights, so that the result is the gradient
    of the mean over the whole batch however the padding falls. Except with BatchNorm, which
    normalises each part by its own statistics and moves their averages once a part.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if parts == 1:
        grads, (metrics, model_state) = gradient(params, model_state, batch, rng, train=True)
        return grads, metrics, model_state

    def one_part(carry, inputs):
        total, metrics, model_state = carry
        index, part = inputs
        grads, (part_metrics, model_state) = gradient(
            params, model_state, part, jax.random.fold_in(rng, index), train=True
        )
        count = part_metrics['loss'][1]
        total = jax.tree.map(lambda t, g: t + count * g, total, grads)
        return (total, metrics_lib.add(metrics, part_metrics), model_state), None

    split = _split(batch, parts)
    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(
        functools.partial(loss_fn, train=True), params, model_state, first, rng
    )[1][0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, shapes))
    (total, metrics, model_state), _ = jax.lax.scan(
        one_part, (*zeros, model_state), (jnp.arange(parts), split)
    )
    count = jnp.maximum(metrics['loss'][1], 1e-9)
    return jax.tree.map(lambda t: t / count, total), metrics, model_state


def _split(rows: Any, parts: int) -> Any:
    """Arrays [B, ...] as [parts, B / parts, ...].

    Part i takes rows i, i + parts, ...: each device keeps its own rows.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)


def sum_over_rows(function: Callable, rows: Any, parts: int) -> Any:
    """The sum of what `function` makes of each row of arrays [B, ...], taken in `parts`."""
    total = lambda part: jax.tree.map(lambda x: x.sum(0), jax.vmap(function)(part))
    if parts == 1:
        return total(rows)
    split = _split(rows, parts)
    shapes = jax.eval_shape(total, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, total(part)), None)
    return jax.lax.scan(add, zeros, split)[0]


def train_step(
    state: TrainState,
    batch: Batch,
    *given: Any,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    seed: int,
    schedule: optax.Schedule,
    gradients: Callable = accumulated_gradients,
    spent: Callable = lambda step: {},
    accumulate: int = 1,
    ema_decay: float = 0.0,
    zeros_stay: bool = False,
    guard: guard_lib.Guard = guard_lib.STOP,
    join: Callable = lambda params, frozen: params,
    axis_name: str | None = None,
) -> tuple[TrainState, Mapping[str, Any]]:
    """One update, or at a bad step none: then only `step` and the guard's memory change.

    Args:
      state: before the update.
      batch: arrays [B, ...].
      given: what else the loss takes, which no step changes and no state holds: that of a teacher.
      loss_fn: a task's; its loss is the mean that metrics['loss'] = (sum, count) gives.
      gradients: of a batch, with the arguments and results of `accumulated_gradients`.
      spent: figures of what the run has spent by a step, further metrics; see `privacy`.
      accumulate: the gradient is taken over this many parts of the batch, one after the other;
        it equals the gradient of the whole.
      ema_decay: of the parameters' moving average; smaller in the first steps.
      zeros_stay: a number that is 0 after the update, as pruned ones are, is 0 in the average too.
      guard: what makes a step bad, and how `state.guard` remembers.
      join: (params, state.frozen) -> the params that `loss_fn` takes; see `adapters.joined`.
      axis_name: under pmap, the mapped axis.

    Returns:
      The state after the update, and metrics: pairs from the task; float32 scalars
      'learning_rate', 'grad_norm', 'param_norm' and those of `guard.judge`; and 'grad_squares'
      float32 [number of parameter arrays], the squared norm of each one's gradient.
    """
    rng = step_rng(seed, state.step)
    if axis_name is not None:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    frozen, state = state.frozen, state.replace(frozen=None)  # which the update does not touch

    def of_trained(params, *rest, **options):
        return loss_fn(join(params, frozen), *rest, *given, **options)

    grads, metrics, model_state = gradients(
        state.params, state.model_state, batch, rng, of_trained, accumulate
    )
    if axis_name is not None:
        share = metrics['loss'][1] / jnp.maximum(jax.lax.psum(metrics['loss'][1], axis_name), 1e-9)
        grads = jax.lax.psum(jax.tree.map(lambda g: g * share, grads), axis_name)
        metrics = jax.lax.psum(metrics, axis_name)
        model_state = jax.lax.pmean(model_state, axis_name)
    squares = [jnp.square(g).sum() for g in jax.tree.leaves(grads)]
    grad_norm = jnp.sqrt(sum(squares))
    updates = state.step if state.guard is None else state.step - state.guard.skips
    loss = metrics_lib.mean(metrics['loss'])
    good, memory, judged = guard_lib.judge(guard, state.guard, loss, grad_norm)
    # Not a select: that needs the old optimiser state beside the new, so XLA copies it.
    updated = lambda: _updated(state, grads, model_state, tx, ema_decay, zeros_stay)
    kept = jax.lax.cond(good, updated, lambda: state)
    metrics = {
        **metrics,
        **judged,
        **spent(state.step + 1),
        'learning_rate': schedule(updates),
        'grad_norm': grad_norm,
        'grad_squares': jnp.stack(squares),
        'param_norm': optax.tree.norm(kept.params),
    }
    return kept.replace(step=state.step + 1, guard=memory, frozen=frozen), metrics


def _updated(
    state: TrainState,
    grads: Any,
    model_state: Any,
    tx: optax.GradientTransformation,
    decay: float,
    zeros_stay: bool,
) -> TrainState:
    """The state with its params, optimiser state, averages and model state updated."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, ema_params, 1 - decay)
        if zeros_stay:
            ema_params = jax.tree.map(lambda p, e: jnp.where(p == 0, 0, e), params, ema_params)
    return state.replace(
        params=params, model_state=model_state, opt_state=opt_state, ema_params=ema_params
    )


def eval_step(
    params: Any,
    model_state: Any,
    batch: Batch,
    *,
    loss_fn: Callable,
    outcomes: Callable | None = None,
) -> tuple[Mapping[str, metrics_lib.Pair], Mapping[str, jax.Array]]:
    """The metric pairs of one batch, and what a task's scores need of each example.

    Args:
      outcomes: a task's, (params, model_state, batch) -> arrays [B, ...]; none for none.
    """
    _, (metrics, _) = loss_fn(params, model_state, batch, jax.random.key(0), train=False)
    return metrics, outcomes(params, model_state, batch) if outcomes else {}
