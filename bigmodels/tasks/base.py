"""What tasks share: the methods of one that has nothing of its own to say, and its examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from bigmodels import errors
from bigmodels.data import pipeline


class Defaults:
    """The methods of a task that learns nothing from records, whose metrics are means, and whose
    batches are counted by examples.

    Class variables:
      unit: what an example is called where they are counted.
      target_keys: the task's fields that name those fields of a record that are its targets; a
        record to be answered may lack them, one of `Examples` may not.
      alike_in_teacher: see `tasks`; None for a task that has no teacher.
    """

    unit: ClassVar[str] = 'examples'
    target_keys: ClassVar[Sequence[str]] = ()
    alike_in_teacher: ClassVar[Sequence[str] | None] = None

    def fit(self, source: Sequence) -> Self:
        """Nothing is learnt from the records."""
        return self

    def save(self, directory: Path) -> None:
        """Nothing to save."""

    def restored(self, directory: Path) -> Self:
        """As built from the config."""
        return self

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(values)

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of examples in a batch, and their unit."""
        return len(shapes['inputs']), self.unit

    def flops_per_step(self, params, shapes) -> None:
        """Not known by formula."""

    def demonstrate(self, params, model_state) -> dict[str, str]:
        """Nothing to show beyond the metrics."""
        return {}


def calling_once(task: Any) -> Any:
    """The task as it answers by one call of its model, whose inside is then looked at."""
    if not (getattr(task, 'mirror', False) or getattr(task, 'shift', 0)):
        return task
    return dataclasses.replace(task, mirror=False, shift=0)


@dataclasses.dataclass(frozen=True)
class Examples:
    """A source whose records are preprocessed as they are read, several at once where it can.

    Fields:
      task: its `preprocess` takes one record, or several stacked.
      stacked: whether it takes several; else records are read one by one.
    """

    source: Sequence
    task: Any
    stacked: bool = True

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.source[index]
        try:
            return self._example(record)
        except errors.UserError as error:
            raise errors.UserError(f'{described(self.source)}, record {index}: {error}') from error

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, stacked."""
        if not self.stacked or not hasattr(self.source, 'take'):
            return pipeline.stacked([self[index] for index in indices.tolist()])
        records = self.source.take(indices)
        try:
            return self._example(records)
        except errors.UserError:
            for index in indices.tolist():
                self[index]  # of which record it is said
            raise

    def _example(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record, or several stacked, as the task has it, once the targets are known to be."""
        for key in self.task.target_keys:
            name = getattr(self.task, key)
            if name and name not in record:
                raise errors.unknown(f'record field task.{key} =', name, record)
        return self.task.preprocess(record)


class Numbered(Examples):
    """Examples with their index as 'seeds' uint32."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return super().__getitem__(index) | {'seeds': np.uint32(index)}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, stacked."""
        return super().take(indices) | {'seeds': indices.astype(np.uint32)}


def described(source: Sequence) -> str:
    """What to call a source in an error."""
    return source.describe() if hasattr(source, 'describe') else 'The training records'


def field_of(record: Mapping[str, Any], name: str, key: str = '') -> Any:
    """What a record, or several stacked, have in a field.

    Args:
      key: of the config that names the field, for the error.

    Raises:
      UserError: where there is no such field.
    """
    if name not in record:
        raise errors.unknown(f'record field {key} =' if key else 'record field', name, record)
    return record[name]


def array_of(record: Mapping[str, Any], name: str, key: str = '', dtype: Any = None) -> np.ndarray:
    """What `field_of` gives, as an array.

    Raises:
      UserError: where there is no such field, or it is no array.
    """
    value = field_of(record, name, key)
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(
            f'The field {name!r} is not an array of numbers: {error}.'
        ) from error


def columns_of(source: Sequence, names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Fields of all n records of a source, each stacked to [n, ...].

    Args:
      names: of the fields, by the key of the config that names them, such as 'task.columns'.

    Raises:
      UserError: for a field that is not there, values of several shapes, or no record.
    """
    if not len(source):
        raise errors.UserError('There are no records.')
    fields = {name: key for key, several in names.items() for name in several}
    if hasattr(source, 'take'):
        records = source.take(np.arange(len(source)))
        return {name: field_of(records, name, key) for name, key in fields.items()}
    columns = {name: [] for name in fields}
    for i in range(len(source)):
        record = source[i]
        for name, key in fields.items():
            with errors.told_of(f'Record {i}'):
                columns[name].append(np.asarray(field_of(record, name, key)))
    return {name: _stacked(values, name) for name, values in columns.items()}


def _stacked(values: Sequence[np.ndarray], name: str) -> np.ndarray:
    for i, value in enumerate(values):
        if value.shape != values[0].shape:
            raise errors.UserError(
                f'The field {name!r} is {list(value.shape)} in record {i}, and '
                f'{list(values[0].shape)} in record 0: all must have one shape.'
            )
    column = np.stack(values)
    if column.ndim == 1 and column.dtype.kind == 'f' and any(map(_is_large, values)):
        return np.stack(values, dtype=object, casting='unsafe')
    return column


def _is_large(value: np.ndarray) -> bool:
    """Whether one value is an integer that a float may round to another: an id, say."""
    return value.dtype.kind in 'iu' and not -(2**53) < int(value) < 2**53


def checked_labels(
    labels: Any, num_classes: int, key: str, limit: str = 'model.num_classes'
) -> np.ndarray:
    """Labels, integers from 0 to under `num_classes` or booleans, as int32 of the same shape.

    Args:
      key: what they were read by, for the error, such as "task.label_key = 'label'".
      limit: the key of the config that `num_classes` is from, for the error.

    Raises:
      UserError: for what is no integer, or out of range.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in 'iub':
        raise errors.UserError(f'{key} is of {labels.dtype}: labels are integers.')
    known = (labels >= 0) & (labels < num_classes)
    if not known.all():
        raise errors.UserError(
            f'Label {labels[~known][0]} is out of range: {limit} is {num_classes}.'
        )
    return labels.astype(np.int32)


def checked_seeds(seeds: Any) -> np.ndarray:
    """Seeds, integers from 0 to 2**32 - 1, as uint32 of the same shape.

    Raises:
      UserError: for what is no integer, or out of range.
    """
    found = np.asarray(seeds)
    if found.dtype.kind not in 'iu' or (found < 0).any() or (found >= 2**32).any():
        raise errors.UserError(f'The seed {seeds!r} must be an integer from 0 to 2**32 - 1.')
    return found.astype(np.uint32)
