"""Which tokens are dropped, chosen and replaced, and how often."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import sharding
from bigmodels.augmentation import token_noise

KEY = jax.random.key(3)


def test_dropped_tokens_are_padding_at_the_given_rate():
    segment_ids = jnp.asarray(np.random.default_rng(0).integers(0, 3, (64, 200)))
    given = np.asarray(token_noise.drop_tokens(KEY, segment_ids, 0.3))
    changed = given != segment_ids
    assert (given[changed] == 0).all()
    real = np.asarray(segment_ids) > 0
    np.testing.assert_allclose(changed[real].mean(), 0.3, atol=0.02)
    np.testing.assert_array_equal(token_noise.drop_tokens(KEY, segment_ids, 0.0), segment_ids)


def test_eight_devices_drop_the_same_tokens():
    batch = {'segment_ids': np.ones((16, 200), np.int32)}
    drop = jax.jit(lambda batch: token_noise.drop_tokens(KEY, batch['segment_ids'], 0.3))
    mesh = sharding.make_mesh(sharding.MeshShape(data=4, fsdp=2))
    np.testing.assert_array_equal(drop(sharding.put_batch(batch, mesh)), drop(batch))


def test_positions_differ_in_each_row_and_are_equally_likely():
    positions = np.asarray(token_noise.choose_positions(KEY, (2000, 10), 3))
    assert positions.shape == (2000, 3)
    assert all(len(set(row)) == 3 for row in positions.tolist())
    counts = np.bincount(positions.ravel(), minlength=10)
    np.testing.assert_allclose(counts / 2000, 0.3, atol=0.03)


def test_of_the_chosen_tokens_most_are_masks_some_others_some_themselves():
    tokens = jnp.full((100, 400), 7)
    given = np.asarray(token_noise.corrupt(KEY, tokens, mask_id=50))
    assert given.max() == 50
    np.testing.assert_allclose((given == 50).mean(), 0.8, atol=0.01)
    others = np.bincount(given[given < 50], minlength=50) / given.size
    np.testing.assert_allclose(others[7], 0.1 + 0.1 / 50, atol=0.005)
    np.testing.assert_allclose(np.delete(others, 7), 0.1 / 50, atol=0.001)
    plain = token_noise.corrupt(KEY, tokens, 50, random_share=0.0, kept_share=0.0)
    assert (plain == 50).all()
