"""batch(t): from examples to batches, as a function of (config, seed, t) and of nothing else.

A pipeline is a grain MapDataset, so `batches[t]` is batch t, computed alone. Each host indexes
its own part of the same global batches, so another number of hosts sees the same examples at the
same step.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from bigmodels import errors
from bigmodels.data import shuffling


def cache_dir() -> pathlib.Path:
    """Where tokenised corpora and compiled programs are kept between runs.

    $BIGMODELS_CACHE, or `bigmodels` in the user's cache directory.
    """
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(os.environ.get('BIGMODELS_CACHE') or pathlib.Path(base) / 'bigmodels')


@contextlib.contextmanager
def writing_cache(folder: pathlib.Path) -> Iterator[None]:
    """Makes `folder`; what it cannot be given is a UserError that says how to have another."""
    made = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = True
        yield
    except OSError as error:
        if made and error.errno not in errors.STORAGE:  # as of what is read meanwhile
            raise
        file = f' ({error.filename})' if error.filename else ''
        raise errors.UserError(
            f'The cache of data in {folder} cannot be written: {error.strerror}{file}. Make room, '
            f'or set the environment variable BIGMODELS_CACHE to another folder.'
        ) from error


# (blocks, count): of each global batch's `count` equal blocks of rows, those that a host feeds,
# ascending. Hosts may feed the same ones, as where a mesh splits layers and not the batch.
Shard = tuple[Sequence[int], int]
WHOLE: Shard = ((0,), 1)


def take(examples: Sequence, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The examples, or records, of these indices stacked: by their own `take`, if they have one.

    Args:
      indices: int64 [n] in [0, len(examples)).
    """
    if hasattr(examples, 'take'):
        return examples.take(indices)
    return stacked([examples[index] for index in indices.tolist()])


def stacked(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Equally shaped examples as one dict of arrays with a leading axis.

    Raises:
      UserError: for arrays of several shapes.
    """

    def stack(key: str) -> np.ndarray:
        values = [example[key] for example in examples]
        try:
            return np.stack(values)
        except ValueError as error:
            shapes = errors.some(sorted({str(np.shape(value)) for value in values}))
            raise errors.UserError(
                f"The examples' {key} are of several shapes: {shapes}. Where they are images, "
                'task.image_size gives them one.'
            ) from error

    return {key: stack(key) for key in examples[0]}


class _Concatenated(Sequence):
    """Several sources as one sequence of records."""

    def __init__(self, sources: Sequence[Sequence]):
        self._sources = sources
        named = [getattr(source, 'classes', None) for source in sources]
        self.classes = next(filter(None, named), None)  # no two have others

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, index: int) -> Mapping:
        for source in self._sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def concatenated(sources: Sequence[Sequence]) -> Sequence:
    """The records of all sources, one source after the other."""
    return sources[0] if len(sources) == 1 else _Concatenated(sources)


def training_batches(
    parts: Sequence[tuple[Sequence, float]],
    batch_size: int,
    seed: int,
    shard: Shard = WHOLE,
    order: Sequence[int] | None = None,
) -> grain.MapDataset:
    """Endless batches: each part shuffled anew in every epoch, mixed by weight.

    Args:
      parts: (examples, weight); an example is a dict of arrays.
      batch_size: of the global batch.
      seed: of the order.
      shard: this host's part.
      order: another one than that: the numbers of the examples, all parts counted on, row by row.
        One past the last stands for a row of weight 0.

    Returns:
      A dataset whose element t is a dict of arrays [batch_size / count * len(blocks), ...], the
      host's rows of global batch t in their order.
    """
    joined = _Joined(tuple(examples for examples, _ in parts))
    if order is not None:
        return _batches(order, _Padded(joined).take, batch_size, shard)
    return _batches(_order(parts, seed), joined.take, batch_size, shard)


def training_ids(
    parts: Sequence[tuple[Sequence, float]],
    batch_size: int,
    seed: int,
    order: Sequence[int] | None = None,
) -> grain.MapDataset:
    """Which examples the global batches of `training_batches` hold, computed without reading them.

    Args:
      parts, batch_size, seed, order: as there; of the examples only their number counts.

    Returns:
      A dataset whose element t is {'part', 'example' int64 [batch_size]}: row i of batch t is
      parts[part[i]][0][example[i]]; a row of weight 0 is of no part, len(parts).
    """
    joined = _Joined(tuple(examples for examples, _ in parts))
    order = _order(parts, seed) if order is None else order
    return _batches(order, joined.locate, batch_size, WHOLE)


def evaluation_batches(
    examples: Sequence, batch_size: int, shard: Shard = WHOLE
) -> grain.MapDataset:
    """Every example once, in order; the last batch is filled up with examples of weight 0."""
    if not len(examples):
        raise errors.UserError('There are no examples in the evaluation source.')
    order = range(len(examples) + -len(examples) % batch_size)
    return _batches(order, _Padded(examples).take, batch_size, shard)


def _order(parts: Sequence[tuple[Sequence, float]], seed: int) -> Sequence[int]:
    """The endless sequence of the examples' numbers in `_Joined`, in the order of training."""
    if any(weight <= 0 for _, weight in parts):
        raise errors.UserError('The weights of a mixture must be positive.')
    numbers, start = [], 0
    for i, (examples, _) in enumerate(parts):
        if not len(examples):
            raise errors.UserError('There are no training examples in the source.')
        # Hashed: epoch e is shuffled with seed + e, which must not be another run's or part's seed.
        [hashed] = np.random.SeedSequence([seed % 2**32, i]).generate_state(1)
        numbers.append(shuffling.endless(start, len(examples), int(hashed)))
        start += len(examples)
    if len(parts) == 1:
        return numbers[0]
    endless = [grain.MapDataset.source(part) for part in numbers]
    return grain.MapDataset.mix(endless, weights=[weight for _, weight in parts])


def _batches(
    order: Sequence[int], fetch: Callable[[np.ndarray], Any], batch_size: int, shard: Shard
) -> grain.MapDataset:
    """Batches of this host's rows of each global batch; the other rows are not read."""
    if batch_size % shard[1]:
        raise errors.UserError(
            f'config.batch_size = {batch_size} does not divide over {shard[1]} parts.'
        )
    return grain.MapDataset.source(_Batches(order, fetch, batch_size, shard))


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Element t is fetched at once, by the numbers of the examples in this host's rows of it."""

    order: Sequence[int]
    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    batch_size: int
    shard: Shard

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __getitem__(self, t: int) -> dict[str, np.ndarray]:
        blocks, count = self.shard
        size = self.batch_size // count
        starts = t * self.batch_size + size * np.array(blocks)
        rows = (starts[:, None] + np.arange(size)).ravel()
        if hasattr(self.order, 'take'):
            return self.fetch(self.order.take(rows))
        return self.fetch(np.array([self.order[row] for row in rows.tolist()]))


@dataclasses.dataclass(frozen=True)
class _Joined:
    """Examples of all parts under one numbering, one part after the other."""

    parts: tuple[Sequence, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def locate(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """{'part', 'example'} of each number, int64 [n] as they are."""
        lengths = np.array([len(examples) for examples in self.parts])
        stops = lengths.cumsum()
        part = np.searchsorted(stops, numbers, side='right')
        return {'part': part, 'example': numbers - np.append(0, stops)[part]}

    def take(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Their examples stacked in this order, with weights."""
        if len(self.parts) == 1:
            return _take_weighted(self.parts[0], numbers)
        part, example = self.locate(numbers).values()
        present = np.unique(part).tolist()
        taken = {p: _take_weighted(self.parts[p], example[part == p]) for p in present}
        _check_alike(taken)
        back = np.argsort(np.argsort(part, kind='stable'))  # from the order of parts to this one
        return {
            key: np.concatenate([rows[key] for rows in taken.values()])[back]
            for key in taken[present[0]]
        }


def _check_alike(taken: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Raises UserError where examples of two parts, by their numbers, cannot be in one batch."""
    shapes = {p: {key: x.shape[1:] for key, x in rows.items()} for p, rows in taken.items()}
    first, *others = shapes
    for p in others:
        one, other = shapes[first], shapes[p]
        differing = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
        if differing:
            listed = ', '.join(
                f'{key} {one.get(key, "none")} and {other.get(key, "none")}' for key in differing
            )
            raise errors.UserError(
                f'The examples of sources {first} and {p} of the mixture, counted from 0 in the '
                f'order of their names, do not fit into one batch: {listed}. Give sources whose '
                f'examples have the same arrays of the same shapes.'
            )


@dataclasses.dataclass(frozen=True)
class _Padded:
    """Examples that go on, with the first one at weight 0, behind their end."""

    examples: Sequence

    def take(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Examples stacked in this order, with weights."""
        real = numbers < len(self.examples)
        batch = _take_weighted(self.examples, np.where(real, numbers, 0))
        batch['weights'][~real] = 0
        return batch


def _take_weighted(examples: Sequence, indices: np.ndarray) -> dict[str, np.ndarray]:
    """`take` with a float32 entry 'weights', 1 where the examples have none."""
    batch = take(examples, indices)
    weights = batch.get('weights', np.ones(len(indices), np.float32))
    return batch | {'weights': np.asarray(weights, np.float32)}


def prefetched(
    batches: grain.MapDataset, start: int, settings: Any
) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches from `start` on, prepared ahead of use; how cannot change what they hold.

    Args:
      settings: threads and buffer, prefetching threads and the batches they may be ahead; and
        workers, processes that do it instead for costly transforms. Each takes seconds to start.
    """
    if not settings.workers:
        return _prefetched_by_threads(batches, start, settings.threads, settings.buffer)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's processes read absl flags
    threads = grain.ReadOptions(
        num_threads=settings.threads, prefetch_buffer_size=settings.buffer * bool(settings.threads)
    )
    processes = grain.MultiprocessingOptions(
        num_workers=settings.workers, per_worker_buffer_size=settings.buffer
    )
    return iter(batches[start:].to_iter_dataset(threads).mp_prefetch(processes))


def _prefetched_by_threads(
    batches: Sequence, start: int, threads: int, buffer: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Thread i of n makes the batches start + i, start + i + n, ..., some at a time.

    For quick steps: in the loop's thread this costs a tenth of what grain's own iterator does, or
    a pool of threads, and Python's lock changes hands more rarely.
    """
    steps = range(start, len(batches))
    if not threads:
        yield from map(batches.__getitem__, steps)
        return
    some = max(1, buffer // (2 * threads))
    lanes = [(queue.SimpleQueue(), queue.SimpleQueue()) for _ in range(threads)]
    for i, (orders, made) in enumerate(lanes):
        orders.put(2 * some)
        arguments = (batches, steps[i::threads], orders, made)
        threading.Thread(target=_make_batches, args=arguments, daemon=True).start()
    try:
        for i in range(len(steps)):
            orders, made = lanes[i % threads]
            batch = made.get()
            if isinstance(batch, BaseException):
                raise batch
            if i // threads % some == some - 1:
                orders.put(some)
            yield batch
    finally:
        for orders, _ in lanes:
            orders.put(0)


def _make_batches(
    batches: Sequence, steps: range, orders: queue.SimpleQueue, made: queue.SimpleQueue
) -> None:
    """Puts as many of the batches of `steps` as are ordered, until none are, or an error."""
    steps = iter(steps)
    try:
        while count := orders.get():
            for step in itertools.islice(steps, count):
                made.put(batches[step])
    except BaseException as error:  # it is the loop's
        made.put(error)
