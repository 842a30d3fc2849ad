"""A class for each pixel of an image."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import augmentation as augmentation_lib
from bigmodels import config, errors, losses, metrics
from bigmodels.augmentation import Augmentation
from bigmodels.data import images
from bigmodels.scores import segmentation as scores_lib
from bigmodels.tasks.base import Defaults, Examples, array_of, described
from bigmodels.tasks.classification import AUGMENTATION

MOST_DRAWN = 16  # images in a picture
MOST_CLASSES = 256  # as many as a mask's PNG file can tell apart


@dataclasses.dataclass(frozen=True)
class Segmentation(Defaults):
    """Images [B, H, W, C] -> one of the model's `num_classes` for each pixel; 0 is the background.

    Training is on random parts of one size, evaluation on whole images. Where these are of several
    sizes they are padded to one; 'weights' [B, H, W] is 0 there, and no figure counts it.

    Fields:
      model: maps inputs [B, H, W, C] to logits [B, H, W, classes]; H and W are multiples of its
        `stride`, if it has one.
      image_size: height and width of the largest image; examples are padded to them.
      crop_size: sides of the parts that are trained on; 0 for whole images.
      input_key, mask_key: of the source's records.
      instances: masks number the objects of an image: all but 0 are class 1.
      channels: of the inputs, 1 for grey.
      mean, std: inputs are normalised to (x - mean) / std.
      augment: changes of training images and their masks, see `augmentation.Augmentation`.
      dice_weight: of the Dice loss beside the cross-entropy, see `losses.dice`.
      overlays: evaluation keeps images and masks, about 5 bytes a pixel, to draw them with
        `evaluate --pictures`.
    """

    model: nn.Module
    image_size: Sequence[int]
    crop_size: int = 0
    input_key: str = 'image'
    mask_key: str = 'mask'
    instances: bool = False
    channels: Literal[1, 3] = 3
    mean: float = 0.0
    std: float = 1.0
    augment: Mapping[str, Any] | None = None
    dice_weight: float = 1.0
    overlays: bool = False

    sections: ClassVar = {'augment': Augmentation}
    any_size: ClassVar = True
    target_keys: ClassVar = ('mask_key',)
    score_names: ClassVar = scores_lib.FIGURES

    def __post_init__(self):
        self._augmentation()  # what is wrong with it is said before anything is opened
        classes, size = self.model.num_classes, tuple(self.image_size)
        if not 2 <= classes <= MOST_CLASSES or (self.instances and classes != 2):
            raise errors.UserError(
                f'config.model.num_classes = {classes} must be from 2 to {MOST_CLASSES}, the '
                f'background among them, and 2 with config.task.instances.'
            )
        if len(size) != 2 or min(size) < 1 or any(side % self._stride for side in size):
            raise errors.UserError(
                f'config.task.image_size = {size} must be a height and a width, both multiples of '
                f'the {self._stride} pixels that the model halves evenly.'
            )
        if not 0 <= self.crop_size <= min(size) or self.crop_size % self._stride:
            raise errors.UserError(
                f'config.task.crop_size = {self.crop_size} must be a multiple of {self._stride} '
                f'that is not above image_size = {size}.'
            )
        if self.dice_weight < 0:
            raise errors.UserError(
                f'config.task.dice_weight = {self.dice_weight} must not be negative.'
            )

    def _augmentation(self) -> Augmentation:
        built = config.build(Augmentation, self.augment or {}, 'task.augment')
        built.check_for_masks()
        return built

    @property
    def _stride(self) -> int:
        return getattr(self.model, 'stride', 1)

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.input_key: 'image'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [H, W, C], 'weights' float32 [H, W], and 'targets' int32
        [H, W] where it has a mask}.

        Padded at the lower right to `image_size`, or further to what the model halves evenly.

        Raises:
          UserError: for a record without an image, or a mask of another size or out of range.
        """
        image = array_of(raw, self.input_key, 'task.input_key')
        image = images.with_channels(image, self.channels)
        inputs = images.normalized(image, self.mean, self.std)
        example = {'inputs': inputs, 'weights': np.ones(image.shape[:2], np.float32)}
        if self.mask_key in raw:
            example['targets'] = self._classes(np.asarray(raw[self.mask_key]), image.shape[:2])
        sides = zip(image.shape, self.image_size, strict=False)
        beyond = [max(-(-n // self._stride) * self._stride, least) - n for n, least in sides]
        return {
            key: np.pad(value, [(0, n) for n in beyond] + [(0, 0)] * (value.ndim - 2))
            for key, value in example.items()
        }

    def _classes(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A mask [H, W] or [H, W, 1] as classes, int32 [H, W]."""
        mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
        if mask.shape != size or mask.dtype.kind not in 'biu':
            raise errors.UserError(
                f'The mask is {mask.dtype} {list(mask.shape)}: integers {list(size)} are wanted, '
                f'one for each pixel of the image.'
            )
        known = mask >= 0 if self.instances else (mask >= 0) & (mask < self.model.num_classes)
        if not known.all():
            raise errors.UserError(
                f'The mask has the value {mask[~known][0]}, which is out of range: '
                f'model.num_classes is {self.model.num_classes}. If it numbers objects, set '
                f'config.task.instances.'
            )
        return (mask > 0 if self.instances else mask).astype(np.int32)

    def postprocess(self, prediction: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """One of `predict` -> {'mask', 'shares'}.

        'mask' is uint8 [H, W] of the image as it came, the classes spread over 0 to 255, and
        'shares' how much of the image each of them has.
        """
        real = prediction['weights'] > 0
        classes = prediction['classes'][: real.any(1).sum(), : real.any(0).sum()]
        counts = np.bincount(classes.ravel(), minlength=self.model.num_classes)
        step = 255 // (self.model.num_classes - 1)
        return {'mask': classes * np.uint8(step), 'shares': (counts / classes.size).tolist()}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record, all of `image_size`."""
        return PaddedExamples(source, self, stacked=False)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        size = tuple(self.image_size)
        return {
            'inputs': jax.ShapeDtypeStruct((*size, self.channels), 'float32'),
            'targets': jax.ShapeDtypeStruct(size, 'int32'),
            'weights': jax.ShapeDtypeStruct(size, 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy of an image's pixels in nats, with its Dice loss; accuracy of pixels."""
        if train:
            batch = self._varied(jax.random.fold_in(rng, AUGMENTATION), batch)
        logits, model_state = self.model.apply(
            {'params': params, **model_state},
            batch['inputs'],
            train=train,
            rngs={'dropout': rng},
            mutable=list(model_state) if train else [],
        )
        targets, weights = batch['targets'], batch['weights']
        entropy = losses.softmax_cross_entropy(logits, targets) * weights
        pixels = weights.sum((1, 2))
        loss = entropy.sum((1, 2)) / jnp.maximum(pixels, 1)
        if self.dice_weight:
            loss += self.dice_weight * losses.dice(jax.nn.softmax(logits), targets, weights)
        pairs = {
            'loss': metrics.pair(loss, pixels > 0),
            'accuracy': metrics.pair(logits.argmax(-1) == targets, weights),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def most_counts(self, weights: jax.Array) -> int:
        """The loss counts images."""
        return 1

    def _varied(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """Parts of `crop_size` of a training batch, changed at random."""
        crop_key, change_key = jax.random.split(rng)
        if self.crop_size:
            batch = augmentation_lib.windows(crop_key, batch, self.crop_size)
        if not self.augment:
            return batch
        return self._augmentation().with_masks(
            change_key, batch, self.model.num_classes, self.mean, self.std
        )

    def predict(self, params, model_state, batch) -> dict[str, jax.Array]:
        """'classes' uint8 [B, H, W], and 'weights' [B, H, W], 0 beyond the images."""
        logits = self.model.apply({'params': params, **model_state}, batch['inputs'])
        return {'classes': logits.argmax(-1).astype(jnp.uint8), 'weights': batch['weights']}

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """How many pixels of each class were taken for which; for overlays the pixels too."""
        classes = self.predict(params, model_state, batch)['classes']
        found = jax.nn.one_hot(classes, self.model.num_classes)
        wanted = jax.nn.one_hot(batch['targets'], self.model.num_classes)
        wanted *= batch['weights'][..., None]
        counts = jnp.einsum('bhwc,bhwd->bcd', wanted, found)  # exact below 2**24 pixels
        kept = {'confusion': counts.astype(jnp.int32)}
        if self.overlays:
            pixels = jnp.clip(jnp.round(batch['inputs'] * self.std + self.mean), 0, 255)
            kept |= {
                'images': pixels.astype(jnp.uint8),
                'targets': batch['targets'].astype(jnp.uint8),
                'predicted': jnp.where(batch['weights'] > 0, classes, 0),
            }
        return kept

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Dice and intersection over union, see `scores.segmentation.figures`."""
        return scores_lib.figures(outcomes['confusion'])

    def pictures(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Images of a set, evenly spaced, with what was found in them; if `overlays` are kept."""
        from bigmodels.data import pictures  # matplotlib takes long to import

        if not self.overlays:
            return {}
        count = len(outcomes['images'])
        shown = np.linspace(0, count - 1, min(count, MOST_DRAWN)).astype(int)
        names = ('images', 'targets', 'predicted')
        drawn = [pictures.overlay(*(outcomes[name][i] for name in names)) for i in shown]
        scores = [self.scores({'confusion': outcomes['confusion'][i : i + 1]}) for i in shown]
        captions = [f'{i}: Dice {s["dice"]:.3f}' for i, s in zip(shown, scores, strict=True)]
        return {'overlays': pictures.image_grid(np.stack(drawn), captions)}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, {self.model.num_classes} classes a pixel'}


@dataclasses.dataclass(frozen=True)
class PaddedExamples(Examples):
    """Examples of a segmentation task, each of its `image_size`."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = super().__getitem__(index)
        size, most = example['weights'].shape, tuple(self.task.image_size)
        if size != most:
            raise errors.UserError(
                f'{described(self.source)}, record {index}: the image is padded to {size[0]} x '
                f'{size[1]} pixels, which is beyond config.task.image_size = {most}.'
            )
        return example
