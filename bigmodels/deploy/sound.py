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
    guidance: float = 1.0,
) -> Array:
    """Recordings of `length` samples, each drawn given all before it: codes int32 [B, T].

    Args:
      labels, speakers: int [B].
      seeds: uint32 [B]. A row is a function of its own seed, label and speaker.
      guidance: the logits are those of no class + guidance * (those of the class - those of none),
        so 1 is as trained (Ho and Salimans 2022, with w = guidance - 1).
    """
    count, copies = len(labels), 1
    if guidance != 1:
        copies = 2  # of each row, the second of no class
        labels = jnp.concatenate([labels, jnp.full_like(labels, model.num_classes)])
        speakers = jnp.tile(speakers, copies)
    settings = sampling.rows(count, only_used=True)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)

    def one_sample(carry, step):
        latest, cache = carry
        progress = jnp.full((copies * count, 1), step / length)
        logits, cache = model.apply(
            {'params': params}, latest[:, None], labels, speakers, progress, cache=cache
        )
        of_class, of_none = logits[:count, 0], logits[-count:, 0]
        guided = of_none + guidance * (of_class - of_none) if copies == 2 else of_class
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        codes = sample(step_keys, guided, settings)
        return (jnp.tile(codes, copies), cache), codes

    nothing = jnp.full(copies * count, mu_law.silence(model.num_levels), jnp.int32)
    first = nothing, model.init_cache(copies * count)
    _, codes = jax.lax.scan(one_sample, first, jnp.arange(length))
    return codes.T
