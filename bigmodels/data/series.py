"""Windows of a time series, as examples."""

import dataclasses

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index


@dataclasses.dataclass(frozen=True)
class Windows:
    """Every stretch of a series: `input_length` rows and the `horizon` rows after them.

    Example i begins at row i: {'inputs': float32 [L, C], 'targets': float32 [H, C]}.
    """

    series: np.ndarray  # float32 [T, C]
    input_length: int
    horizon: int

    def __post_init__(self):
        if len(self) < 1:
            raise errors.UserError(
                f'A series of {len(self.series)} rows is too short for windows of '
                f'{self.input_length} rows and a horizon of {self.horizon}.'
            )

    def __len__(self) -> int:
        return max(0, len(self.series) - self.input_length - self.horizon + 1)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        taken = self.take(np.array([checked_index(index, len(self))]))
        return {name: value[0] for name, value in taken.items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The windows that begin at int64 [n] rows, stacked."""
        rows = self.series[indices[:, None] + np.arange(self.input_length + self.horizon)]
        return {'inputs': rows[:, : self.input_length], 'targets': rows[:, self.input_length :]}
