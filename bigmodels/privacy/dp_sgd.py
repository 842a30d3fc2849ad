"""Differentially private gradients (Abadi et al. 2016, algorithm 1): a transformation of them.

The gradient of each example is computed alone and clipped; their sum gets noise, and is divided by
the number of examples that is expected, not by that which was drawn.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigmodels import metrics as metrics_lib
from bigmodels import sharding, steps
from bigmodels.privacy.budget import Budget


def num_weights(weights: jax.Array) -> int:
    """How many of weights [B, ...] an example has."""
    return weights[0].size


def private_gradients(
    params: Any,
    model_state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    loss_fn: Callable,
    parts: int,
    *,
    budget: Budget,
    most_counts: Callable[[jax.Array], int] = num_weights,
) -> tuple[Any, Mapping[str, metrics_lib.Pair], Any]:
    """As `steps.accumulated_gradients`, private for one example added or removed.

    The loss of an example is the sum in metrics['loss'] that it has alone, divided by the most that
    its count may be: where all weights are 1 it is its mean.

    Args:
      most_counts: of the batch's weights, see `tasks`.
      parts: the batch is taken in so many, one after the other: the gradients of a part's examples
        are held at once, batch_size / parts arrays for each parameter. The result is the same.

    Returns:
      The noisy gradient, and the metrics with 'clipped', the share of examples whose gradient was
      longer than the norm. Metrics are not private. The model state is as it was.
    """
    noise_rng, example_rng = jax.random.split(rng)
    clip, most = budget.settings.clip, most_counts(batch['weights'])

    def contribution(row):
        index, example = row
        alone = jax.tree.map(lambda x: x[None], example)

        def loss(params):
            key = jax.random.fold_in(example_rng, index)
            _, (pairs, _) = loss_fn(params, model_state, alone, key, train=True)
            return pairs['loss'][0] / most, pairs

        grads, pairs = jax.grad(loss, has_aux=True)(params)
        grads, norm = clipped(grads, clip, example['weights'].any())
        real = (example['weights'].any() & jnp.isfinite(norm)).astype(jnp.float32)
        pairs = {**pairs, 'clipped': (real * (norm > clip), real)}
        # A loss that is not finite is left out as its gradient is: no example may stop a run.
        return grads, jax.tree.map(lambda x: jnp.where(jnp.isfinite(norm + x), x, 0), pairs)

    rows = (jnp.arange(len(batch['weights'])), batch)
    # One example is not split over devices; many are, as they lie.
    with sharding.without_axes(jax.sharding.get_abstract_mesh()):
        total, pairs = steps.sum_over_rows(contribution, rows, parts)
    return noisy_mean(total, noise_rng, budget), pairs, model_state


def clipped(tree: Any, clip: float, counts: jax.Array | bool = True) -> tuple[Any, jax.Array]:
    """A unit's contribution scaled down to a norm of at most `clip`, and the norm that it had.

    One that is not finite becomes 0, and so does one that does not count.
    """
    norm = optax.tree.norm(tree)
    scale = jnp.minimum(1, clip / jnp.maximum(norm, 1e-12))
    counts = jnp.isfinite(norm) & counts
    return jax.tree.map(lambda x: jnp.where(counts, x * scale, 0), tree), norm


def noisy_mean(total: Any, rng: jax.Array, budget: Budget) -> Any:
    """A sum of clipped contributions with its noise, divided by their expected number."""
    std = budget.noise_multiplier * budget.settings.clip
    leaves, structure = jax.tree.flatten(total)
    keys = jax.random.split(rng, len(leaves))
    noisy = [
        (leaf + std * jax.random.normal(key, leaf.shape, leaf.dtype)) / budget.expected
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return structure.unflatten(noisy)
