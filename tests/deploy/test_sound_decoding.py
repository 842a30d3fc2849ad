"""Sound from a cache against sampling from whole sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels.deploy import sound
from bigmodels.deploy.sampling import Sampling, sample
from bigmodels.models.wavenet import WaveNet

LENGTH = 24
MODEL = WaveNet(
    num_classes=3, num_speakers=2, num_layers=4, cycle=3, embed_dim=6, skip_dim=6, num_levels=16
)
LABELS, SPEAKERS = jnp.array([0, 1, 2, 1]), jnp.array([1, 0, 1, 0])
SEEDS = jnp.array([7, 8, 8, 9], jnp.uint32)


@pytest.mark.parametrize('guidance', [1.0, 1.5])
def test_samples_are_those_of_the_whole_sequence_and_each_row_is_its_own(guidance):
    """Exactly: the same noise and probabilities from all samples before at once."""
    progress = jnp.broadcast_to(jnp.arange(LENGTH) / LENGTH, (4, LENGTH))
    inputs = jnp.zeros((4, LENGTH), jnp.int32)
    params = MODEL.init(jax.random.key(1), inputs, LABELS, SPEAKERS, progress)['params']
    params = jax.tree.map(lambda leaf: 3 * leaf, params)  # so that who speaks tells
    generate = jax.jit(
        functools.partial(
            sound.generate, MODEL, length=LENGTH, sampling=Sampling(0.9), guidance=guidance
        )
    )
    codes = generate(params, LABELS, SPEAKERS, SEEDS)
    before = jnp.concatenate([jnp.full((4, 1), 8), codes[:, :-1]], axis=1)
    logits = MODEL.apply({'params': params}, before, LABELS, SPEAKERS, progress)
    of_none = MODEL.apply({'params': params}, before, jnp.full(4, 3), SPEAKERS, progress)
    assert np.abs(logits - of_none).max() > 0.1
    logits = of_none + guidance * (logits - of_none)
    for row in range(4):
        key = jax.random.fold_in(jax.random.key(0), SEEDS[row])
        keys = jax.vmap(lambda t, key=key: jax.random.fold_in(key, t))(jnp.arange(LENGTH))
        expected = sample(keys, logits[row], Sampling(0.9).rows(LENGTH))
        np.testing.assert_array_equal(codes[row], expected)
    assert len(np.unique(codes, axis=0)) == 4
    alone = generate(params, LABELS[2:3], SPEAKERS[2:3], SEEDS[2:3])
    np.testing.assert_array_equal(alone[0], codes[2])
