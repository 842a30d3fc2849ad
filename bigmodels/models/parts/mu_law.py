"""Samples of sound as one of a few levels, which are finer near silence (WaveNet, section 2.2).

The companding is that of ITU-T G.711's mu-law with mu = levels - 1, by its formula.
"""

import jax
import jax.numpy as jnp


def encode(samples: jax.Array, levels: int = 256) -> jax.Array:
    """Samples [...] from -1 to 1, cut there, as int32 from 0 to levels - 1."""
    mu = levels - 1
    samples = jnp.clip(samples, -1, 1)
    companded = jnp.sign(samples) * jnp.log1p(mu * jnp.abs(samples)) / jnp.log1p(mu)
    return jnp.floor((companded + 1) / 2 * mu + 0.5).astype(jnp.int32)


def decode(codes: jax.Array, levels: int = 256) -> jax.Array:
    """The float32 samples from -1 to 1 that stand for codes [...], see `encode`."""
    mu = levels - 1
    companded = 2 * codes.astype(jnp.float32) / mu - 1
    return jnp.sign(companded) * jnp.expm1(jnp.abs(companded) * jnp.log1p(mu)) / mu


def silence(levels: int = 256) -> int:
    """The code of 0."""
    return levels // 2
