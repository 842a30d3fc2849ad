"""RandAugment's operations against Pillow, and how they are chosen."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bigmodels.augmentation import randaugment

PIXELS = np.random.default_rng(0).integers(30, 220, (16, 24, 3), np.uint8)
STRENGTH = 0.5
MIDDLE = (slice(6, 10), slice(10, 14))  # where no operation has mirrored pixels


@functools.partial(jax.jit, static_argnums=2)
def operate(image, choice, strength, sign):
    return randaugment.operate(image, choice, strength, sign)


def moved(matrix):
    """By Pillow's map from a result's (x, y) to the place in the image it is of."""
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def sheared(image, x=0.0, y=0.0):
    """About the middle of the image, in the middles of pixels, as ours."""
    width, height = image.size
    return moved((1, x, -x * height / 2, y, 1, -y * width / 2))(image)


EXPECTED = {
    'identity': lambda image: image,
    'auto_contrast': ImageOps.autocontrast,
    'equalize': ImageOps.equalize,
    'solarize': lambda image: ImageOps.solarize(image, 128),
    'posterize': lambda image: ImageOps.posterize(image, 6),
    'saturation': lambda image: ImageEnhance.Color(image).enhance(1.45),
    'contrast': lambda image: ImageEnhance.Contrast(image).enhance(1.45),
    'brightness': lambda image: ImageEnhance.Brightness(image).enhance(1.45),
    'sharpness': lambda image: ImageEnhance.Sharpness(image).enhance(1.45),
    'rotate': lambda image: image.rotate(15, Image.Resampling.BILINEAR),
    'shear_x': lambda image: sheared(image, x=0.15),
    'shear_y': lambda image: sheared(image, y=0.15),
    'translate_x': moved((1, 0, 0.225 * 24, 0, 1, 0)),
    'translate_y': moved((1, 0, 0, 0, 1, 0.225 * 16)),
}


@pytest.mark.parametrize('name', randaugment.OPERATIONS)
def test_pillow_does_the_same(name):
    choice = randaugment.OPERATIONS.index(name)
    found = operate(jnp.float32(PIXELS), choice, STRENGTH, 1.0)
    expected = np.asarray(EXPECTED[name](Image.fromarray(PIXELS)), np.float32)
    assert np.abs(found - expected)[MIDDLE].max() <= 2
    if name not in randaugment.OPERATIONS[-5:]:
        assert np.abs(found - expected).max() <= 2


def test_no_strength_moves_nothing_and_a_sign_reverses_what_has_one():
    image = jnp.float32(PIXELS)
    for name in randaugment.OPERATIONS:
        choice = randaugment.OPERATIONS.index(name)
        if name not in ('auto_contrast', 'equalize'):
            same = operate(image, choice, 0.0, 1.0)
            np.testing.assert_allclose(same, image, atol=1e-3, err_msg=name)
    rotate = randaugment.OPERATIONS.index('rotate')
    there = operate(image[:, :16], rotate, STRENGTH, 1.0)
    mirrored = operate(image[:, 15::-1], rotate, STRENGTH, -1.0)
    np.testing.assert_allclose(there, mirrored[:, ::-1], atol=1e-2)


def test_operations_and_signs_are_as_frequent(monkeypatch):
    def noted(image, choice, strength, sign):
        assert strength == 0.7
        return image.at[0, choice, (sign > 0).astype(int)].add(1)

    monkeypatch.setattr(randaugment, 'operate', noted)
    keys = jax.random.split(jax.random.key(0), 1400)
    counts = jax.vmap(
        lambda key: randaugment.augment(key, jnp.zeros((1, 14, 2)), 2, 7)
    )(keys)  # fmt: skip
    np.testing.assert_array_equal(counts.sum((1, 2, 3)), 2)
    assert counts.sum(0).min() > 60  # of 100, a standard deviation of 10
    pairs = collections.Counter(len(np.nonzero(row)[0]) for row in np.asarray(counts)[:, 0])
    assert pairs[1] < 100 < pairs[2]  # the two of an example are independent
