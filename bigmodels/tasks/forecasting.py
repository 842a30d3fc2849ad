"""What a series of numbers will be, from what it was.

Axes: T rows of a series, B windows, L input rows, H rows of the horizon, C columns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors, metrics
from bigmodels.data import series, table_encoding
from bigmodels.tasks import regression
from bigmodels.tasks.base import Defaults, columns_of, described, field_of

SCALE = 'scale.json'  # what `save` writes into the run's preprocessing


@dataclasses.dataclass(frozen=True)
class Forecasting(Defaults):
    """Records in the order of time -> the next `model.horizon` of them, from `input_length`.

    Every window of a source is an example. Metrics are of values standardised by the training
    records' means and deviations.

    Fields:
      model: maps standardised inputs [B, L, C] to [B, H, C]; its `horizon` is H.
      columns: those of the records that are the series.
      input_length: L.
      loss: of standardised values.
      scale: see `table_encoding.Scale`.
    """

    model: nn.Module
    columns: Sequence[str]
    input_length: int
    loss: regression.Loss = 'squared'
    scale: table_encoding.Scale | None = None

    def fit(self, source: Sequence) -> 'Forecasting':
        """With the scale of the training records."""
        with errors.told_of(described(source)):
            scale = table_encoding.scale_of(self._rows_of(source))
        return dataclasses.replace(self, scale=scale)

    def save(self, directory: Path) -> None:
        """Writes the scale."""
        self.scale.save(directory / SCALE)

    def restored(self, directory: Path) -> 'Forecasting':
        """With the scale that `save` wrote."""
        scale = table_encoding.Scale.restore(directory / SCALE)
        return dataclasses.replace(self, scale=scale)

    def _rows_of(self, source: Sequence) -> np.ndarray:
        return self._rows(columns_of(source, {'task.columns': self.columns}))

    def _rows(self, columns: Mapping[str, Sequence]) -> np.ndarray:
        """Columns of T values -> float64 [T, C]; UserError for one not there or with gaps."""
        columns = {name: field_of(columns, name, 'task.columns') for name in self.columns}
        series = [table_encoding.numbers(columns[name], name) for name in self.columns]
        lengths = dict(zip(self.columns, map(len, series), strict=True))
        if len(set(lengths.values())) > 1:
            raise errors.UserError(f'The series must be of one length, got {lengths}.')
        rows = np.stack(series, axis=1)
        gaps = np.argwhere(np.isnan(rows))
        if len(gaps):
            record, column = gaps[0]
            raise errors.UserError(
                f'The series {self.columns[column]!r} has no value in record {record}: fill the '
                'gaps before.'
            )
        return rows

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return dict.fromkeys(self.columns, 'series')

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Columns of at least L values, of which the last L count -> {'inputs': float32 [L, C]}.

        Raises:
          UserError: for shorter ones, one that is not there, or a value that is missing.
        """
        rows = self._rows(raw)
        if len(rows) < self.input_length:
            raise errors.UserError(
                f'The series has {len(rows)} rows; the model forecasts from {self.input_length}.'
            )
        return {'inputs': self.scale.standardised(rows[-self.input_length :])}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """Every window of the records."""
        with errors.told_of(described(source)):
            rows = self.scale.standardised(self._rows_of(source))
            return series.Windows(rows, self.input_length, self.model.horizon)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        width = len(self.columns)
        return {
            'inputs': jax.ShapeDtypeStruct((self.input_length, width), 'float32'),
            'targets': jax.ShapeDtypeStruct((self.model.horizon, width), 'float32'),
            'weights': jax.ShapeDtypeStruct((), 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The loss and errors of standardised values; every value of a window counts the same."""
        predictions = self.model.apply(
            {'params': params}, batch['inputs'], train=train, rngs={'dropout': rng}
        )
        pairs = regression.pairs(self.loss, predictions, batch['targets'], batch['weights'], train)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds R2, over all values of all windows."""
        return regression.with_r2(values)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Forecasts [B, H, C] in the columns' own units."""
        return self.scale.restored(self.model.apply({'params': params}, batch['inputs']))

    def postprocess(self, prediction: np.ndarray) -> dict[str, list[float]]:
        """[H, C] -> {column: its next H values}."""
        return dict(zip(self.columns, prediction.T.tolist(), strict=True))

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        model = self.model
        return {
            'model': f'{type(model).__name__}, {len(self.columns)} series, {self.input_length} '
            f'rows to {model.horizon}'
        }
