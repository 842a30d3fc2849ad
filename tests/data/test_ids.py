"""Ids as rows of a table: by frequency, with a row for what is unknown."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.ids import Ids

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
