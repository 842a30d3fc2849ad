"""Recolouring against Pillow's 8 bits and Python's colorsys."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bigmodels.augmentation import colour

rng = np.random.default_rng(0)
# Of a narrow range, so that stretching shows; 300 pixels, so that equalizing has a step of one.
PIXELS = rng.integers(40, 200, (15, 20, 3), np.uint8)
GREY = rng.integers(90, 120, (24, 24, 1), np.uint8)
ENHANCEMENTS = {
    'brightness': ImageEnhance.Brightness,
    'contrast': ImageEnhance.Contrast,
    'saturation': ImageEnhance.Color,
    'sharpness': ImageEnhance.Sharpness,
}
OPERATIONS = {
    **{
        f'{name}_{factor}': (
            functools.partial(getattr(colour, f'adjust_{name}'), factor=factor),
            lambda image, kind=kind, factor=factor: kind(image).enhance(factor),
        )
        for name, kind in ENHANCEMENTS.items()
        for factor in (0.0, 0.3, 1.9)
    },
    'auto_contrast': (colour.auto_contrast, ImageOps.autocontrast),
    'equalize': (colour.equalize, ImageOps.equalize),
    'solarize': (lambda x: colour.solarize(x, 100), lambda image: ImageOps.solarize(image, 100)),
    'posterize': (lambda x: colour.posterize(x, 5), lambda image: ImageOps.posterize(image, 5)),
}


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('pixels', [PIXELS, GREY], ids=['colour', 'grey'])
def test_pillow_does_the_same(name, pixels):
    ours, theirs = OPERATIONS[name]
    picture = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    expected = np.asarray(theirs(picture)).reshape(pixels.shape)
    found = ours(jnp.float32(pixels))
    exact = name in ('equalize', 'solarize', 'posterize')
    # Pillow rounds what it blends with, and the blend.
    assert np.abs(found - expected.astype(np.float32)).max() <= (0 if exact else 2)
    if not (name.startswith('saturation') and pixels is GREY):
        assert np.abs(expected.astype(int) - pixels).max() > 5  # it does something


@pytest.mark.parametrize('change', [colour.auto_contrast, colour.equalize])
def test_an_image_of_one_value_has_nothing_to_spread(change):
    flat = jnp.full((5, 5, 3), 77.0)
    np.testing.assert_array_equal(change(flat), flat)


@pytest.mark.parametrize('share', [0.0, 0.25, -0.4, 1.0])
def test_hues_move_round_their_circle(share):
    pixels = np.concatenate([PIXELS[0], [[0, 0, 0], [9, 9, 9], [255, 0, 0], [0, 255, 255]]])
    expected = []
    for red, green, blue in pixels / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb((hue + share) % 1, saturation, value))
    found = colour.shift_hue(jnp.float32(pixels)[None], share)[0]
    np.testing.assert_allclose(found / 255, expected, atol=1e-5)


def test_jitter_of_no_strength_changes_nothing_and_of_some_no_further_than_it_says():
    image = jnp.float32(PIXELS)
    key = jax.random.key(3)
    np.testing.assert_array_equal(colour.jitter(key, image, 0, 0, 0, 0), image)
    ratios = []
    for seed in range(50):
        darker = colour.jitter(jax.random.key(seed), image / 2, 0.4, 0, 0, 0)
        ratios.append(float((darker / (image / 2)).mean()))
        np.testing.assert_allclose(darker, image / 2 * ratios[-1], rtol=1e-4)
    assert 0.6 <= min(ratios) < 0.7
    assert 1.3 < max(ratios) <= 1.4
