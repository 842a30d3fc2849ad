"""One class for each recording."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigmodels.tasks.classification import Classification
from bigmodels.tasks.sound import SoundInputs


@dataclasses.dataclass(frozen=True)
class SoundClassification(SoundInputs, Classification):
    """Recordings of different lengths -> one of the model's `num_classes`.

    Fields:
      model: maps features [B, L, M] and their lengths [B] to logits [B, classes].
      sound: the section of `sound.FrontEnd`. Longer recordings are cut at its max_seconds.
      augment: the section of `SoundAugmentation`; for training only.
    """

    input_key: str = 'audio'
    sound: Mapping = dataclasses.field(default_factory=dict)
    augment: Mapping | None = None

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [T], 'lengths' int32, and 'targets' int32 if labelled}.

        Raises:
          UserError: see `sound.FrontEnd.filled_up`; and for a label out of range.
        """
        filled = self.front_end.filled_up(raw, self.input_key, cut=True)
        example = super().preprocess({**raw, self.input_key: filled['inputs']})
        return example | {'lengths': filled['lengths']}

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`, labelled ones."""
        return self.front_end.shapes() | {'targets': jax.ShapeDtypeStruct((), 'int32')}
