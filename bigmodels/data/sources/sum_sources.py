"""Random-access sources of sums whose answers can be checked."""

from typing import Literal

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index, digest


class Sums:
    """All sums a + b of numbers with at most so many digits; one in ten is held out as 'valid'.

    Which is decided by a hash of the sum. Record: {'prompt': '37+48=', 'answer': '85', 'text':
    '37+48=85'}.

    Raises:
      UserError: for digits outside 1 to 3.
    """

    def __init__(self, digits: int = 2, split: Literal['train', 'valid'] = 'train'):
        if not 1 <= digits <= 3:
            raise errors.UserError(f'digits = {digits} must be from 1 to 3.')
        self._digits, self._split = digits, split
        numbers = np.arange(10**digits)
        a, b = (grid.ravel() for grid in np.meshgrid(numbers, numbers, indexing='ij'))
        # Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4), by its upper bits.
        mixed = ((a * 1000 + b).astype(np.uint64) * 2654435761) % 2**32 // 2**16
        chosen = (mixed % 10 == 0) == (split == 'valid')
        self._pairs = np.stack([a[chosen], b[chosen]], axis=1)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, str]:
        a, b = self._pairs[checked_index(index, len(self))].tolist()
        return {'prompt': f'{a}+{b}=', 'answer': f'{a + b}', 'text': f'{a}+{b}={a + b}'}

    def fingerprint(self) -> str:
        return digest('sums', f'{self._digits} {self._split}')

    def describe(self) -> str:
        return f'sums of {self._digits} digits {self._split}: {len(self):,}'
