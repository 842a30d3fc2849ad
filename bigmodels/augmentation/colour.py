"""What colour pixels have: on images [H, W, C] with values from 0 to 255, C 1 or 3.

The operations are those of Pillow's ImageEnhance and ImageOps, to the rounding of its 8 bits.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, of red, green and blue


def jitter(
    rng: Array, image: Array, brightness: float, contrast: float, saturation: float, hue: float
) -> Array:
    """Each of the first three enhanced by a factor uniform in 1 +- its strength, not under 0.

    The hue is moved by a share of its circle uniform in +-hue. What is 0 changes nothing.
    """
    keys = jax.random.split(rng, 4)
    enhancements = (
        (adjust_brightness, brightness),
        (adjust_contrast, contrast),
        (adjust_saturation, saturation),
    )
    for key, (adjust, strength) in zip(keys, enhancements, strict=False):
        if strength:
            factor = jax.random.uniform(key, minval=max(1 - strength, 0), maxval=1 + strength)
            image = adjust(image, factor)
    if hue:
        image = shift_hue(image, jax.random.uniform(keys[3], minval=-hue, maxval=hue))
    return image


def blend(one: Array, other: Array, factor: Array) -> Array:
    """From `one` at factor 0 by way of `other` at 1 to beyond it, cut to [0, 255]."""
    return jnp.clip(one + factor * (other - one), 0, 255)


def grey(image: Array) -> Array:
    """[H, W, C] -> [H, W, 1]."""
    if image.shape[-1] == 1:
        return image
    return sum(weight * image[..., i : i + 1] for i, weight in enumerate(LUMA))


def adjust_brightness(image: Array, factor: Array) -> Array:
    """Black at 0, the image at 1."""
    return blend(0, image, factor)


def adjust_contrast(image: Array, factor: Array) -> Array:
    """Its mean grey at 0, the image at 1."""
    return blend(jnp.round(grey(image).mean()), image, factor)


def adjust_saturation(image: Array, factor: Array) -> Array:
    """Grey at 0, the image at 1."""
    return blend(grey(image), image, factor)


def adjust_sharpness(image: Array, factor: Array) -> Array:
    """Smoothed at 0, the image at 1; the outermost pixels stay."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    around = sum(image[i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3))
    smooth = (around + 4 * image[1:-1, 1:-1]) / 13
    return blend(image.at[1:-1, 1:-1].set(smooth), image, factor)


def solarize(image: Array, threshold: Array) -> Array:
    """Inverted from a threshold on."""
    return jnp.where(image < threshold, image, 255 - image)


def posterize(image: Array, bits: Array) -> Array:
    """Only the highest of 8 bits are kept."""
    step = jnp.exp2(8 - bits)
    return jnp.floor(jnp.round(image) / step) * step


def auto_contrast(image: Array) -> Array:
    """Each channel stretched to [0, 255]; one of a single value stays."""
    low, high = image.min((0, 1)), image.max((0, 1))
    stretched = (image - low) * (255 / jnp.maximum(high - low, 1e-6))
    return jnp.where(high > low, stretched, image)


def equalize(image: Array) -> Array:
    """Each channel's values spread so that each is as frequent; one of a single value stays."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: Array) -> Array:
    """[H, W], by Pillow's integer arithmetic."""
    values = jnp.clip(jnp.round(channel), 0, 255).astype(jnp.int32)
    counts = jnp.bincount(values.ravel(), length=256)
    last = counts[values.max()]
    step = (counts.sum() - last) // 255
    before = jnp.cumsum(counts) - counts
    table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table[values].astype(channel.dtype), channel)


def shift_hue(image: Array, share: Array) -> Array:
    """The hue moved round by a share of its circle; saturation and value (of HSV) stay."""
    if image.shape[-1] == 1:
        return image
    value, least = image.max(-1), image.min(-1)
    chroma = value - least
    red, green, blue = jnp.moveaxis(image, -1, 0)
    ratio = lambda difference: difference / jnp.maximum(chroma, 1e-6)
    # Channels are compared with one another, not with `value`: XLA may compute it with other
    # rounding, and where none is equal to it the hue would be of the wrong third.
    sixths = jnp.select(
        [(red >= green) & (red >= blue), green >= blue],
        [ratio(green - blue), 2 + ratio(blue - red)],
        4 + ratio(red - green),
    )
    sixths = sixths + 6 * share
    # Each channel falls from the value to the least and rises again, a third of the circle apart.
    place = (sixths[..., None] + jnp.array([5.0, 3.0, 1.0])) % 6
    fall = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return value[..., None] - chroma[..., None] * fall
