"""RandAugment (Cubuk et al. 2020): some operations at random, all of one strength."""

import jax
import jax.numpy as jnp

from bigmodels.augmentation import colour, geometry

Array = jax.Array

MAX_MAGNITUDE = 10
# The strongest of each operation, as in AutoAugment (Cubuk et al. 2019, table 6).
SHEAR, TRANSLATION, DEGREES, ENHANCEMENT, POSTERIZED_BITS = 0.3, 0.45, 30, 0.9, 4


def augment(rng: Array, image: Array, layers: int, magnitude: float) -> Array:
    """One of 14 operations after another, each with equal probability and a random sign.

    Args:
      image: [H, W, C] with values from 0 to 255.
      layers: how many.
      magnitude: of all, from 0 to 10.
    """
    for key in jax.random.split(rng, layers):
        choice_key, sign_key = jax.random.split(key)
        choice = jax.random.randint(choice_key, (), 0, len(OPERATIONS))
        strength = magnitude / MAX_MAGNITUDE
        image = operate(image, choice, strength, jax.random.rademacher(sign_key, (), image.dtype))
    return image


def operate(image: Array, choice: Array | int, strength: float, sign: Array | float) -> Array:
    """The operation of index `choice` in OPERATIONS on an image [H, W, C]; strength from 0 to 1."""
    matrices, offsets = _placements(strength * sign, image.shape)
    # One resampling serves all that move pixels; for the others it is the identity, exactly.
    image = geometry.affine(image, matrices[choice], offsets[choice])
    factor = 1 + ENHANCEMENT * strength * sign
    recolourings = {
        'auto_contrast': colour.auto_contrast,
        'equalize': colour.equalize,
        'solarize': lambda x: colour.solarize(x, 256 * (1 - strength)),
        'posterize': lambda x: colour.posterize(x, 8 - round(POSTERIZED_BITS * strength)),
        'saturation': lambda x: colour.adjust_saturation(x, factor),
        'contrast': lambda x: colour.adjust_contrast(x, factor),
        'brightness': lambda x: colour.adjust_brightness(x, factor),
        'sharpness': lambda x: colour.adjust_sharpness(x, factor),
    }
    branches = [recolourings.get(name, lambda x: x) for name in OPERATIONS]
    return jax.lax.switch(choice, branches, image)


OPERATIONS = (
    'identity',
    'auto_contrast',
    'equalize',
    'solarize',
    'posterize',
    'saturation',
    'contrast',
    'brightness',
    'sharpness',
    'rotate',
    'shear_x',
    'shear_y',
    'translate_x',
    'translate_y',
)


def _placements(strength: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The matrix [2, 2] and offset [2] for `geometry.affine` of each operation."""
    height, width, _ = shape
    still = jnp.eye(2)
    matrices = {
        'rotate': geometry.rotation(jnp.deg2rad(DEGREES * strength)),
        'shear_x': still.at[1, 0].set(SHEAR * strength),
        'shear_y': still.at[0, 1].set(SHEAR * strength),
    }
    offsets = {
        'translate_x': jnp.array([0, TRANSLATION * width]) * strength,
        'translate_y': jnp.array([TRANSLATION * height, 0]) * strength,
    }
    return (
        jnp.stack([matrices.get(name, still) for name in OPERATIONS]),
        jnp.stack([offsets.get(name, jnp.zeros(2)) for name in OPERATIONS]),
    )
