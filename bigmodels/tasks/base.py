"""What tasks share: the methods of one that has nothing of its own to say, and whole sources."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bigmodels import errors
from bigmodels.data import pipeline


class Defaults:
    """The methods of a task whose metrics are means and whose batches are counted by examples."""

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


@contextlib.contextmanager
def told_of(source: Sequence) -> Iterator[None]:
    """A UserError within says of which source it is."""
    try:
        yield
    except errors.UserError as error:
        described = source.describe() if hasattr(source, 'describe') else 'The training records'
        raise errors.UserError(f'{described}. {error}') from error


def columns_of(source: Sequence) -> dict[str, np.ndarray]:
    """All records of a source, stacked."""
    return pipeline.take(source, np.arange(len(source)))
