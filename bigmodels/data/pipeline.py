"""batch(t): from examples to batches, as a function of (config, seed, t) and of nothing else.

A pipeline is a grain MapDataset, so `batches[t]` is batch t, computed alone. Each host indexes
its own part of the same global batches, so another number of hosts sees the same examples at the
same step.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from bigmodels import errors


def cache_dir() -> pathlib.Path:
    """Where tokenised corpora and compiled programs are kept between runs.

    $BIGMODELS_CACHE, or `bigmodels` in the user's cache directory.
    """
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(os.environ.get('BIGMODELS_CACHE') or pathlib.Path(base) / 'bigmodels')


# (blocks, count): of each global batch's `count` equal blocks of rows, those that a host feeds,
# ascending. Hosts may feed the same ones, as where a mesh splits layers and not the batch.
Shard = tuple[Sequence[int], int]
WHOLE: Shard = ((0,), 1)


def training_batches(
    parts: Sequence[tuple[Sequence, float]], batch_size: int, seed: int, shard: Shard = WHOLE
) -> grain.MapDataset:
    """Endless batches: each part shuffled anew in every epoch, mixed by weight.

    Args:
      parts: (examples, weight); an example is a dict of arrays.
      batch_size: of the global batch.
      seed: of the order.
      shard: this host's part.

    Returns:
      A dataset whose element t is a dict of arrays [batch_size / count * len(blocks), ...], the
      host's rows of global batch t in their order.
    """
    weighted = [(Weighted(examples), weight) for examples, weight in parts]
    return _sharded(_mixed(weighted, seed), batch_size, shard)


def training_ids(
    parts: Sequence[tuple[Sequence, float]], batch_size: int, seed: int
) -> grain.MapDataset:
    """Which examples the global batches of `training_batches` hold, computed without reading them.

    Args:
      parts, batch_size, seed: as there; of the examples only their number counts.

    Returns:
      A dataset whose element t is {'part', 'example' int64 [batch_size]}: row i of batch t is
      parts[part[i]][0][example[i]].
    """
    numbered = [
        (Numbered(part, len(examples)), weight) for part, (examples, weight) in enumerate(parts)
    ]
    return _sharded(_mixed(numbered, seed), batch_size, WHOLE)


def _mixed(parts: Sequence[tuple[Sequence, float]], seed: int) -> grain.MapDataset:
    """The endless sequence of the parts' elements, in the order of training."""
    if any(weight <= 0 for _, weight in parts):
        raise errors.UserError('The weights of a mixture must be positive.')
    datasets = []
    for i, (examples, _) in enumerate(parts):
        if not len(examples):
            raise errors.UserError('There are no training examples in the source.')
        # Hashed: epoch e is shuffled with seed + e, which must not be another run's or part's seed.
        [hashed] = np.random.SeedSequence([seed % 2**32, i]).generate_state(1)
        datasets.append(grain.MapDataset.source(examples).shuffle(seed=int(hashed)).repeat())
    if len(parts) == 1:
        return datasets[0]
    return grain.MapDataset.mix(datasets, weights=[weight for _, weight in parts])


def evaluation_batches(
    examples: Sequence, batch_size: int, shard: Shard = WHOLE
) -> grain.MapDataset:
    """Every example once, in order; the last batch is filled up with examples of weight 0."""
    if not len(examples):
        raise errors.UserError('There are no examples in the evaluation source.')
    padded = Weighted(examples, len(examples) + -len(examples) % batch_size)
    return _sharded(grain.MapDataset.source(padded), batch_size, shard)


def _sharded(dataset: grain.MapDataset, batch_size: int, shard: Shard) -> grain.MapDataset:
    """Batches of this host's rows of each global batch; the other rows are not read."""
    blocks, count = shard
    if batch_size % count:
        raise errors.UserError(
            f'config.batch_size = {batch_size} does not divide over {count} parts.'
        )
    parts = dataset.batch(batch_size // count, drop_remainder=True)
    return grain.MapDataset.source(_Blocks(parts, tuple(blocks), count))


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Element t joins the given ones of the `count` parts that global batch t comes in."""

    parts: grain.MapDataset
    blocks: tuple[int, ...]
    count: int

    def __len__(self) -> int:
        return len(self.parts) // self.count

    def __getitem__(self, t: int) -> dict[str, np.ndarray]:
        mine = [self.parts[t * self.count + block] for block in self.blocks]
        return {key: np.concatenate([part[key] for part in mine]) for key in mine[0]}


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Examples with a 'weights' entry, 1 where they have none; 0 from the real length on."""

    examples: Sequence
    padded_length: int | None = None

    def __len__(self) -> int:
        return self.padded_length or len(self.examples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        real = index < len(self.examples)
        example = dict(self.examples[index if real else 0])
        weights = np.asarray(example.get('weights', np.float32(1)), np.float32)
        return example | {'weights': weights if real else np.zeros_like(weights)}


@dataclasses.dataclass(frozen=True)
class Numbered:
    """In place of a part's examples: element i says that it is example i of this part."""

    part: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {'part': np.int64(self.part), 'example': np.int64(index)}


def prefetched(
    batches: grain.MapDataset, start: int, settings: Any
) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches from `start` on, prepared ahead of use; how cannot change what they hold.

    Args:
      settings: threads and buffer, prefetching threads and the batches they may be ahead; and
        workers, processes that do it instead for costly transforms. Each takes seconds to start.
    """
    buffer = settings.buffer if settings.threads else 0
    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=buffer)
    dataset = batches[start:].to_iter_dataset(options)
    if settings.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's processes read absl flags
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=settings.workers, per_worker_buffer_size=settings.buffer
            )
        )
    return iter(dataset)
