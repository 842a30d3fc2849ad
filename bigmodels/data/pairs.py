"""Pairs of token sequences side by side in rows, as training takes them."""

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index
from bigmodels.data.text import TokenCorpus, best_fit_decreasing


class PackedPairs:
    """Sources and targets in rows of `row_length` tokens each, no pair seeing another.

    Document i of both corpora is a pair, which takes as much of a row as the longer of the two.
    Example i is {'inputs', 'input_positions', 'input_segment_ids' int32 [L]} of the sources and
    {'targets', 'positions', 'segment_ids' int32 [L], 'weights' float32 [L]} of the targets:
    positions count from 0 in each text, segment ids from 1 in each row; padding is segment 0 and
    has weight 0.

    Args:
      longest: the most tokens of a source and of a target.
      cut_sources: longer sources keep their beginning and their last token, which ends them.

    Raises:
      UserError: if a text is longer.
    """

    def __init__(
        self,
        sources: TokenCorpus,
        targets: TokenCorpus,
        row_length: int,
        longest: tuple[int, int],
        cut_sources: bool = False,
    ):
        self._corpora = sources, targets
        self._row_length = row_length
        lengths = [np.diff(corpus.offsets) for corpus in self._corpora]
        if cut_sources:
            lengths[0] = np.minimum(lengths[0], longest[0])
        for name, length, most in zip(('source', 'target'), lengths, longest, strict=True):
            if length.max() > most:
                raise errors.UserError(
                    f'The {name} of record {length.argmax()} has {length.max()} tokens, more than '
                    f'task.{name}_length = {most}: raise it, or leave the record out.'
                )
        self._lengths = lengths
        row = best_fit_decreasing(np.maximum(*lengths), row_length)
        self._pairs = np.argsort(row, kind='stable')
        self._row_offsets = np.concatenate([[0], np.cumsum(np.bincount(row))])

    def __len__(self) -> int:
        return len(self._row_offsets) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch = self.take(np.array([checked_index(index, len(self))]))
        return {name: array[0] for name, array in batch.items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, as arrays [n, L]."""
        rows = [self._pairs[slice(*self._row_offsets[i : i + 2])] for i in indices]
        inputs, input_positions, input_segment_ids = self._filled(rows, 0)
        targets, positions, segment_ids = self._filled(rows, 1)
        return {
            'inputs': inputs,
            'input_positions': input_positions,
            'input_segment_ids': input_segment_ids,
            'targets': targets,
            'positions': positions,
            'segment_ids': segment_ids,
            'weights': (segment_ids > 0).astype(np.float32),
        }

    def _filled(self, rows, side: int) -> np.ndarray:
        """Tokens, positions and segment ids, int32 [3, n, L], of the pairs in each row."""
        corpus, lengths = self._corpora[side], self._lengths[side]
        filled = np.zeros((3, len(rows), self._row_length), np.int32)
        for row, pairs in enumerate(rows):
            at = 0
            for segment, pair in enumerate(pairs, 1):
                start, stop = corpus.offsets[pair : pair + 2]
                size = lengths[pair]
                tokens, positions, segment_ids = filled[:, row, at : at + size]
                tokens[:] = corpus.tokens[start : start + size]
                tokens[-1] = corpus.tokens[stop - 1]  # the end, also of a source that was cut
                positions[:] = np.arange(size)
                segment_ids[:] = segment
                at += size
        return filled
