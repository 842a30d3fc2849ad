"""Shares of mixed images are what is said of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bigmodels.augmentation import mixing

KEYS = jax.random.split(jax.random.key(0), 2000)
BLACK, WHITE = jnp.zeros((10, 14, 3)), jnp.ones((10, 14, 3))


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixup_is_a_mean_of_shares_from_a_beta_distribution(alpha):
    images, shares = jax.vmap(lambda key: mixing.mixup(key, WHITE, BLACK, alpha))(KEYS)
    np.testing.assert_allclose(images, np.broadcast_to(shares[:, None, None, None], images.shape))
    assert scipy.stats.kstest(np.asarray(shares), scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels():
    images, shares = jax.vmap(lambda key: mixing.cutmix(key, WHITE, BLACK, 1.0))(KEYS)
    images = np.asarray(images)
    np.testing.assert_allclose(images.mean((1, 2, 3)), shares, rtol=1e-5, atol=1e-6)
    whole = 0
    for image, share in zip(images[:200], shares, strict=False):
        rows, columns = np.nonzero(image[..., 0] == 0)
        if len(rows):
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(rows) == height * width
            if rows.min() and columns.min() and rows.max() < 9 and columns.max() < 13:
                whole += 1
                assert abs(height / 10 - width / 14) <= 0.2  # of the image's proportions
        assert 0 <= share <= 1
    assert whole > 8


def test_a_box_that_is_not_cut_has_the_share_drawn_for_it(monkeypatch):
    monkeypatch.setattr(jax.random, 'beta', lambda key, a, b: jnp.float32(0.75))
    monkeypatch.setattr(jax.random, 'uniform', lambda key, shape: jnp.full(shape, 0.5))
    image, share = mixing.cutmix(jax.random.key(0), jnp.ones((8, 12, 1)), jnp.zeros((8, 12, 1)), 1)
    assert share == 0.75
    np.testing.assert_array_equal(image[2:6, 3:9], 0)
    assert image.sum() == 96 - 24
