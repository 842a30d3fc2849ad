"""From logits to the next token, as a pure function. Axes: B batch, V vocab."""

import dataclasses

import jax
import jax.numpy as jnp

from bigmodels import errors

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The filters apply together, after the temperature.

    Fields:
      temperature: 0 takes the most probable token; larger is more random.
      top_k: only the k most probable tokens; 0 for all.
      top_p: only the most probable tokens that together reach this probability
        (Holtzman et al. 2020); the most probable one always stays.
      min_p: only tokens with at least this share of the largest probability
        (Nguyen et al. 2024).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, good, allowed in (
            ('temperature', self.temperature >= 0, '0 or more'),
            ('top_k', self.top_k >= 0, '0 or more'),
            ('top_p', 0 < self.top_p <= 1, 'over 0, at most 1'),
            ('min_p', 0 <= self.min_p <= 1, 'from 0 to 1'),
        ):
            if not good:
                raise errors.UserError(f'{name} = {getattr(self, name)} must be {allowed}.')


def filtered_logits(logits: Array, sampling: Sampling) -> Array:
    """Logits [B, V] over the temperature, -inf where a filter excludes the token."""
    logits = logits.astype(jnp.float32) / sampling.temperature
    keep = jnp.ones_like(logits, bool)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        keep &= logits >= kth
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        # The least probable token whose more probable ones have not yet reached top_p.
        threshold = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        keep &= logits >= threshold
    if sampling.min_p > 0:
        keep &= logits >= logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
    return jnp.where(keep, logits, -jnp.inf)


def sample(rng: Array, logits: Array, sampling: Sampling) -> Array:
    """The next token of each row of logits [B, V]: int32 [B]."""
    if sampling.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.random.categorical(rng, filtered_logits(logits, sampling)).astype(jnp.int32)
