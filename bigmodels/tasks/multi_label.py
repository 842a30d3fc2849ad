"""Any number of classes for each input."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.scores import classification as scores_lib
from bigmodels.tasks.classes import check_targets, names_of
from bigmodels.tasks.classification import Classification

THRESHOLD = 0.5  # the probability from which on a class is told


@dataclasses.dataclass(frozen=True)
class MultiLabel(Classification):
    """Images, videos or feature vectors [B, ...] -> which of the model's `num_classes` they have.

    A record's label is one number for each class, 1 where it has it and 0 where not. The loss is
    the mean over classes of the binary cross-entropy.

    Fields of `Classification`, but:
      class_weights: how much what has a class counts beside what has not, for each class.
      report: names of `scores.classification.OF_LABELS`.
      top_k: is refused.
    """

    label_ndim: ClassVar = 1
    alike_in_teacher: ClassVar = None
    known_scores: ClassVar = scores_lib.OF_LABELS

    def __post_init__(self):
        super().__post_init__()
        if self.top_k:
            raise errors.UserError('config.task.top_k is not for multi_label: leave it out.')

    def checked(self, labels: Any) -> np.ndarray:
        """Labels [..., classes] as float32; UserError for what is not 0 or 1, or not one each."""
        labels = np.asarray(labels)
        if labels.shape[-1:] != (self.num_classes,) or not np.isin(labels, (0, 1)).all():
            raise errors.UserError(
                f'config.task.label_key = {self.label_key!r} must be {self.num_classes} numbers, '
                f'0 or 1, one for each of model.num_classes; got {labels.tolist()}.'
            )
        return labels.astype(np.float32)

    def class_pairs(self, logits, targets, weights, train: bool) -> dict[str, metrics.Pair]:
        """'loss'; 'accuracy' of single classes; and 'exact', of examples with all classes right.

        Args:
          logits, targets: [B, classes].
          weights: [B].

        Raises:
          UserError: for targets of another shape.
        """
        check_targets(targets, logits.shape)
        if train:
            loss = self.training_loss(logits, targets, weights)
        else:
            loss = metrics.pair(losses.binary_cross_entropy(logits, targets).mean(-1), weights)
        right = (logits > 0) == (targets > THRESHOLD)
        return {
            'loss': loss,
            'accuracy': metrics.pair(right.mean(-1), weights),
            'exact': metrics.pair(right.all(-1), weights),
        }

    def training_loss(self, logits, targets, weights) -> metrics.Pair:
        """See `class_pairs`; smoothed, a target is a half of `label_smoothing` from 0 or 1."""
        towards = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = losses.binary_cross_entropy(logits, towards)
        if self.focal_gamma:
            loss = losses.focal(loss, self.focal_gamma)
        if self.class_weights:
            loss = loss * jnp.where(targets > THRESHOLD, jnp.array(self.class_weights), 1)
        return metrics.pair(loss.mean(-1), weights)

    def predict(self, params, model_state, batch) -> jax.Array:
        """The probability of each class [B, classes]."""
        return jax.nn.sigmoid(self.logits_of(params, model_state, batch))

    def postprocess(self, prediction: np.ndarray) -> dict[str, Any]:
        """Probabilities [classes] -> {'labels', those from THRESHOLD on, 'probabilities'}."""
        return {
            'labels': names_of(self, np.flatnonzero(prediction >= THRESHOLD).tolist()),
            'probabilities': prediction.astype(float).tolist(),
        }

    def pictures(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """None: a class is not taken for another."""
        return {}
