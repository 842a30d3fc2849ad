"""Images of which a share is another one's: mixup and CutMix, on a key and two images [H, W, C]."""

import jax
import jax.numpy as jnp

Array = jax.Array


def mixup(rng: Array, image: Array, other: Array, alpha: float) -> tuple[Array, Array]:
    """share * image + (1 - share) * other, the share from Beta(alpha, alpha); and the share.

    (Zhang et al. 2018)
    """
    share = jax.random.beta(rng, alpha, alpha)
    return share * image + (1 - share) * other, share


def cutmix(rng: Array, image: Array, other: Array, alpha: float) -> tuple[Array, Array]:
    """The image with a box of the other, and its share of the pixels.

    The box has the image's proportions, its area's share is from Beta(alpha, alpha), and its centre
    anywhere; what would lie beyond the image is cut (Yun et al. 2019, section 3.1).
    """
    area_key, centre_key = jax.random.split(rng)
    half = jnp.sqrt(1 - jax.random.beta(area_key, alpha, alpha)) / 2
    inside = []
    for size, centre in zip(image.shape, jax.random.uniform(centre_key, (2,)), strict=False):
        first, last = (jnp.clip(jnp.round(size * (centre + d)), 0, size) for d in (-half, half))
        inside.append((first <= jnp.arange(size)) & (jnp.arange(size) < last))
    box = inside[0][:, None] & inside[1]
    return jnp.where(box[..., None], other, image), 1 - box.mean()
