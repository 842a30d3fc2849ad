"""Objects in images: the class and the box of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import boxes as boxes_lib
from bigmodels import config, errors, losses, metrics
from bigmodels.augmentation.with_boxes import BoxAugmentation
from bigmodels.data import images
from bigmodels.scores import detection as scores_lib
from bigmodels.tasks.base import Defaults, Examples, array_of, field_of
from bigmodels.tasks.classification import AUGMENTATION

MOST_DRAWN = 9  # images in a picture


@dataclasses.dataclass(frozen=True)
class Detection(Defaults):
    """Images [B, H, W, 3] -> boxes with classes and scores, by the peaks of a map of centres.

    Images of any size are scaled to fit into `image_size`, and padded at the lower right. Boxes
    are (left, top, right, bottom), in pixels of the original image wherever they are told.

    Fields:
      model: maps inputs to heat and codes at every `stride` pixels, as `models.detector` does.
      classes: the names of the classes, as the source's records have them.
      image_size: height and width that the model sees, multiples of its stride.
      max_boxes: room for the boxes of an image.
      input_key, boxes_key, names_key: of the source's records.
      ignored_key: of the boxes in a record that no figure counts, nor punishes finding; they are
        not learnt either. Records may lack it.
      mean, std: inputs are normalised to (x - mean) / std.
      augment: changes of training images, see `augmentation.with_boxes.BoxAugmentation`.
      assignment: which cell is to answer for an object: that of its 'centre', with those around it;
        or one of a 'set', matched at the least cost of all, with max_overlap = 1 (OneNet, Sun et
        al. 2021; see `losses.box_set`).
      box_weight: of the loss of boxes beside that of classes (TTFNet has 5; 1 suits a set).
      max_found: peaks, or of a set cells, that are taken for objects.
      min_score: answers and pictures have none below this; figures of whole sets count all.
      max_overlap: see `boxes.suppressed`; 1 keeps all.
      overlays: evaluation keeps images to draw boxes in them with `evaluate --pictures`, and
        answers have a picture.
    """

    model: nn.Module
    classes: Sequence[str]
    image_size: Sequence[int]
    max_boxes: int = 100
    input_key: str = 'image'
    boxes_key: str = 'boxes'
    names_key: str = 'names'
    ignored_key: str = 'ignored'
    mean: float = 0.0
    std: float = 1.0
    augment: Mapping[str, Any] | None = None
    assignment: Literal['centre', 'set'] = 'centre'
    box_weight: float = 5.0
    max_found: int = 100
    min_score: float = 0.3
    max_overlap: float = 0.6
    overlays: bool = False

    sections: ClassVar = {'augment': BoxAugmentation}
    any_size: ClassVar = True
    target_keys: ClassVar = ('boxes_key', 'names_key')
    score_names: ClassVar = scores_lib.FIGURES

    def __post_init__(self):
        self._augmentation()  # what is wrong with it is said before anything is opened
        scores_lib.load_pycocotools()  # rather than after training
        size, stride = tuple(self.image_size), self.model.stride
        if len(size) != 2 or min(size) < stride or any(side % stride for side in size):
            raise errors.UserError(
                f'config.task.image_size = {size} must be a height and a width, both multiples of '
                f"the {stride} pixels of the model's stride."
            )
        if len(set(self.classes)) != self.model.num_classes or (
            len(self.classes) != self.model.num_classes
        ):
            raise errors.UserError(
                f'config.task.classes = {tuple(self.classes)} must be '
                f'{self.model.num_classes} different names, as many as config.model.num_classes.'
            )
        cells = int(np.prod(size)) // stride**2
        most_found = cells * len(self.classes)
        if not 1 <= self.max_found <= most_found or self.max_boxes < 1:
            raise errors.UserError(
                f'config.task.max_found = {self.max_found} must be from 1 to the {most_found} '
                f'cells of all classes, and max_boxes = {self.max_boxes} at least 1.'
            )
        if self.assignment == 'set' and self.max_boxes > cells:
            raise errors.UserError(
                f'config.task.max_boxes = {self.max_boxes} must be at most the {cells} cells, one '
                'of which is matched with each object.'
            )
        if self.box_weight < 0 or not 0 <= self.min_score <= 1 or not 0 <= self.max_overlap <= 1:
            raise errors.UserError(
                f'config.task.box_weight = {self.box_weight} must not be negative; min_score = '
                f'{self.min_score} and max_overlap = {self.max_overlap} must be from 0 to 1.'
            )

    def _augmentation(self) -> BoxAugmentation:
        return config.build(BoxAugmentation, self.augment or {}, 'task.augment')

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.input_key: 'image'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> an example, with its targets where it has boxes.

        'inputs' float32 [H, W, 3], 'extent' and 'original' float32 [2], the width and height of the
        image within them and as it came; 'boxes' float32 [max_boxes, 4] in pixels of the inputs,
        'labels' int32 [max_boxes], -1 for padding, and 'ignored' bool [max_boxes].

        Raises:
          UserError: for a record without an image, of an unknown class, of too many boxes, of one
            without area or outside of the image, or of more or fewer names.
        """
        image = array_of(raw, self.input_key, 'task.input_key')
        image = np.ascontiguousarray(images.with_channels(image, 3))
        original = np.array(image.shape[1::-1], np.float32)
        scale = min(most / side for most, side in zip(self.image_size, image.shape, strict=False))
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        if (height, width) != image.shape[:2]:
            image = images.resize(image, height, width)
        inputs = np.zeros((*self.image_size, 3), np.float32)
        inputs[:height, :width] = (image.astype(np.float32) - self.mean) / self.std
        extent = np.array([width, height], np.float32)
        example = {'inputs': inputs, 'extent': extent, 'original': original}
        return example | (self._targets(raw, original, extent) if self.boxes_key in raw else {})

    def _targets(
        self, raw: Mapping[str, Any], original: np.ndarray, extent: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The boxes of a record in pixels of the inputs, and their classes, both padded.

        Args:
          original, extent: width and height of the image, as it was and in the inputs.
        """
        where = f'{raw["path"]}: ' if 'path' in raw else ''
        given = np.asarray(raw[self.boxes_key], np.float32).reshape(-1, 4)
        names = field_of(raw, self.names_key, 'task.names_key')
        if len(names) != len(given):
            raise errors.UserError(f'{where}there are {len(given)} boxes and {len(names)} names.')
        wrong = ~(given[:, :2] < given[:, 2:]).all(1)  # true of NaN as well
        if wrong.any():
            i = np.flatnonzero(wrong)[0]
            raise errors.UserError(
                f'{where}box {i}, {given[i].tolist()} (left, top, right, bottom), has no area.'
            )
        outside = (given[:, :2] < 0).any(1) | (given[:, 2:] > original).any(1)
        if outside.any():
            i = np.flatnonzero(outside)[0]
            raise errors.UserError(
                f'{where}box {i}, {given[i].tolist()} (left, top, right, bottom), is not inside '
                f'the {original[0]:g} x {original[1]:g} image.'
            )
        if len(given) > self.max_boxes:
            raise errors.UserError(
                f'{where}there are {len(given)} boxes, and config.task.max_boxes = '
                f'{self.max_boxes} has no room for them: raise it.'
            )
        boxes = np.zeros((self.max_boxes, 4), np.float32)
        labels = np.full(self.max_boxes, -1, np.int32)
        boxes[: len(given)] = given * np.tile(extent / original, 2)
        for i, name in enumerate(map(str, names)):
            if name not in self.classes:
                raise errors.unknown(f'class of {where}box {i}, in config.task.classes:', name,
                                     self.classes)  # fmt: skip
            labels[i] = tuple(self.classes).index(name)
        ignored = np.zeros(self.max_boxes, bool)
        ignored[: len(given)] = raw.get(self.ignored_key, False)
        return {'boxes': boxes, 'labels': labels, 'ignored': ignored}

    def postprocess(self, prediction: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """One of `predict` -> {'boxes', 'labels', 'scores'}, the best first; with `overlays` also
        'picture' uint8 [H, W, 3], the image with them drawn in it.
        """
        kept = self._certain(prediction)
        boxes, scores = prediction['boxes'][kept], prediction['scores'][kept]
        names = [self.classes[label] for label in prediction['labels'][kept]]
        answer = {
            'boxes': [[round(float(edge), 2) for edge in box] for box in boxes],
            'labels': names,
            'scores': [round(float(score), 4) for score in scores],
        }
        if self.overlays:
            answer['picture'] = self._drawn(prediction, prediction['labels'][kept], boxes)
        return answer

    def _certain(self, prediction: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool [max_found]: which boxes of an image are told and drawn; a score of 0 is no box."""
        return prediction['scores'] >= max(self.min_score, 1e-9)

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record."""
        return Examples(source, self, stacked=False)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        shapes = {
            'inputs': (*self.image_size, 3),
            'extent': (2,),
            'original': (2,),
            'boxes': (self.max_boxes, 4),
        }
        shapes = {k: jax.ShapeDtypeStruct(shape, 'float32') for k, shape in shapes.items()}
        kinds = {'labels': 'int32', 'ignored': 'bool'}
        return shapes | {k: jax.ShapeDtypeStruct((self.max_boxes,), t) for k, t in kinds.items()}

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The focal loss of classes and the loss of boxes, each per object of an image."""
        if train and self.augment:
            augment_rng = jax.random.fold_in(rng, AUGMENTATION)
            batch = self._augmentation()(augment_rng, batch, self.mean, self.std)
        (heat, codes), model_state = self.model.apply(
            {'params': params, **model_state},
            batch['inputs'],
            train=train,
            rngs={'dropout': rng},
            mutable=list(model_state) if train else [],
        )
        labels = jnp.where(batch['ignored'], -1, batch['labels'])
        grid = boxes_lib.centres(*heat.shape[1:3], self.model.stride)
        found = boxes_lib.decode(codes, grid, self.model.stride)
        of_image = self._centre_losses if self.assignment == 'centre' else self._set_losses
        sums = jax.vmap(of_image)(heat, found, batch['boxes'], labels)
        count = jnp.maximum((labels >= 0).sum(1), 1)
        of_classes, of_boxes = (total / count for total in sums)
        weights = batch['weights']
        pairs = {
            'loss': metrics.pair(of_classes + self.box_weight * of_boxes, weights),
            'class_loss': metrics.pair(of_classes, weights),
            'box_loss': metrics.pair(of_boxes, weights),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def _centre_losses(self, heat, found, boxes, labels) -> tuple[jax.Array, jax.Array]:
        """The focal loss of centres and the GIoU loss of boxes, summed over an image."""
        num_classes, size = len(self.classes), heat.shape[:2]
        peaks, boxes, shares = boxes_lib.targets(
            boxes, labels, num_classes, size, self.model.stride
        )
        away = jnp.where(shares > 0, losses.giou(found, boxes), 0) * shares
        return losses.centre_focal(heat, peaks).sum(), away.sum()

    def _set_losses(self, heat, found, boxes, labels) -> tuple[jax.Array, jax.Array]:
        """Those of `losses.box_set`, of an image's cells."""
        logits, found = heat.reshape(-1, heat.shape[-1]), found.reshape(-1, 4)
        size = jnp.asarray(self.image_size[::-1], jnp.float32)
        return losses.box_set(logits, found, boxes, labels, size, self.box_weight)

    def predict(self, params, model_state, batch) -> dict[str, jax.Array]:
        """'boxes' [B, max_found, 4], 'labels' and 'scores' [B, max_found], the best first; a score
        of 0 is no box. With `overlays` also 'images' uint8 [B, H, W, 3] and what maps them back.
        """
        heat, codes = self.model.apply({'params': params, **model_state}, batch['inputs'])
        found = jax.vmap(self._found)(heat, codes, batch['extent'])
        found['boxes'] *= _to_original(batch)
        return found | (self._shown(batch) if self.overlays else {})

    def _found(self, heat: jax.Array, codes: jax.Array, extent: jax.Array) -> dict[str, jax.Array]:
        """The boxes in an image, in pixels of the inputs."""
        reach = 1 if self.assignment == 'centre' else 0
        scores, cells, labels = boxes_lib.peaks(jax.nn.sigmoid(heat), self.max_found, reach)
        grid = boxes_lib.centres(*heat.shape[:2], self.model.stride).reshape(-1, 2)
        codes = codes.reshape(-1, 4)[cells]
        boxes = boxes_lib.decode(codes, grid[cells], self.model.stride)
        boxes = boxes_lib.clipped(boxes, extent)
        scores = jnp.where(boxes_lib.area(boxes) > 0, scores, 0)
        if self.max_overlap < 1:
            scores = boxes_lib.suppressed(boxes, labels, scores, self.max_overlap)
        order = jnp.argsort(-scores)  # what is no box comes last
        return {'boxes': boxes[order], 'labels': labels[order], 'scores': scores[order]}

    def _shown(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What is needed to draw the images of a batch."""
        pixels = jnp.clip(jnp.round(batch['inputs'] * self.std + self.mean), 0, 255)
        kept = {name: batch[name] for name in ('extent', 'original')}
        return {'images': pixels.astype(jnp.uint8), **kept}

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """What is found, and what there is: 'true_boxes', 'true_labels' and 'true_ignored'."""
        found = self.predict(params, model_state, batch)
        true = {
            'boxes': batch['boxes'] * _to_original(batch),
            'labels': batch['labels'],
            'ignored': batch['ignored'],
        }
        return found | {f'true_{name}': value for name, value in true.items()}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Average precision, see `scores.detection.figures`."""
        found = {name: outcomes[name] for name in ('boxes', 'labels', 'scores')}
        wanted = {name: outcomes[f'true_{name}'] for name in ('boxes', 'labels', 'ignored')}
        return scores_lib.figures(found, wanted, len(self.classes))

    def pictures(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Images of a set, evenly spaced, with the boxes found in them; if `overlays` are kept."""
        from bigmodels.data import pictures  # matplotlib takes long to import

        if not self.overlays:
            return {}
        count = len(outcomes['images'])
        shown = np.linspace(0, count - 1, min(count, MOST_DRAWN)).astype(int)
        drawn, captions = [], []
        for i in shown:
            one = {name: value[i] for name, value in outcomes.items()}
            kept = self._certain(one)
            picture = self._drawn(one, one['labels'][kept], one['boxes'][kept])
            drawn.append(images.resize(picture, *self.image_size))
            captions.append(f'{i}: {kept.sum()} of {(one["true_labels"] >= 0).sum()}')
        return {'overlays': pictures.image_grid(np.stack(drawn), captions)}

    def _drawn(self, one: Mapping[str, np.ndarray], labels, boxes) -> np.ndarray:
        """An image in its original size, uint8 [H, W, 3], with boxes in it."""
        (width, height), (w, h) = (one[name].astype(int) for name in ('original', 'extent'))
        image = images.resize(one['images'][:h, :w], height, width)
        return images.with_boxes(image, boxes, labels)

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, classes {errors.some(list(self.classes))}'}


def _to_original(batch: Mapping[str, jax.Array]) -> jax.Array:
    """[B, 1, 4], by which boxes in pixels of the inputs become those of the original images."""
    return jnp.tile(batch['original'] / batch['extent'], 2)[:, None]
