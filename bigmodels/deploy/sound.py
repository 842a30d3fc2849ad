"""Sound from a `WaveNet`, sample by sample, the whole loop one compiled program.

Axes: B batch, T samples.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bigmodels.deploy.sampling import Sampling, sample
from bigmodels.models.parts import mu_law
from bigmodels.models.wavenet import WaveNet

Array = jax.Array


def generate(
    model: WaveNet,
    params: Mapping,
    labels: Array,
    speakers: Array,
    seeds: Array,
    length: int,
    sampling: Sampling,
) -> Array:
    """Recordings of `length` samples, each drawn given all before it: codes int32 [B, T].

    Args:
      labels, speakers: int [B].
      seeds: uint32 [B]. A row is a function of its own seed, label and speaker.
    """
    settings = sampling.rows(len(labels), only_used=True)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)

    def one_sample(carry, step):
        latest, cache = carry
        progress = jnp.full((len(labels), 1), step / length)
        logits, cache = model.apply(
            {'params': params}, latest[:, None], labels, speakers, progress, cache=cache
        )
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        codes = sample(step_keys, logits[:, 0], settings)
        return (codes, cache), codes

    nothing = jnp.full(len(labels), mu_law.silence(model.num_levels), jnp.int32)
    first = nothing, model.init_cache(len(labels))
    _, codes = jax.lax.scan(one_sample, first, jnp.arange(length))
    return codes.T
