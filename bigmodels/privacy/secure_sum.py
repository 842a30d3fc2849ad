"""A sum of clients' vectors of which the server sees masked terms alone (Bonawitz et al. 2017).

Each pair of clients shares a key, here derived from one of the round; of what it makes one adds and
the other subtracts. Terms are integers of fixed point modulo 2**32, so that the masks cancel to the
last bit, whatever the order of the sum. How clients agree on keys, and what happens when one leaves
a round, is not part of it: all terms are here.
"""

from typing import Any

import jax
import jax.numpy as jnp

FRACTION_BITS = 24
LARGEST = 64.0  # of a term; the sum is to be under 128


def encoded(tree: Any) -> Any:
    """Floats as uint32 of fixed point, rounded towards 0, so that no norm becomes larger.

    What is over LARGEST is cut.
    """

    def encode(x: jax.Array) -> jax.Array:
        scaled = jnp.trunc(jnp.clip(x, -LARGEST, LARGEST) * 2.0**FRACTION_BITS)
        return jax.lax.bitcast_convert_type(scaled.astype(jnp.int32), jnp.uint32)

    return jax.tree.map(encode, tree)


def decoded(tree: Any) -> Any:
    """The floats of a sum of `encoded` terms; right while it is under 128."""
    signed = lambda x: jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.tree.map(lambda x: signed(x).astype(jnp.float32) / 2.0**FRACTION_BITS, tree)


def masked(terms: Any, client: jax.Array | int, clients: int, rng: jax.Array) -> Any:
    """A client's term with the masks of all its pairs: by itself it is uniformly random.

    Args:
      terms: uint32 arrays.
      client: its number, under `clients`.
      rng: of the round.
    """
    leaves, structure = jax.tree.flatten(terms)

    def add(leaves, other):
        low, high = jnp.minimum(client, other), jnp.maximum(client, other)
        pair = jax.random.fold_in(jax.random.fold_in(rng, low), high)
        keys = jax.random.split(pair, len(leaves))
        # Unsigned: what is subtracted wraps round.
        sign = jnp.where(client == other, 0, jnp.where(client < other, 1, -1)).astype(jnp.uint32)
        return [
            leaf + sign * jax.random.bits(key, leaf.shape, jnp.uint32)
            for key, leaf in zip(keys, leaves, strict=True)
        ], None

    return structure.unflatten(jax.lax.scan(add, leaves, jnp.arange(clients))[0])
