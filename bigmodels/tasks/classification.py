"""One class for each input."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import pipeline


@dataclasses.dataclass(frozen=True)
class Classification:
    """Images or feature vectors [B, ...] -> one of the model's `num_classes`.

    Fields:
      model: maps inputs [B, ...] to logits [B, classes].
      input_key, label_key: of the source's records.
      mean, std: inputs are normalised to (x - mean) / std.
      label_smoothing: see `losses.softmax_cross_entropy`.
    """

    model: nn.Module
    input_key: str = 'image'
    label_key: str = 'label'
    mean: float = 0.0
    std: float = 1.0
    label_smoothing: float = 0.0

    def fit(self, source) -> 'Classification':
        """Nothing is learnt from the records: the statistics are in the config."""
        return self

    def save(self, directory: Path) -> None:
        """Nothing to save."""

    def restored(self, directory: Path) -> 'Classification':
        """As built from the config."""
        return self

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32, and 'targets' int32 where it has a label}.

        Likewise for several records stacked.

        Raises:
          UserError: for a record without the input, or a label out of range.
        """
        if self.input_key not in raw:
            raise errors.unknown('record field task.input_key =', self.input_key, raw)
        inputs = (np.asarray(raw[self.input_key], np.float32) - self.mean) / self.std
        example = {'inputs': inputs.astype(np.float32)}
        if self.label_key in raw:
            labels = np.asarray(raw[self.label_key], np.int32)
            known = (labels >= 0) & (labels < self.model.num_classes)
            if not known.all():
                raise errors.UserError(
                    f'Label {labels[~known][0]} is out of range: model.num_classes is '
                    f'{self.model.num_classes}.'
                )
            example['targets'] = labels
        return example

    def postprocess(self, prediction: np.ndarray) -> dict[str, Any]:
        """Probabilities [classes] -> {'label', 'probability'}."""
        label = int(np.argmax(prediction))
        return {'label': label, 'probability': float(prediction[label])}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record."""
        return Examples(source, self)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats, and accuracy."""
        variables = {'params': params, **model_state}
        logits, model_state = self.model.apply(
            variables,
            batch['inputs'],
            train=train,
            rngs={'dropout': rng},
            mutable=list(model_state) if train else [],
        )
        loss = losses.softmax_cross_entropy(
            logits, batch['targets'], label_smoothing=self.label_smoothing if train else 0.0
        )
        correct = logits.argmax(-1) == batch['targets']
        pairs = {
            'loss': metrics.pair(loss, batch['weights']),
            'accuracy': metrics.pair(correct, batch['weights']),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B, classes]."""
        logits = self.model.apply({'params': params, **model_state}, batch['inputs'])
        return jax.nn.softmax(logits)

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(values)

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of examples in a batch, and their unit."""
        return len(shapes['inputs']), 'examples'

    def flops_per_step(self, params, shapes) -> None:
        """Not known by formula."""

    def demonstrate(self, params, model_state) -> dict[str, str]:
        """Nothing to show beyond the metrics."""
        return {}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, {self.model.num_classes} classes'}


@dataclasses.dataclass(frozen=True)
class Examples:
    """A source whose records are preprocessed as they are read, several at once where it can.

    The task's `preprocess` takes one record, or several stacked.
    """

    source: Sequence
    task: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.task.preprocess(self.source[index])

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, stacked."""
        if hasattr(self.source, 'take'):
            return self.task.preprocess(self.source.take(indices))
        return pipeline.stacked([self[index] for index in indices.tolist()])
