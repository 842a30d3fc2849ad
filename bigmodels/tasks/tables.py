"""One class, or one number, for each record of a table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors, metrics
from bigmodels.data import table_encoding
from bigmodels.data.cells import text_of
from bigmodels.data.sources.table_sources import Columns
from bigmodels.tasks import regression
from bigmodels.tasks.base import Defaults, columns_of, described
from bigmodels.tasks.classes import Classes

# What `save` writes into the run's preprocessing.
ENCODING, TARGETS = 'table.json', 'targets.json'


@dataclasses.dataclass(frozen=True)
class Table(Defaults):
    """What the tasks on tables share: columns become arrays by an encoding fitted in training.

    Fields:
      model: a `tabular.TableModel`, or another module with its call and its two sizes.
      label_key: the column of the targets.
      numeric, categorical: the columns of the inputs.
      min_count, missing: see `table_encoding.fit`.
      weight_key: the column of how much an example counts in training; '' for 1 each.
    """

    model: nn.Module
    label_key: str
    numeric: Sequence[str] = ()
    categorical: Sequence[str] = ()
    min_count: int = 5
    missing: Literal['refuse', 'impute'] = 'refuse'
    weight_key: str = ''
    encoding: table_encoding.Encoding | None = None

    def __post_init__(self):
        columns = [*self.numeric, *self.categorical]
        if not columns or len({*columns, self.label_key}) <= len(columns):
            raise errors.UserError(
                'task.numeric, task.categorical and task.label_key must name at least two columns, '
                f'each once: got {", ".join([*columns, self.label_key])}.'
            )

    def fit(self, source: Sequence) -> Self:
        """With an encoding of the training records, and what is learnt of their targets."""
        with errors.told_of(described(source)):
            columns = self._columns(source)
            encoding = table_encoding.fit(
                columns, self.numeric, self.categorical, self.min_count, self.missing
            )
            return self._with(encoding).with_targets(columns[self.label_key])

    def save(self, directory: Path) -> None:
        """Writes the encoding."""
        self.encoding.save(directory / ENCODING)

    def restored(self, directory: Path) -> Self:
        """With the encoding that `save` wrote."""
        return self._with(table_encoding.restore(directory / ENCODING))

    def _with(self, encoding: table_encoding.Encoding) -> Self:
        if encoding.num_categories > self.model.num_categories:
            raise errors.UserError(
                f'The table has {encoding.num_categories} categories, unknown ones included, but '
                f'model.num_categories is {self.model.num_categories}: set it to at least that.'
            )
        return dataclasses.replace(self, encoding=encoding)

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return dict.fromkeys([*self.numeric, *self.categorical], 'value')

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [N], 'categories' int32 [C], 'targets' where it has one}.

        Raises:
          UserError: see `table_encoding.Encoding.encode`, and for a target that cannot be.
        """
        used = [*self.numeric, *self.categorical, self.label_key]
        arrays = self._encoded({name: [raw[name]] for name in used if name in raw})
        return {name: value[0] for name, value in arrays.items()}

    def _encoded(self, columns: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        arrays = self.encoding.encode(columns)
        if self.label_key in columns:
            arrays['targets'] = self.targets(columns[self.label_key])
        return arrays

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record, all encoded here: what is wrong with one is told at once."""
        with errors.told_of(described(source)):
            arrays = self._encoded(self._columns(source))
            if train and self.weight_key:
                arrays['weights'] = self._weights(source)
            return Columns(arrays)

    def _weights(self, source: Sequence) -> np.ndarray:
        """float32 [n]."""
        [column] = columns_of(source, {'task.weight_key': (self.weight_key,)}).values()
        weights = table_encoding.numbers(column, self.weight_key).astype(np.float32)
        if not (weights >= 0).all():
            raise errors.UserError(
                f'task.weight_key = {self.weight_key!r}: a weight is missing or negative.'
            )
        return weights

    def _columns(self, source: Sequence) -> dict[str, np.ndarray]:
        """All records by columns, among them the targets."""
        return columns_of(
            source,
            {
                'task.numeric': self.numeric,
                'task.categorical': self.categorical,
                'task.label_key': (self.label_key,),
            },
        )

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`, which do not depend on the records."""
        indicators = len(self.numeric) if self.missing == 'impute' else 0
        return {
            'inputs': jax.ShapeDtypeStruct((len(self.numeric),), 'float32'),
            'categories': jax.ShapeDtypeStruct((len(self.categorical) + indicators,), 'int32'),
            'targets': self.target_shape,
            'weights': jax.ShapeDtypeStruct((), 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'], batch['categories'])

    def outputs(self, params, batch, rng: jax.Array | None = None) -> jax.Array:
        """The model's [B, num_outputs]; with a key as in training."""
        return self.model.apply(
            {'params': params},
            batch['inputs'],
            batch['categories'],
            train=rng is not None,
            rngs=None if rng is None else {'dropout': rng},
        )

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model and its columns."""
        return {
            'model': f'{type(self.model).__name__}, {self.model.num_outputs} outputs',
            'columns': f'{len(self.numeric)} numeric, {len(self.categorical)} categorical',
        }


@dataclasses.dataclass(frozen=True)
class TableClassification(Classes, Table):
    """Records of a table -> one of the classes that are the texts of `label_key`.

    Fields:
      classes: these texts in the order of the model's outputs; by default those of the training
        records, sorted.

    And those of `classes.Classes`: the loss, and what is reported.
    """

    target_shape: ClassVar = jax.ShapeDtypeStruct((), 'int32')

    classes: Sequence[str] = ()
    report: Sequence[str] = ('roc_auc',)

    def __post_init__(self):
        super().__post_init__()
        self.check_classes()

    @property
    def num_classes(self) -> int:
        """The model's outputs."""
        return self.model.num_outputs

    def with_targets(self, labels: Sequence) -> Self:
        """With `classes`, where the config does not name them."""
        return self._with_classes(self.classes or sorted(set(self._texts(labels))))

    def _with_classes(self, classes: Sequence[str]) -> Self:
        if len(classes) != self.model.num_outputs:
            raise errors.UserError(
                f'model.num_outputs = {self.model.num_outputs}, but there are {len(classes)} '
                f'classes: {errors.some(classes)}.'
            )
        return dataclasses.replace(self, classes=tuple(classes))

    def save(self, directory: Path) -> None:
        """Writes the encoding and the classes."""
        super().save(directory)
        (directory / TARGETS).write_text(json.dumps(self.classes) + '\n')

    def restored(self, directory: Path) -> Self:
        """With what `save` wrote."""
        classes = json.loads((directory / TARGETS).read_text())
        return super().restored(directory)._with_classes(classes)

    def _texts(self, labels: Sequence) -> list[str]:
        texts = list(map(text_of, labels))
        if '' in texts:
            raise errors.UserError(
                f'The label {self.label_key!r} is missing in record {texts.index("")}.'
            )
        return texts

    def targets(self, labels: Sequence) -> np.ndarray:
        """Labels [n] -> the places of their classes, int32 [n]; UserError for one that is none."""
        places = {text_of(text): i for i, text in enumerate(self.classes)}
        texts = self._texts(labels)
        for i, text in enumerate(texts):
            if text not in places:
                raise errors.UserError(
                    f'The label {text!r} of record {i} is none of the {len(places)} classes: '
                    f'{errors.some(self.classes)}.'
                )
        return np.array([places[text] for text in texts], np.int32)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats, and accuracy."""
        logits = self.outputs(params, batch, rng if train else None)
        pairs = self.class_pairs(logits, batch['targets'], batch['weights'], train)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B, classes]."""
        return jax.nn.softmax(self.outputs(params, batch))


@dataclasses.dataclass(frozen=True)
class TableRegression(Table):
    """Records of a table -> the number in `label_key`.

    Metrics are of the standardised target: 'mse' 1 is that of its mean.

    Fields:
      loss: of the standardised target.
      scale: mean and standard deviation of the training records' targets.
    """

    target_shape: ClassVar = jax.ShapeDtypeStruct((1,), 'float32')

    loss: regression.Loss = 'squared'
    scale: table_encoding.Scale | None = None

    def with_targets(self, labels: Sequence) -> Self:
        """With `scale`."""
        return dataclasses.replace(self, scale=table_encoding.scale_of(self._numbers(labels)))

    def save(self, directory: Path) -> None:
        """Writes the encoding and the scale."""
        super().save(directory)
        self.scale.save(directory / TARGETS)

    def restored(self, directory: Path) -> Self:
        """With what `save` wrote."""
        scale = table_encoding.Scale.restore(directory / TARGETS)
        return dataclasses.replace(super().restored(directory), scale=scale)

    def _numbers(self, labels: Sequence) -> np.ndarray:
        """float64 [n, 1]."""
        values = table_encoding.numbers(labels, self.label_key)
        if np.isnan(values).any():
            raise errors.UserError(
                f'The target {self.label_key!r} is missing in record {np.isnan(values).argmax()}.'
            )
        return values[:, None]

    def targets(self, labels: Sequence) -> np.ndarray:
        """Numbers [n] standardised, float32 [n, 1]; UserError for one that is missing."""
        return self.scale.standardised(self._numbers(labels))

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The loss and errors of standardised targets."""
        predictions = self.outputs(params, batch, rng if train else None)
        pairs = regression.pairs(self.loss, predictions, batch['targets'], batch['weights'], train)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds R2."""
        return regression.with_r2(values)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Numbers [B, 1] in the unit of the target."""
        return self.scale.restored(self.outputs(params, batch))

    def postprocess(self, prediction: np.ndarray) -> dict[str, float]:
        """The number."""
        return {'value': float(prediction[0])}
