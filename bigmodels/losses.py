"""Losses of single examples, on arrays. `metrics.pair` reduces them under weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def softmax_cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """-log softmax(logits)[target], in nats, in float32.

    Args:
      logits: [..., V].
      targets: int [...].
      label_smoothing: the share of the target's probability spread over all classes
        (Szegedy et al. 2016).
      z_loss: weight of log(sum(exp(logits)))^2, which keeps logits small (PaLM, section 5).

    Returns:
      [...] float32.
    """
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it fuses, and its gradient needs no scatter.
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    target_logit = jnp.where(is_target, logits, 0).sum(-1)
    if label_smoothing:
        target_logit = (1 - label_smoothing) * target_logit + label_smoothing * logits.mean(-1)
    loss = log_normalizer - target_logit
    return loss + z_loss * jnp.square(log_normalizer) if z_loss else loss


def chunked_over_tokens(
    loss_of_hidden: Callable[[Array, Array], Array], hidden: Array, targets: Array, chunk: int
) -> Array:
    """`loss_of_hidden(hidden, targets)`, computed for `chunk` tokens at a time.

    The logits of a large vocabulary are never held for more than one chunk; the backward pass
    computes each chunk's again.

    Args:
      loss_of_hidden: ([N, D], int [N]) -> pytree of [N].
      hidden: [..., D].
      targets: int [...].

    Returns:
      The pytree of [...] that the unchunked call gives.
    """
    shape = targets.shape
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    count = len(targets)
    padding = -count % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    one_chunk = jax.checkpoint(lambda pair: loss_of_hidden(*pair))
    values = jax.lax.map(one_chunk, (hidden, targets))
    return jax.tree.map(lambda value: value.reshape(-1)[:count].reshape(shape), values)
