"""batch(t) is a function of (seed, t): on any number of hosts, threads and processes."""

import collections
import dataclasses
import itertools
import threading

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import pipeline


@dataclasses.dataclass(frozen=True)
class Numbers:
    """`count` examples with ids of their own; a class of this module, so that it is picklable."""

    count: int
    first: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {'id': np.int64(self.first + index), 'x': np.full(3, index, np.float32)}


@dataclasses.dataclass(frozen=True)
class WeightedTokens(Numbers):
    """Examples whose weights are an array [L]."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {'weights': np.array([1, 1, index % 2], np.float32)}


@dataclasses.dataclass(frozen=True)
class TakenNumbers(Numbers):
    """The same examples, several at once."""

    def take(self, indices):
        assert indices.dtype == np.int64
        rows = np.repeat(indices[:, None].astype(np.float32), 3, axis=1)
        return {'id': self.first + indices, 'x': rows}


@dataclasses.dataclass(frozen=True)
class Failing(Numbers):
    """Examples of which number 17 cannot be read."""

    def __getitem__(self, index):
        if index == 17:
            raise errors.UserError('example 17 is broken')
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class Feed:
    threads: int = 0
    buffer: int = 4
    workers: int = 0


def training(count=10, batch_size=4, seed=3, shard=pipeline.WHOLE):
    return pipeline.training_batches([(Numbers(count), 1.0)], batch_size, seed, shard)


def ids(batches, start, stop):
    return [batches[t]['id'].tolist() for t in range(start, stop)]


def first(iterator, count):
    return [batch['id'].tolist() for batch in itertools.islice(iterator, count)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


def test_a_batch_alone_is_that_of_the_iteration():
    iterated = list(itertools.islice(pipeline.prefetched(training(), 0, Feed()), 12))
    for t in (11, 0, 7, 3):
        assert_equal(training()[t], iterated[t])
    batch = iterated[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        'id': ((4,), 'int64'),
        'x': ((4, 3), 'float32'),
        'weights': ((4,), 'float32'),
    }
    assert batch['weights'].all()
    assert len(training()) > 10**9


def test_resuming_is_slicing():
    whole = ids(training(), 0, 20)
    for start in (0, 1, 5, 13):
        assert first(pipeline.prefetched(training(), start, Feed()), 6) == whole[start : start + 6]


@pytest.mark.parametrize('threads', [1, 4])
def test_threads_change_nothing(threads):
    expected = ids(training(), 5, 30)
    assert first(pipeline.prefetched(training(), 5, Feed(threads)), 25) == expected


@pytest.mark.parametrize('threads', [1, 3])
def test_an_error_comes_in_its_turn_and_a_finite_sequence_ends(threads):
    batches = pipeline.evaluation_batches(Failing(21), 4)
    feed = pipeline.prefetched(batches, 1, Feed(threads, buffer=2))
    assert [next(feed)['id'][0] for _ in range(3)] == [4, 8, 12]
    with pytest.raises(errors.UserError, match='example 17 is broken'):
        next(feed)
    whole = pipeline.evaluation_batches(Numbers(21), 4)
    assert len(list(pipeline.prefetched(whole, 1, Feed(threads, buffer=50)))) == 5


def test_prefetching_stops_with_its_reader():
    before = set(threading.enumerate())
    feed = pipeline.prefetched(training(), 0, Feed(threads=2))
    next(feed)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    feed.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.slow
def test_processes_change_nothing():
    expected = ids(training(), 5, 15)
    feed = pipeline.prefetched(training(), 5, Feed(threads=1, buffer=2, workers=2))
    assert first(feed, 10) == expected


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_share_the_same_global_batches(hosts):
    parts = [training(shard=((host,), hosts)) for host in range(hosts)]
    for t in range(8):
        joined = np.concatenate([part[t]['id'] for part in parts])
        np.testing.assert_array_equal(joined, training()[t]['id'])
        feeds = [pipeline.prefetched(part, t, Feed()) for part in parts]
        assert sum((next(feed)['id'].tolist() for feed in feeds), []) == joined.tolist()


def test_a_host_may_feed_any_blocks_of_rows():
    """In the order of the global batch; two hosts may feed the same ones."""
    whole, one, other = (
        training(batch_size=8, shard=(blocks, 4)) for blocks in ((0, 1, 2, 3), (0, 2), (2, 3))
    )
    for t in range(8):
        rows = training(batch_size=8)[t]['id'].tolist()
        assert whole[t]['id'].tolist() == rows
        assert one[t]['id'].tolist() == rows[0:2] + rows[4:6]
        assert other[t]['id'].tolist() == rows[4:8]
    assert one[3]['x'].shape == (4, 3)
    held_out = pipeline.evaluation_batches(Numbers(13), 8, ((0, 3), 4))
    assert ids(held_out, 0, 2) == [[0, 1, 6, 7], [8, 9, 0, 0]]
    assert held_out[1]['weights'].tolist() == [1, 1, 0, 0]


def test_each_epoch_is_another_permutation():
    stream = sum(ids(training(count=40), 0, 50), [])
    epochs = [stream[i : i + 40] for i in range(0, 200, 40)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_an_epoch_need_not_divide_into_batches():
    stream = sum(ids(training(count=7, batch_size=4), 0, 7), [])
    assert collections.Counter(stream) == dict.fromkeys(range(7), 4)


def test_seeds_give_unrelated_orders():
    """Not even shifted ones: epoch 1 of seed 3 is not epoch 0 of seed 4."""
    epochs = set()
    for seed in range(4):
        stream = sum(ids(training(count=12, seed=seed), 0, 12), [])
        epochs |= {tuple(stream[i : i + 12]) for i in range(0, 48, 12)}
    assert len(epochs) == 16
    assert ids(training(seed=-1), 0, 2) == ids(training(seed=2**32 - 1), 0, 2)


def test_mixture_keeps_its_proportions():
    parts = [(Numbers(30), 1.0), (Numbers(30, first=100), 3.0)]
    batches = pipeline.training_batches(parts, 8, 0)
    stream = np.array(sum(ids(batches, 0, 60), []))
    assert (stream >= 100).sum() == 360
    for start in range(0, 480, 48):  # throughout, not only in the end
        assert abs((stream[start : start + 48] >= 100).sum() - 36) <= 1
    small, large = stream[stream < 100], stream[stream >= 100]
    assert sorted(small[:30]) == list(range(30))
    assert sorted(large[:30]) == list(range(100, 130))
    assert small[:30].tolist() != (large[:30] - 100).tolist()
    assert ids(batches, 3, 5) == [batches[3]['id'].tolist(), batches[4]['id'].tolist()]
    halves = [pipeline.training_batches(parts, 8, 0, ((host,), 2)) for host in range(2)]
    for t in range(5):
        joined = np.concatenate([half[t]['id'] for half in halves])
        np.testing.assert_array_equal(joined, batches[t]['id'])


@pytest.mark.parametrize('counts', [(7,), (5, 30, 11)], ids=['one source', 'a mixture'])
def test_ids_lead_to_the_examples_of_the_batch(counts):
    """Over several epochs of each part, with the numbers of parts and of examples distinct."""
    parts = [(Numbers(count, first=1000 * i), i + 1.0) for i, count in enumerate(counts)]
    batches = pipeline.training_batches(parts, 8, 3)
    numbered = pipeline.training_ids(parts, 8, 3)
    seen = collections.Counter()
    for t in range(40):
        named = numbered[t]
        examples = [
            parts[part][0][index]['id']
            for part, index in zip(named['part'], named['example'], strict=True)
        ]
        assert batches[t]['id'].tolist() == examples
        seen.update(examples)
    assert len(seen) == sum(counts)
    assert min(seen.values()) >= 2


def test_batches_are_those_of_single_examples():
    """Also where a mixture has parts of both kinds, and in a padded last batch."""
    single = [(Numbers(13), 1.0), (Numbers(5, first=50), 2.0), (Numbers(9, first=70), 0.5)]
    taken = [(TakenNumbers(13), 1.0), (Numbers(5, first=50), 2.0), (TakenNumbers(9, 70), 0.5)]
    for few in (1, 3):
        for shard in (pipeline.WHOLE, ((1, 2), 4)):
            one, other = (
                pipeline.training_batches(parts[:few], 16, 1, shard) for parts in (single, taken)
            )
            for t in (0, 1, 30):
                assert_equal(one[t], other[t])
    one, other = (pipeline.evaluation_batches(parts[0][0], 8) for parts in (single, taken))
    assert_equal(one[1], other[1])
    assert other[1]['weights'].tolist() == [1] * 5 + [0] * 3


@pytest.mark.parametrize('count', [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_evaluation_covers_each_example_once(count, hosts):
    counted, steps = [], set()
    for host in range(hosts):
        batches = pipeline.evaluation_batches(Numbers(count), 8, ((host,), hosts))
        steps.add(len(batches))
        for t in range(len(batches)):
            batch = batches[t]
            assert batch['id'].shape == (8 // hosts,)
            counted += batch['id'][batch['weights'] == 1].tolist()
            assert set(batch['weights']) <= {0, 1}
    assert sorted(counted) == list(range(count))
    assert steps == {-(-count // 8)}  # every host takes part in every step
    one = pipeline.evaluation_batches(Numbers(count), 8)
    assert sum(ids(one, 0, len(one)), [])[:count] == list(range(count))


def test_weights_of_the_examples_are_kept():
    batches = pipeline.evaluation_batches(WeightedTokens(3), 2)
    np.testing.assert_array_equal(batches[0]['weights'], [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(batches[1]['weights'], [[1, 1, 0], [0, 0, 0]])


def test_examples_of_several_shapes_are_named():
    with pytest.raises(errors.UserError, match=r"examples' inputs .*: \(2, 3\), \(2, 4\)"):
        pipeline.stacked([{'inputs': np.zeros((2, 3))}, {'inputs': np.zeros((2, 4))}])


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (WeightedTokens(9), r'of sources 0 and 1 of .*: weights \(\) and \(3,\)\.'),
        ([{'id': np.int64(0)}] * 9, r'of sources 0 and 1 of .*: x \(3,\) and none\.'),
    ],
)
def test_sources_of_a_mixture_that_do_not_fit_together_are_named(other, message):
    batches = pipeline.training_batches([(Numbers(9), 1.0), (other, 1.0)], 8, 0)
    with pytest.raises(errors.UserError, match=message):
        batches[0]


def test_mistakes():
    for build, message in (
        (lambda: training(count=0), 'no training examples'),
        (lambda: pipeline.evaluation_batches(Numbers(0), 4), 'no examples in the evaluation'),
        (lambda: training(batch_size=4, shard=((0,), 3)), 'batch_size = 4 does not divide over 3'),
        (lambda: pipeline.training_batches([(Numbers(3), 0.0)], 1, 0), 'must be positive'),
    ):
        with pytest.raises(errors.UserError, match=message):
            build()


def test_a_batch_larger_than_the_source():
    batch = training(count=3, batch_size=8)[0]['id'].tolist()
    assert max(collections.Counter(batch).values()) == 3
