"""Training images changed at random, on the devices, as pure functions of (key, image).

Sound and tokens are in files of their own beside.

Example i of a step's batch has the key fold_in(key, i), so how a batch is split over devices and
hosts changes nothing. Two exceptions are those of every random number in a step: parts of an
accumulated batch, and devices under pmap, have keys of their own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, sharding
from bigmodels.augmentation import colour, geometry, mixing, randaugment

Array = jax.Array

# A number for all channels, or one for each.
PerChannel = float | Sequence[float]
IMAGES_ALONE = ('rand_augment', 'cutout', 'mixup', 'cutmix')  # have no meaning for masks


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """config.task.augment: what is done to images in training, in this order; 0 is not at all.

    Fields:
      crop: a part of at least this share of the area becomes the whole; see `geometry.crop`.
      rotate: up to so many degrees either way.
      scale: magnified by up to 1 + scale, or reduced as much.
      flip: the probability of a mirror image.
      shift: moved by up to so many pixels each way.
      brightness, contrast, saturation, hue: see `colour.jitter`.
      rand_augment: the number of random operations, of strength `magnitude` from 0 to 10; see
        `randaugment.augment`.
      cutout: the side of a square in which the image becomes the data's mean, in pixels.
      mixup, cutmix: alpha of the share that another example has of the image and of the loss, see
        `mixing`; where both are given, each example has one of them, with equal probability. The
        other example is the next in the batch.
    """

    crop: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    flip: float = 0.0
    shift: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rand_augment: int = 0
    magnitude: float = 9.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise errors.UserError(
                    f'config.task.augment.{field.name} = {value} must not be negative.'
                )
        most = {'crop': 1, 'flip': 1, 'hue': 0.5, 'magnitude': randaugment.MAX_MAGNITUDE}
        for name, limit in most.items():
            if getattr(self, name) > limit:
                raise errors.UserError(
                    f'config.task.augment.{name} = {getattr(self, name)} must be at most {limit}.'
                )

    def __call__(
        self, rng: Array, batch: Mapping[str, Array], mean: PerChannel, std: PerChannel
    ) -> dict[str, Array]:
        """The batch with its inputs changed.

        Args:
          rng: of the step.
          batch: 'inputs' [B, H, W] or [B, H, W, C], normalised; 'targets' and 'weights' [B].
          mean, std: of the pixels, such that inputs * std + mean is from 0 to 255.

        Returns:
          The batch; where images are mixed also 'other_targets' [B], the next example's, and
          'share' float32 [B], how much of each is its own: all where the next has no weight.

        Raises:
          UserError: if the inputs are no images, or have no colours that could be changed.
        """
        inputs = batch['inputs']
        if inputs.ndim not in (3, 4):
            raise errors.UserError(
                f'config.task.augment is for images [B, H, W] or [B, H, W, C]; inputs are '
                f'{list(inputs.shape)}.'
            )
        images = inputs if inputs.ndim == 4 else inputs[..., None]
        if images.shape[-1] not in (1, 3) and (self.rand_augment or any(self._jitter)):
            raise errors.UserError(
                f'config.task.augment: colours are changed of images of 1 or 3 channels, not '
                f'{images.shape[-1]}.'
            )
        change_key, mix_key = jax.random.split(rng)
        images = self._changed(change_key, images, images.shape[-1], mean, std)
        mixed = {}
        if self.mixup or self.cutmix:
            following = lambda x: jnp.roll(x, -1, axis=0)
            blended, share = _each(self._mix, mix_key, images, following(images))
            real = following(batch['weights']) > 0  # padding may be the example of another client
            images = jnp.where(real[:, None, None, None], blended, images)
            share = jnp.where(real, share, 1)
            mixed = {'share': share, 'other_targets': following(batch['targets'])}
        return {**batch, 'inputs': images.reshape(inputs.shape), **mixed}

    def check_for_masks(self) -> None:
        """Raises UserError for changes that have no meaning `with_masks`."""
        for name in IMAGES_ALONE:
            if getattr(self, name):
                raise errors.UserError(
                    f'config.task.augment.{name} is for images without masks: set it to 0.'
                )

    def with_masks(
        self, rng: Array, batch: Mapping[str, Array], num_classes: int, mean: float, std: float
    ) -> dict[str, Array]:
        """The batch with its images changed, and what belongs to their pixels moved with them.

        A pixel's class is the one that has the largest share of what it is sampled from.

        Args:
          rng: of the step.
          batch: 'inputs' [B, H, W, C], normalised; 'targets' int [B, H, W]; 'weights' [B, H, W],
            each 0 or 1.
          num_classes: of the targets.
          mean, std: as for `__call__`.
        """
        images, channels = batch['inputs'], batch['inputs'].shape[-1]
        shares = jax.nn.one_hot(batch['targets'], num_classes, dtype=images.dtype)
        joined = jnp.concatenate([images, shares, batch['weights'][..., None]], axis=-1)
        moved = self._changed(rng, joined, channels, mean, std)
        images, shares, weights = jnp.split(moved, (channels, channels + num_classes), axis=-1)
        weights = (weights[..., 0] > 0.5).astype(jnp.float32)
        return {**batch, 'inputs': images, 'targets': shares.argmax(-1), 'weights': weights}

    @property
    def _jitter(self) -> tuple[float, ...]:
        return (self.brightness, self.contrast, self.saturation, self.hue)

    def _changed(
        self, rng: Array, images: Array, channels: int, mean: PerChannel, std: PerChannel
    ) -> Array:
        """Images [B, H, W, C], the first `channels` of them colours, after every change."""
        for i, change in enumerate(self._changes(channels, mean, std)):
            images = _each(change, jax.random.fold_in(rng, i), images)
        return images

    def _changes(
        self, channels: int, mean: PerChannel, std: PerChannel
    ) -> list[Callable[[Array, Array], Array]]:
        """The functions of (key, normalised image) to apply, one after the other."""
        mean, std = (np.asarray(values, np.float32) for values in (mean, std))

        def of_pixels(change):
            def changed(rng, image):
                colours, others = jnp.split(image, (channels,), axis=-1)
                pixels = jnp.clip(colours * std + mean, 0, 255)
                return jnp.concatenate([(change(rng, pixels) - mean) / std, others], axis=-1)

            return changed

        choices = [
            (self.crop, lambda rng, x: geometry.crop(rng, x, self.crop)),
            (
                self.rotate or self.scale,
                lambda rng, x: geometry.turn(rng, x, self.rotate, self.scale),
            ),
            (self.flip, lambda rng, x: geometry.flip(rng, x, self.flip)),
            (self.shift, lambda rng, x: geometry.shift(rng, x, self.shift)),
            (any(self._jitter), of_pixels(lambda rng, x: colour.jitter(rng, x, *self._jitter))),
            (
                self.rand_augment,
                of_pixels(
                    lambda rng, x: randaugment.augment(rng, x, self.rand_augment, self.magnitude)
                ),
            ),
            (self.cutout, lambda rng, x: geometry.cutout(rng, x, self.cutout)),
        ]
        return [change for wanted, change in choices if wanted]

    def _mix(self, rng: Array, image: Array, other: Array) -> tuple[Array, Array]:
        """The image with a share of the other, and its own share."""
        if not (self.mixup and self.cutmix):
            mix, alpha = (mixing.mixup, self.mixup) if self.mixup else (mixing.cutmix, self.cutmix)
            return mix(rng, image, other, alpha)
        choice_key, mix_key = jax.random.split(rng)
        blended = mixing.mixup(mix_key, image, other, self.mixup)
        pasted = mixing.cutmix(mix_key, image, other, self.cutmix)
        first = jax.random.bernoulli(choice_key)
        return jax.tree.map(lambda a, b: jnp.where(first, a, b), blended, pasted)


def windows(rng: Array, batch: Mapping[str, Array], size: int) -> dict[str, Array]:
    """A random part of each example of a batch, with what belongs to its pixels.

    Args:
      batch: 'inputs' [B, H, W, C], and others [B, H, W]; 'weights' is 0 beyond an image's last row
        and column, where no part is taken from while the image is as large as one.

    Returns:
      The batch as [B, size, size, ...].
    """

    def one(rng, weights, value):
        real = weights > 0
        extent = jnp.stack([real.any(1).sum(), real.any(0).sum()])
        flat = value.reshape(*weights.shape, -1)
        return geometry.window(rng, flat, size, extent).reshape(size, size, *value.shape[2:])

    return {key: _each(one, rng, batch['weights'], value) for key, value in batch.items()}


def _each(function: Callable, rng: Array, images: Array, *others: Array):
    """function(key, image, ...) of every example, each with a key of its own."""
    keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(jnp.arange(len(images)))
    images = sharding.constrain(images, (sharding.BATCH_AXES,))
    return jax.vmap(function)(keys, images, *others)
