"""What tasks share whose answer is a class: the loss, and figures of whole held-out sets."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.scores import classification as scores_lib

CLASSES = 'classes.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """A part of a task with a `model` whose `predict` gives probabilities [B, classes].

    Fields:
      label_smoothing: in training, see `losses.softmax_cross_entropy`.
      focal_gamma: in training, see `losses.focal`; 0 for plain cross-entropy.
      class_weights: one for each class: how much its examples count in the training loss, which is
        their weighted mean; none for 1 each.
      report: figures of whole held-out sets, names of `known_scores`.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: Sequence[float] = ()
    report: Sequence[str] = ()

    known_scores: ClassVar[Mapping[str, Callable]] = scores_lib.SCORES

    @property
    def num_classes(self) -> int:
        """Those that the model tells apart."""
        return self.model.num_classes

    def check_classes(self) -> None:
        """Raises UserError for fields of this part that cannot be."""
        classes, weights = self.num_classes, tuple(self.class_weights)
        if weights and (len(weights) != classes or min(weights) < 0 or not max(weights)):
            raise errors.UserError(
                f'config.task.class_weights = {weights} must be {classes} numbers, one for each '
                f'class, none negative and not all 0.'
            )
        if self.focal_gamma < 0 or (self.focal_gamma and self.label_smoothing):
            raise errors.UserError(
                f'config.task.focal_gamma = {self.focal_gamma} must not be negative, and needs '
                f'label_smoothing = 0: smoothed, no class has a probability to go by.'
            )
        for name in self.report:
            if name not in self.known_scores:
                raise errors.unknown('figure in config.task.report:', name, self.known_scores)

    def class_pairs(
        self, logits: jax.Array, targets: jax.Array, weights: jax.Array, train: bool
    ) -> dict[str, metrics.Pair]:
        """'loss', cross-entropy in nats, which in training is as the fields say; and 'accuracy'.

        Args:
          logits: [..., classes].
          targets: int [...].
          weights: [...].

        Raises:
          UserError: for targets of another shape.
        """
        check_targets(targets, logits.shape[:-1])
        if train:
            loss = self.training_loss(logits, targets, weights)
        else:
            loss = metrics.pair(losses.softmax_cross_entropy(logits, targets), weights)
        return {'loss': loss, 'accuracy': metrics.pair(logits.argmax(-1) == targets, weights)}

    def training_loss(
        self, logits: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> metrics.Pair:
        """See `class_pairs`."""
        loss = losses.softmax_cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if self.focal_gamma:
            loss = losses.focal(loss, self.focal_gamma)
        if self.class_weights:
            weights = weights * jnp.array(self.class_weights)[targets]
        return metrics.pair(loss, weights)

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """Where figures are to be reported, what they follow from."""
        if not self.report:
            return {}
        probabilities = self.predict(params, model_state, batch)
        return {'probabilities': probabilities, 'targets': batch['targets']}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The figures of `report`, of a whole set."""
        if not self.report:
            return {}
        return scores_lib.figures(**outcomes, names=self.report, known=self.known_scores)

    @property
    def score_names(self) -> tuple[str, ...]:
        """What `scores` returns."""
        return scores_lib.figure_names(self.report, self.num_classes)

    def postprocess(self, prediction: np.ndarray) -> dict[str, Any]:
        """Probabilities [classes] -> {'label', a class's name or its number, 'probability'}."""
        label = int(np.argmax(prediction))
        [name] = names_of(self, [label])
        return {'label': name, 'probability': float(prediction[label])}

    def pictures(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The confusion matrix of a whole set whose figures are reported."""
        from bigmodels.data import pictures  # matplotlib takes long to import

        if not outcomes:
            return {}
        counts = scores_lib.confusion_matrix(
            outcomes['targets'], outcomes['probabilities'].argmax(1), self.num_classes
        )
        return {'confusion': pictures.confusion(counts)}


def names_of(task: Any, labels: Sequence[int]) -> list[str | int]:
    """The names of classes where the task has them, and else the numbers."""
    names = dict(enumerate(getattr(task, 'classes', ())))
    return [names.get(label, label) for label in labels]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedClasses(Classes):
    """Classes whose names are kept with the run.

    Fields:
      classes: their names, by which answers tell them; those of the training data, where it has
        names, as folders do. Without any, classes are told by their numbers.
    """

    classes: Sequence[str] = ()

    def fit(self, source: Sequence) -> Self:
        """With the names of the source."""
        names = tuple(getattr(source, 'classes', None) or self.classes)
        if len(names) > self.num_classes:
            raise errors.UserError(
                f'There are {len(names)} classes, {errors.some(names)}, and model.num_classes is '
                f'{self.num_classes}.'
            )
        return dataclasses.replace(self, classes=names)

    def save(self, directory: pathlib.Path) -> None:
        """Writes the names, if there are any."""
        if self.classes:
            (directory / CLASSES).write_text(json.dumps(self.classes) + '\n')

    def restored(self, directory: pathlib.Path) -> Self:
        """With what `save` wrote."""
        path = directory / CLASSES
        names = json.loads(path.read_text()) if path.is_file() else ()
        return dataclasses.replace(self, classes=tuple(names))


def check_targets(targets: jax.Array, shape: Sequence[int]) -> None:
    """Raises UserError for targets that are not of this shape [B, ...]: they would be repeated."""
    if targets.shape != tuple(shape):
        raise errors.UserError(
            f'A label is {list(targets.shape[1:])}, and the model answers {list(shape[1:])}: '
            'config.task.label_key names a field of another shape.'
        )
