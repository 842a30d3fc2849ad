"""One class for each recording."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors, metrics
from bigmodels.tasks.base import checked_labels
from bigmodels.tasks.classes import NamedClasses
from bigmodels.tasks.sound import SoundTask, name_of


@dataclasses.dataclass(frozen=True)
class SoundClassification(NamedClasses, SoundTask):
    """Recordings of different lengths -> one of the model's `num_classes`.

    Fields:
      model: maps features [B, L, M] and their lengths [B] to logits [B, classes].
      sound: the section of `sound.FrontEnd`. Longer recordings are cut at its max_seconds.
      augment: the section of `SoundAugmentation`; for training only.
      input_key, label_key: of the source's records.

    And those of `classes.NamedClasses`: the loss, and what is reported.
    """

    model: nn.Module
    sound: Mapping
    augment: Mapping | None = None
    input_key: str = 'audio'
    label_key: str = 'label'

    target_keys: ClassVar = ('label_key',)
    alike_in_teacher: ClassVar = ('sound',)

    def __post_init__(self):
        self.check_classes()

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [T], 'lengths' int32, and 'targets' int32 if labelled}.

        Raises:
          UserError: see `sound.FrontEnd.filled_up`; and naming the record, for a label that is no
            integer or out of range.
        """
        example = self.front_end.filled_up(raw, self.input_key, cut=True)
        if self.label_key in raw:
            key = f'task.label_key = {self.label_key!r}'
            with errors.told_of(name_of(raw)):
                label = checked_labels(raw[self.label_key], self.model.num_classes, key)
            example['targets'] = label
        return example

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`, labelled ones."""
        return self.front_end.shapes() | {'targets': jax.ShapeDtypeStruct((), 'int32')}

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats, and accuracy."""
        logits, _, model_state = self.logits(params, model_state, batch, rng, train)
        pairs = self.class_pairs(logits, batch['targets'], batch['weights'], train)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B, classes]."""
        return jax.nn.softmax(self.logits(params, model_state, batch)[0])

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, {self.model.num_classes} classes'}
