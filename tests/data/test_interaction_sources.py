"""Splits of interactions: what they hold, that nothing later is in them, and bad files."""

import collections

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources import interaction_sources
from tests.data import interaction_files

COLUMNS = interaction_files.COLUMNS
SPLITS = interaction_sources.SPLITS


@pytest.fixture
def rows():
    """Users with one to eight interactions, all at different times."""
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    times = rng.permutation(len(users)) + 10_000
    return [(f'u{u}', f'{rng.integers(20):03d}', rng.integers(0, 11), t)
            for u, t in zip(users, times, strict=True)]  # fmt: skip


def histories(path: str, split: str, **settings):
    source = interaction_sources.Histories(path, split, columns=COLUMNS, **settings)
    return source, [source[i] for i in range(len(source))]


def by_user(rows) -> dict[str, list[tuple]]:
    found = collections.defaultdict(list)
    for row in sorted(rows, key=lambda row: row[3]):
        found[row[0]].append(row)
    return found


def test_the_last_ones_are_left_out(rows, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    expected = {split: {} for split in SPLITS}
    for user, own in by_user(rows).items():
        items = [row[1] for row in own]
        if len(items) < 3:
            expected['train'][user] = items
        else:
            expected['train'][user] = items[:-2]
            expected['valid'][user], expected['test'][user] = items[:-1], items
    for split in SPLITS:
        _, records = histories(path, split)
        assert {record['user']: record['items'].tolist() for record in records} == expected[split]
        for record in records:
            assert (np.diff(record['timestamps']) > 0).all()
            assert record['ratings'].dtype == np.float32


def test_split_by_time_holds_out_every_later_one_after_what_came_before(rows, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    ordered = sorted(rows, key=lambda row: row[3])
    first, second = int(0.6 * len(rows)), int(0.8 * len(rows))
    settings = dict(split_by='time', fractions=(0.6, 0.8))
    _, train = histories(path, 'train', **settings)
    assert {record['user']: record['items'].tolist() for record in train} == {
        user: [row[1] for row in own] for user, own in by_user(ordered[:first]).items()
    }
    for split, (start, stop) in {'valid': (first, second), 'test': (second, len(rows))}.items():
        source, records = histories(path, split, **settings)
        expected, cold = [], 0
        for held_out in ordered[start:stop]:
            own = [row for row in by_user(rows)[held_out[0]] if row[3] <= held_out[3]]
            cold += len(own) == 1
            if len(own) > 1:
                expected.append((held_out[0], [row[1] for row in own]))
        found = [(record['user'], record['items'].tolist()) for record in records]
        assert sorted(found) == sorted(expected)
        assert (f'{cold} left out' in source.describe()) == (cold > 0)


@pytest.mark.parametrize('split_by', ['leave_one_out', 'time'])
def test_training_and_what_stands_before_do_not_know_what_comes_later(rows, tmp_path, split_by):
    """Other items and ratings in the test split change no training or validation record."""
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    log = interaction_sources.read(path, COLUMNS, (0, 10), split_by, (0.6, 0.8))
    held_out = set(log.timestamp[log.split == 2].tolist())
    changed = [
        (user, '999', 10 - rating, time) if time in held_out else (user, item, rating, time)
        for user, item, rating, time in rows
    ]
    other = interaction_files.write(tmp_path / 'b.csv', changed)
    settings = dict(split_by=split_by, fractions=(0.6, 0.8))
    for split in ('train', 'valid'):
        for one, two in zip(*(histories(p, split, **settings)[1] for p in (path, other)),
                            strict=True):  # fmt: skip
            assert one['items'].tolist() == two['items'].tolist()
            assert one['ratings'].tolist() == two['ratings'].tolist()
    if split_by == 'time':  # else a test interaction may be before another user's training
        for split in ('train', 'valid'):
            one, two = (
                interaction_sources.Interactions(p, split, columns=COLUMNS, **settings)
                for p in (path, other)
            )
            assert [one[i] for i in range(len(one))] == [two[i] for i in range(len(two))]


def test_the_order_of_the_file_counts_only_where_times_are_equal(rows, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    again = interaction_files.write(tmp_path / 'b.csv', rows[::-1])
    for split in SPLITS:
        one, two = histories(path, split)[1], histories(again, split)[1]
        assert [r['items'].tolist() for r in one] == [r['items'].tolist() for r in two]
    same = interaction_files.write(tmp_path / 'c.csv', [('u', i, 5, 7) for i in 'cab'])
    assert histories(same, 'test')[1][0]['items'].tolist() == ['c', 'a', 'b']


def test_means_are_of_earlier_ratings_alone(rows, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    source = interaction_sources.Interactions(path, 'test', columns=COLUMNS)
    for i in range(len(source)):
        record = source[i]
        earlier = [row for row in rows if row[3] < record['timestamp']]
        prior = sum(row[2] for row in earlier) / (len(earlier) + 5)
        for name, place in (('user', 0), ('item', 1)):
            own = [row[2] for row in earlier if row[place] == record[name]]
            assert record[f'{name}_count'] == len(own)
            mean = (sum(own) + 5 * prior) / (len(own) + 5)
            np.testing.assert_allclose(record[f'{name}_mean'], mean, rtol=1e-5)


def test_fingerprints_differ_by_split_and_settings(rows, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    kinds = interaction_sources.Histories, interaction_sources.Interactions
    settings = [dict(split_by='leave_one_out'), dict(split_by='time')]
    settings.append(dict(split_by='time', fractions=(0.5, 0.9)))
    found = [
        kind(path, split, columns=COLUMNS, **given).fingerprint()
        for kind in kinds for split in SPLITS for given in settings
    ]  # fmt: skip
    assert len(set(found)) == len(found)


BAD = {
    'rating of .*, record 1: the rating 11 is not from 0 to 10': [('a', 1, 3, 5), ('a', 2, 11, 6)],
    'record 0: the rating nan is not from': [('a', 1, 'nan', 5), ('a', 2, 1, 6)],
    "record 1: 'good' is no number": [('a', 1, 3, 5), ('a', 2, 'good', 6)],
    'timestamp of .* must be integers': [('a', 1, 3, 5.5), ('a', 2, 3, 6)],
    'movie_id of .* is of broken numbers': [('a', 1.5, 3, 5), ('a', 2, 3, 6)],
    'record 1: user_id is empty': [('a', 1, 3, 5), ('', 2, 3, 6)],
}


@pytest.mark.parametrize('message', BAD)
def test_bad_values_are_named(message, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', BAD[message])
    with pytest.raises(errors.UserError, match=message):
        interaction_sources.Histories(path, columns=COLUMNS)


def test_a_missing_column_an_empty_split_and_wrong_fractions(rows, tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', rows)
    with pytest.raises(errors.UserError, match="Unknown column of .*'item_id'.*movie_id"):
        interaction_sources.Histories(path)
    with pytest.raises(errors.UserError, match='fractions = .* must be'):
        interaction_sources.Interactions(path, columns=COLUMNS, fractions=(0.9, 0.8))
    with pytest.raises(errors.UserError, match="no interaction is in 'test'"):
        interaction_sources.Interactions(path, 'test', columns=COLUMNS, fractions=(0.9, 1.0))
    short = interaction_files.write(tmp_path / 'b.csv', [('a', 1, 3, 5), ('b', 2, 3, 6)])
    with pytest.raises(errors.UserError, match="no user has a history in 'valid'"):
        interaction_sources.Histories(short, 'valid', columns=COLUMNS)
