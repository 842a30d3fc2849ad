"""Moved, turned and magnified images against numpy, SciPy's definitions and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigmodels.augmentation import geometry

IMAGE = jnp.float32(np.random.default_rng(0).uniform(0, 255, (9, 9, 3)))
WIDE = jnp.float32(np.random.default_rng(1).uniform(-3, 3, (6, 11, 1)))
SEEDS = range(40)


@pytest.mark.parametrize('quarters', range(4))
def test_quarter_turns_are_exact(quarters):
    for image in (IMAGE, IMAGE[:8, :8]):
        turned = geometry.affine(image, geometry.rotation(jnp.float32(quarters * np.pi / 2)))
        np.testing.assert_allclose(turned, np.rot90(image, quarters), atol=2e-3)


def test_whole_numbers_are_pixels_and_others_between_them():
    rows, columns = np.mgrid[:6, :11].astype(np.float32)
    np.testing.assert_array_equal(geometry.sample(WIDE, rows, columns), WIDE)
    between = geometry.sample(WIDE, jnp.array([1.25]), jnp.array([3.5]))
    around = 0.75 * (WIDE[1, 3] + WIDE[1, 4]) / 2 + 0.25 * (WIDE[2, 3] + WIDE[2, 4]) / 2
    np.testing.assert_allclose(between[0], around, rtol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 5])
def test_places_beyond_are_those_that_numpy_pads_with(size):
    expected = np.pad(np.arange(size), 3 * size, 'reflect' if size > 1 else 'edge')
    found = geometry.reflected(jnp.arange(-3 * size, 4 * size), size)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('image', [IMAGE, WIDE], ids=['square', 'wide'])
def test_shifts_are_crops_of_the_padded_image_each_as_often(image):
    height, width, _ = image.shape
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), 'reflect')
    places = {(i, j): padded[i : i + height, j : j + width] for i in range(5) for j in range(5)}
    keys = jax.random.split(jax.random.key(0), 1000)
    shifted = np.asarray(jax.vmap(lambda key: geometry.shift(key, image, 2))(keys))
    counts = [(shifted == place).all((1, 2, 3)).sum() for place in places.values()]
    assert sum(counts) == 1000
    assert min(counts) > 15  # 40 expected, of standard deviation 6.2


def test_flips_are_mirror_images_as_often_as_asked():
    keys = jax.random.split(jax.random.key(0), 1000)
    flipped = np.asarray(jax.vmap(lambda key: geometry.flip(key, WIDE, 0.3))(keys))
    mirrored = (flipped == WIDE[:, ::-1]).all((1, 2, 3))
    assert ((flipped == WIDE).all((1, 2, 3)) == ~mirrored).all()
    assert 240 < mirrored.sum() < 360
    for probability, expected in ((0.0, WIDE), (1.0, WIDE[:, ::-1])):
        np.testing.assert_array_equal(geometry.flip(keys[0], WIDE, probability), expected)


def test_strengths_of_nothing_change_nothing():
    key = jax.random.key(5)
    np.testing.assert_array_equal(geometry.shift(key, IMAGE, 0), IMAGE)
    np.testing.assert_array_equal(geometry.turn(key, IMAGE, 0, 0), IMAGE)
    np.testing.assert_array_equal(geometry.cutout(key, IMAGE, 0), IMAGE)
    # All of the area: only the proportions are changed.
    whole = geometry.crop(key, np.ones_like(IMAGE), 1.0)
    np.testing.assert_allclose(whole, 1, rtol=1e-6)


def test_turns_and_magnifications_are_within_their_bounds(monkeypatch):
    matrices = []
    monkeypatch.setattr(geometry, 'affine', lambda image, matrix: matrices.append(matrix))
    for seed in SEEDS:
        geometry.turn(jax.random.key(seed), IMAGE, 30, 0.25)
    sizes = [1 / np.sqrt(np.linalg.det(matrix)) for matrix in matrices]
    angles = [np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])) for matrix in matrices]
    assert 0.8 <= min(sizes) < 0.9 < 1.1 < max(sizes) <= 1.2501
    assert -30.01 <= min(angles) < -15 < 15 < max(angles) <= 30.01


def test_pillow_turns_the_same_way():
    smooth = np.add.outer(np.arange(21.0), 3 * np.arange(21.0)).astype(np.float32)
    picture = Image.fromarray(smooth).rotate(20, Image.Resampling.BILINEAR)
    ours = geometry.affine(smooth[..., None], geometry.rotation(jnp.deg2rad(20)))
    middle = slice(6, 15)
    np.testing.assert_allclose(
        ours[middle, middle, 0], np.asarray(picture)[middle, middle], atol=1e-2
    )


def test_crops_are_linear_parts_of_the_area_and_proportions_asked_for():
    """On an image of its own coordinates, what is sampled where can be read off."""
    rows, columns = np.mgrid[:40, :60].astype(np.float32)
    image = np.stack([rows, columns], -1)
    shares, ratios = [], []
    for seed in SEEDS:
        found = np.asarray(geometry.crop(jax.random.key(seed), image, 0.3))
        # Away from the edges, where the outer halves of pixels are mirrored.
        height = (found[30, 30, 0] - found[10, 30, 0]) / 20
        width = (found[20, 45, 1] - found[20, 15, 1]) / 30
        np.testing.assert_allclose(np.diff(found[5:35, 30, 0]), height, atol=1e-4)
        assert found.min() >= 0
        assert (found.max((0, 1)) <= [39, 59]).all()
        shares.append(height * width)
        ratios.append(width / height)
    assert 0.299 < min(shares) < 0.5 < 0.8 < max(shares) <= 1.001
    assert 0.749 < min(ratios) < 0.85 < 1.15 < max(ratios) < 1.335


@pytest.mark.parametrize('side', [1, 4, 5, 100])
def test_cutout_is_a_square_or_what_is_inside_of_it(side):
    image = np.ones((12, 16, 3), np.float32)
    areas = []
    for seed in SEEDS:
        gone = np.asarray(geometry.cutout(jax.random.key(seed), image, side)) == 0
        assert (gone.all(-1) == gone.any(-1)).all()
        rows, columns = np.nonzero(gone[..., 0])
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert gone[..., 0].sum() == height * width  # a rectangle
        assert max(height, width) <= side
        areas.append(height * width)
    assert max(areas) == min(side, 12) * min(side, 16)
