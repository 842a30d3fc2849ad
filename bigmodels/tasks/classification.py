"""One class for each input."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import config, errors, metrics
from bigmodels.augmentation import Augmentation, geometry
from bigmodels.data import images
from bigmodels.tasks.base import Defaults, Examples, array_of, checked_labels
from bigmodels.tasks.classes import NamedClasses

AUGMENTATION = 0x41  # folded into a step's key: dropout's are by the names of modules


@dataclasses.dataclass(frozen=True)
class Classification(NamedClasses, Defaults):
    """Images, videos or feature vectors [B, ...] -> one of the model's `num_classes`.

    Fields:
      model: maps inputs [B, ...] to logits [B, classes].
      input_key, label_key: of the source's records.
      image_size: images are scaled until their shorter side has so many pixels, and cut to a square
        about the middle; 0 leaves them as they are. Frames of videos likewise.
      num_frames: inputs are videos [T, H, W, C], of which so many frames are kept, evenly spaced;
        0 for other inputs.
      mean, std: inputs are normalised to (x - mean) / std; a number each, or one for each channel.
        Pixels of pictures that are answered are from 0 to 255: so should those of training be.
      augment: changes of training images, see `augmentation.Augmentation`.
      top_k: adds the share of examples whose class is among the k most probable; 0 for none.
      mirror: of images; outside training the logits are the mean of those of an image and of its
        mirror image, left and right exchanged, which takes twice the time.
      shift: of images; outside training the logits are the mean of those of an image and of the
        image moved by so many pixels up and left, and down and right (of all of them and their
        mirror images, if both are wanted), which takes three times the time.

    And those of `classes.NamedClasses`: the loss, and what is reported.
    """

    model: nn.Module
    input_key: str = 'image'
    label_key: str = 'label'
    image_size: int = 0
    num_frames: int = 0
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    augment: Mapping[str, Any] | None = None
    top_k: int = 0
    mirror: bool = False
    shift: int = 0

    sections: ClassVar = {'augment': Augmentation}
    label_ndim: ClassVar = 0  # the axes of a record's label
    target_keys: ClassVar = ('label_key',)
    answer_fields: ClassVar = ('mirror', 'shift')
    alike_in_teacher: ClassVar = ('image_size', 'num_frames', 'mean', 'std')

    def __post_init__(self):
        self._augmentation()  # what is wrong with it is said before anything is opened
        self.check_classes()
        for name in ('num_frames', 'shift'):
            if getattr(self, name) < 0:
                raise errors.UserError(
                    f'config.task.{name} = {getattr(self, name)} must not be negative.'
                )
        for name in ('augment', 'mirror', 'shift'):
            if self.num_frames and getattr(self, name):
                raise errors.UserError(
                    f'config.task.{name} is for images: leave it out for videos.'
                )
        if not 0 <= self.top_k <= self.num_classes:
            raise errors.UserError(
                f'config.task.top_k = {self.top_k} must be from 0 to {self.num_classes}, the '
                'classes.'
            )

    def _augmentation(self) -> Augmentation:
        return config.build(Augmentation, self.augment or {}, 'task.augment')

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.input_key: 'video' if self.num_frames else 'image'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32, and 'targets' int32 where it has a label}.

        Likewise for several records stacked.

        Raises:
          UserError: for a record without the input, a label that is no integer or out of range,
            what is to be resized and is no image, or a video of too few frames.
        """
        inputs = array_of(raw, self.input_key, 'task.input_key')
        if self.num_frames:
            inputs = images.evenly_spaced(inputs, self.num_frames)
        if self.image_size:
            several = np.ndim(raw.get(self.label_key, 0)) > self.label_ndim
            inputs = self._resized(inputs, several)
        example = {'inputs': images.normalized(inputs, self.mean, self.std)}
        if self.label_key in raw:
            example['targets'] = self.checked(raw[self.label_key])
        return example

    def checked(self, labels: Any) -> np.ndarray:
        """Labels as int32; UserError for what is no integer, or out of range."""
        return checked_labels(labels, self.num_classes, f'task.label_key = {self.label_key!r}')

    def _resized(self, image: np.ndarray, several: bool) -> np.ndarray:
        """uint8 [H, W] or [H, W, 1 or 3], or `several` of these, with sides of `image_size`.

        Without labels only four axes tell several images: three may be one with its channels.
        """
        if several or image.ndim == 4:
            return np.stack([self._resized(one, several=False) for one in image])
        if image.ndim == 2:
            return self._resized(image[..., None], several=False)[..., 0]
        channels = image.shape[-1] if image.ndim else 1
        image = images.with_channels(image, channels)  # refuses what is no image
        size = self.image_size
        return images.centre_crop(images.resize_shorter_side(image, size), size, size)

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record."""
        return Examples(source, self)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, *self.model_inputs(batch))

    def model_inputs(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """What of a batch the model takes."""
        return (batch['inputs'],)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats, and accuracy.

        Of a mixed image, accuracy is by its own class.
        """
        variables = {'params': params, **model_state}
        if train and self.augment:
            augment_rng = jax.random.fold_in(rng, AUGMENTATION)
            batch = self._augmentation()(augment_rng, batch, self.mean, self.std)
        if train:
            logits, model_state = self.model.apply(
                variables,
                *self.model_inputs(batch),
                train=True,
                rngs={'dropout': rng},
                mutable=list(model_state),
            )
        else:
            logits = self.logits_of(params, model_state, batch)
        targets, weights = batch['targets'], batch['weights']
        pairs = self.class_pairs(logits, targets, weights, train)
        if train and 'share' in batch:
            own = self.training_loss(logits, targets, weights * batch['share'])
            rest = weights * (1 - batch['share'])
            others = self.training_loss(logits, batch['other_targets'], rest)
            pairs['loss'] = metrics.add(own, others)
        if self.top_k:
            found = ranks(logits, targets) < self.top_k
            pairs[f'top{self.top_k}_accuracy'] = metrics.pair(found, weights)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def logits_of(self, params, model_state, batch) -> jax.Array:
        """[B, classes], as it answers."""
        variables = {'params': params, **model_state}
        if not (self.mirror or self.shift):
            return self.model.apply(variables, *self.model_inputs(batch))
        views = jnp.stack(self._views(batch['inputs']))
        return jax.lax.map(lambda view: self.model.apply(variables, view), views).mean(0)

    def _views(self, images: jax.Array) -> list[jax.Array]:
        """[B, H, W] or [B, H, W, C] and its variations, over which answers are averaged."""
        if images.ndim not in (3, 4):
            name = 'mirror' if self.mirror else 'shift'
            raise errors.UserError(
                f'config.task.{name} is for images [B, H, W] or [B, H, W, C]; inputs are '
                f'{list(images.shape)}.'
            )
        offsets = (0, -self.shift, self.shift) if self.shift else (0,)
        views = [jax.vmap(lambda x, n=n: geometry.moved(x, n, n))(images) for n in offsets]
        return [*views, *(view[:, :, ::-1] for view in views)] if self.mirror else views

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B, classes]."""
        return jax.nn.softmax(self.logits_of(params, model_state, batch))

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, {self.model.num_classes} classes'}


def ranks(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The place, from 0, of each target [B] among its logits [B, C], the largest first.

    Of equal ones the earlier comes first, as `argmax` has it; what is NaN comes last.
    """
    own = jnp.take_along_axis(logits, targets[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < targets[:, None]
    before = ((logits > own) | (logits == own) & earlier).sum(-1)
    return jnp.where(jnp.isnan(own[:, 0]), logits.shape[-1], before)
