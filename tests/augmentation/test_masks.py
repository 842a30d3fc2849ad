"""Masks go where their images go, and random parts are of what is real."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import augmentation, errors
from bigmodels.augmentation import Augmentation

MEAN, STD = 100.0, 50.0
MOVES = dict(crop=0.3, rotate=180.0, scale=0.3, flip=0.5, shift=3)


def batch(rows=12, height=24, width=32):
    """Each pixel shows its class: 0 is 0, 1 is 255; the lower right is padding."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (rows, height // 4, width // 4))
    targets = coarse.repeat(4, 1).repeat(4, 2)
    weights = np.ones((rows, height, width), np.float32)
    weights[:, -4:], weights[:, :, -6:] = 0, 0
    return {
        'inputs': jnp.float32((255.0 * targets[..., None] - MEAN) / STD),
        'targets': jnp.int32(targets),
        'weights': jnp.asarray(weights),
    }


def changed(given, **settings):
    change = functools.partial(
        Augmentation(**settings).with_masks, num_classes=2, mean=MEAN, std=STD
    )
    return jax.jit(change)(jax.random.key(3), given)


@pytest.mark.parametrize('name', MOVES)
def test_masks_are_moved_as_their_images_are(name):
    given = batch()
    found = changed(given, **{name: MOVES[name]})
    assert (found['targets'] != given['targets']).any((1, 2)).sum() >= 4
    pixels = (found['inputs'] * STD + MEAN)[..., 0] / 255
    clear = np.abs(pixels - 0.5) > 1e-3
    np.testing.assert_array_equal((pixels > 0.5)[clear], found['targets'][clear])
    alike = Augmentation(**{name: MOVES[name]})
    weights = {**given, 'targets': jnp.int32(given['weights'])}
    moved = alike.with_masks(jax.random.key(3), weights, 2, MEAN, STD)
    assert (moved['targets'] != moved['weights']).mean() < 0.02  # where both shares are a half


def test_colours_leave_masks_as_they_are():
    given = batch()
    found = changed(given, brightness=0.5, contrast=0.5)
    for name in ('targets', 'weights'):
        np.testing.assert_array_equal(found[name], given[name])
    assert (jnp.abs(found['inputs'] - given['inputs']).max((1, 2, 3)) > 0.1).sum() >= 10


@pytest.mark.parametrize('name', augmentation.IMAGES_ALONE)
def test_what_has_no_meaning_for_masks_is_refused(name):
    settings = Augmentation(**{name: 1})
    with pytest.raises(errors.UserError, match=rf'augment\.{name} is for images without masks'):
        settings.check_for_masks()


def test_windows_are_parts_of_what_is_real_each_as_often():
    rows, columns = np.mgrid[:12, :10]
    places = np.broadcast_to(np.stack([rows, columns], -1), (600, 12, 10, 2))
    weights = np.zeros((600, 12, 10), np.float32)
    weights[:, :7, :9] = 1
    given = {'inputs': places, 'targets': places[..., 0], 'weights': weights}
    found = jax.jit(augmentation.windows, static_argnums=2)(jax.random.key(0), given, 6)
    assert found['inputs'].shape == (600, 6, 6, 2)
    assert found['weights'].all()
    np.testing.assert_array_equal(found['inputs'][..., 0], found['targets'])
    np.testing.assert_array_equal(np.diff(found['inputs'][..., 1], axis=2), 1)
    corners, counts = np.unique(found['inputs'][:, 0, 0], axis=0, return_counts=True)
    assert corners.tolist() == [[i, j] for i in range(2) for j in range(4)]
    assert counts.min() > 40  # 75 expected, of standard deviation 8.1
    small = jnp.asarray(weights).at[:, 3:].set(0)
    found = augmentation.windows(jax.random.key(0), given | {'weights': small}, 6)
    assert (found['targets'][:, 0, 0] == 0).all()
    assert (found['weights'].sum((1, 2)) == 18).all()
