"""Boxes go where what is in them goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.augmentation import with_boxes
from bigmodels.augmentation.with_boxes import BoxAugmentation

MEAN, STD = 100.0, 50.0


def batch(rows=16, height=48, width=64):
    """Rectangles of 200 on a ground of the mean; each image has one, and a place for another."""
    rng = np.random.default_rng(0)
    pixels = np.full((rows, height, width, 3), MEAN, np.float32)
    boxes = np.zeros((rows, 2, 4), np.float32)
    for image, box in zip(pixels, boxes, strict=True):
        left, top = rng.integers(0, width - 20), rng.integers(0, height - 20)
        wide, tall = rng.integers(10, 20, 2)
        box[0] = left, top, left + wide, top + tall
        image[top : top + tall, left : left + wide] = 200
    labels = np.tile(np.int32([1, -1]), (rows, 1))
    extent = np.tile(np.float32([width, height]), (rows, 1))
    return {'inputs': (pixels - MEAN) / STD, 'boxes': boxes, 'labels': labels, 'extent': extent}


def bright(image):
    """The box of what is over half as bright as a rectangle."""
    where = np.asarray(image[..., 0]) > (200 - MEAN) / STD / 2
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(
    ('settings', 'tolerance'),
    [
        (dict(flip=1.0), 0),
        (dict(flip_vertical=1.0), 0),
        (dict(flip=0.5, flip_vertical=0.5), 0),
        (dict(scale=0.5), 1),
        (dict(shift=0.3), 1),
        (dict(flip=0.5, scale=0.3, shift=0.2), 1),
    ],
)
def test_boxes_move_with_their_images(settings, tolerance):
    given = batch()
    change = jax.jit(lambda rng, b: BoxAugmentation(**settings)(rng, b, MEAN, STD))
    found = change(jax.random.key(1), given)
    assert (found['boxes'] != given['boxes']).any((1, 2)).sum() >= 8
    kept = np.asarray(found['labels'][:, 0] == 1)
    assert kept.sum() >= 10
    for i in np.flatnonzero(kept):
        np.testing.assert_allclose(found['boxes'][i, 0], bright(found['inputs'][i]), atol=tolerance)
    assert (found['labels'][:, 1] == -1).all()
    other = change(jax.random.key(2), given)
    if tolerance:
        assert (other['boxes'] != found['boxes']).any()


def test_twice_mirrored_is_as_it_was():
    given = batch(1)
    image, boxes = given['inputs'][0], jnp.asarray(given['boxes'][0])
    for axis in (0, 1):
        once = with_boxes.flipped(image, boxes, axis)
        twice = with_boxes.flipped(*once, axis)
        np.testing.assert_array_equal(twice[0], image)
        np.testing.assert_array_equal(twice[1], boxes)


def test_what_has_left_the_image_is_no_target_and_the_rest_is_cut():
    boxes = jnp.float32([[0, 0, 10, 10], [40, 20, 60, 40], [10, 0, 30, 10]])
    image, labels = jnp.ones((48, 64, 3)), jnp.int32([0, 1, -1])
    shift = jnp.float32([20 / 64, 0])
    image, moved, labels = with_boxes.moved(image, boxes, labels, jnp.float32(1), shift)
    np.testing.assert_allclose(moved[:2], [[20, 0, 30, 10], [60, 20, 64, 40]], atol=1e-5)
    assert labels.tolist() == [0, -1, -1]  # a fifth of the second is left
    assert not image[:, :20].any()  # beyond the edge there is nothing
    np.testing.assert_allclose(image[:, 20:], 1, atol=1e-5)


def test_colours_leave_boxes_as_they_are_and_each_image_has_its_own():
    given = batch()
    settings = BoxAugmentation(brightness=0.3, contrast=0.3, saturation=0.3)
    found = settings(jax.random.key(0), given, MEAN, STD)
    np.testing.assert_array_equal(found['boxes'], given['boxes'])
    assert (jnp.abs(found['inputs'] - given['inputs']).max((1, 2, 3)) > 0.05).sum() >= 12


def test_padding_keeps_its_colour():
    given = batch()
    given['inputs'][:, 40:], given['inputs'][:, :, 50:] = 0, 0
    given['extent'][:] = 50, 40
    found = BoxAugmentation(brightness=0.5, contrast=0.5)(jax.random.key(0), given, MEAN, STD)
    assert not found['inputs'][:, 40:].any()
    assert not found['inputs'][:, :, 50:].any()
    assert found['inputs'][:, :40, :50].any((1, 2, 3)).all()


def test_what_cannot_be_is_said():
    with pytest.raises(errors.UserError, match=r'augment\.flip = 1\.5 must be from 0 to 1'):
        BoxAugmentation(flip=1.5)
    with pytest.raises(errors.UserError, match=r'augment\.scale = -1\.0 must be'):
        BoxAugmentation(scale=-1.0)
