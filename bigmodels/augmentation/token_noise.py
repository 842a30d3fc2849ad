"""Noise on token ids, as pure functions of (rng, arrays) for the device.

Axes: B batch, L length, M chosen positions.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def drop_tokens(rng: Array, segment_ids: Array, rate: float) -> Array:
    """segment_ids [B, L] in which each token is padding, 0, with probability `rate`.

    A model that leaves out padding then reads the text without these words (Iyyer et al. 2015,
    section 2.2.1).
    """
    return jnp.where(jax.random.bernoulli(rng, rate, segment_ids.shape), 0, segment_ids)


def choose_positions(rng: Array, shape: tuple[int, int], count: int) -> Array:
    """`count` different positions in each row of [B, L], all equally likely: int32 [B, M]."""
    _, positions = jax.lax.top_k(jax.random.uniform(rng, shape), count)
    return positions


def corrupt(
    rng: Array,
    tokens: Array,
    mask_id: int,
    random_share: float = 0.1,
    kept_share: float = 0.1,
    num_ids: int | None = None,
) -> Array:
    """What a masked language model sees in the place of tokens [B, M] that it is to tell.

    The mask, or with the given probabilities another token, each as likely, or the token itself
    (Devlin et al. 2019, section 3.1). Tokens are ids under `num_ids`, by default `mask_id`.
    """
    kind_rng, token_rng = jax.random.split(rng)
    kind = jax.random.uniform(kind_rng, tokens.shape)
    other = jax.random.randint(token_rng, tokens.shape, 0, num_ids or mask_id, tokens.dtype)
    replaced = jnp.where(kind < random_share, other, mask_id)
    return jnp.where(kind >= 1 - kept_share, tokens, replaced)
