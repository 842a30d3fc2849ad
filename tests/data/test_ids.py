"""Ids as rows of a table: by frequency, with a row for what is unknown."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.cells import text_of
from bigmodels.data.ids import Ids
from bigmodels.data.sources import table_sources

SEEN = np.array(['b', 'ä', 'b', '07', 'b', 'ä', '7'], object)


def test_the_most_frequent_come_first_and_others_are_unknown():
    ids = Ids.fit(SEEN)
    assert ids.names == ('b', 'ä', '07', '7')
    assert ids.counts.tolist() == [3, 2, 1, 1]
    assert ids.rows(['7', 'b', 'c', '07']).tolist() == [4, 1, 0, 3]
    assert ids.num_rows == 5


def test_a_number_is_the_id_that_it_reads_as():
    ids = Ids.fit(SEEN)
    assert ids.rows([7, 70]).tolist() == [4, 0]
    assert ids.rows(np.array([7, 7])).tolist() == [4, 4]
    assert Ids.fit(np.array([7, 8, 8])).rows(['7', 8]).tolist() == [2, 1]


def test_an_id_is_the_same_whatever_type_its_column_was_read_as():
    whole = Ids.fit(np.array([5, 16_777_217, 16_777_217]))
    assert whole.names == ('16777217', '5')
    broken = np.array([5, np.nan, 16_777_217])  # as Csv reads a column with 'nan' in it
    assert whole.rows(broken).tolist() == [2, 0, 1]
    assert whole.rows(['5.0', '', '16777217']).tolist() == [2, 0, 1]
    both = Ids.fit(np.array(['1', '1.0', '07'], object))
    assert (both.names, both.counts.tolist()) == (('1', '07'), [2, 1])
    assert Ids.fit(np.array(['12e4', '120000'], object)).names == ('120000', '12e4')
    assert Ids(('07', '1.0'), np.array([2, 1])).rows([1]).tolist() == [2]  # saved before


@pytest.mark.parametrize('value', ['12e4', '1.5e4', '1e+5', '2e-1', '5', '5.0', '007'])
def test_an_id_is_the_same_whatever_others_its_file_has(value, tmp_path):
    (tmp_path / 'many.csv').write_text(f'id\n{value}\n3f2a\n120000\n')
    (tmp_path / 'one.csv').write_text(f'id\n{value}\n')
    many, one = (table_sources.Csv(str(tmp_path / f'{name}.csv')) for name in ('many', 'one'))
    ids = Ids.fit([record['id'] for record in many])
    assert ids.names[ids.rows([one[0]['id']])[0] - 1] == text_of(many[0]['id'])
    assert len(ids.names) == 3


def test_rare_ones_are_unknown():
    ids = Ids.fit(SEEN, min_count=2)
    assert ids.names == ('b', 'ä')
    assert ids.rows(['07']).tolist() == [0]
    with pytest.raises(errors.UserError, match='No id occurs 4 times'):
        Ids.fit(SEEN, min_count=4)


def test_saved_and_restored(tmp_path):
    ids = Ids.fit(SEEN)
    ids.save(tmp_path / 'ids.json')
    restored = Ids.restore(tmp_path / 'ids.json')
    assert restored.names == ids.names
    assert restored.counts.tolist() == ids.counts.tolist()


def test_a_table_too_small_for_them_is_refused():
    Ids.fit(SEEN).check_rows('model.num_items', 5)
    with pytest.raises(errors.UserError, match='config.model.num_items is 4: .* at least 5'):
        Ids.fit(SEEN).check_rows('model.num_items', 4)
