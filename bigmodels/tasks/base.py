"""What a task does that has nothing of its own to say."""

from collections.abc import Mapping
from typing import Any


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
