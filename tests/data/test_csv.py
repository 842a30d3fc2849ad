"""Rows of a CSV file chosen and cleaned: what is left out is counted, what is refused is named."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources.table_sources import Csv

TEXT = 'x,y\n' + ''.join(f'{i},{i % 3}\n' for i in range(10))


def write(folder, text):
    path = folder / 'a.csv'
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ('rows', 'without', 'kept'),
    [
        (':', (), range(10)),
        ('4:8', (), range(4, 8)),
        ('4::5', (), [4, 9]),
        ('-3:', (), [7, 8, 9]),
        (':', ('4::5', '::10'), [1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_rows_are_slices_of_the_records(tmp_path, rows, without, kept):
    source = Csv(write(tmp_path, TEXT), rows=rows, without=without)
    assert source.take(np.arange(len(source)))['x'].tolist() == list(kept)
    assert (source.fingerprint() == Csv(write(tmp_path, TEXT)).fingerprint()) == (len(kept) == 10)


@pytest.mark.parametrize('rows', ['4', '1:2:3:4', 'a:b', '::0'])
def test_what_is_no_slice_is_refused(tmp_path, rows):
    with pytest.raises(errors.UserError, match=f'rows {rows!r} are no slice'):
        Csv(write(tmp_path, TEXT), rows=rows)


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(errors.UserError, match=r"no record in rows '3:3'"):
        Csv(write(tmp_path, TEXT), rows='3:3')


def test_numeric_columns_are_numbers_or_nan(tmp_path):
    source = Csv(write(tmp_path, 'a,b\n1,?\n,x\n NA ,?\n-2.5e1,y\n'), numeric=('a',))
    columns = source.take(np.arange(4))
    np.testing.assert_array_equal(columns['a'], np.float32([1, np.nan, np.nan, -25]))
    assert columns['b'].tolist() == ['?', 'x', '?', 'y']
    with pytest.raises(errors.UserError, match=r"column of .*a\.csv 'c'"):
        Csv(write(tmp_path, 'a,b\n1,2\n'), numeric=('c',))


def test_columns_of_text_are_as_written(tmp_path):
    path = write(tmp_path, 'a,b\n1.50,1\n007,2\n')
    plain, source = Csv(path), Csv(path, text=('a', 'b'))
    assert [source[i] for i in range(2)] == [{'a': '1.50', 'b': '1'}, {'a': '007', 'b': '2'}]
    assert plain.fingerprint() != source.fingerprint() == Csv(path, text=('a', 'b')).fingerprint()
    with pytest.raises(errors.UserError, match=r"column of .*a\.csv 'c'"):
        Csv(path, text=('c',))


BROKEN = 'a,b\n1,2\n1,two\n3\n1,inf\n5,6\n'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,b\n1,2\n3\n', r'a\.csv:3 has 1 values, the header has 2'),
        ('a,b\n1,2\n1,two\n', r"a\.csv:3 has 'two' in the column 'b'"),
        ('a,b\n1,inf\n', r"a\.csv:2 has 'inf' in the column 'b', which is no finite number"),
    ],
)
def test_broken_records_are_named(tmp_path, text, message):
    with pytest.raises(errors.UserError, match=message):
        Csv(write(tmp_path, text), numeric=('b',))


def test_a_number_has_no_underscores(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('a\n1_0\n')
    with pytest.raises(errors.UserError, match="'1_0' in the column 'a', which is no finite"):
        Csv(str(path), numeric=('a',))


def test_a_byte_order_mark_is_not_in_a_name(tmp_path):
    source = Csv(write(tmp_path, '\ufeffa,b\n1,2\n'))
    assert source[0] == {'a': 1, 'b': 2}


def test_a_field_may_be_a_whole_article(tmp_path):
    article = 'word ' * 30_000
    assert Csv(write(tmp_path, f'text,label\n"{article}",1\n'))[0]['text'] == article


def test_numbers_are_as_wide_as_whole_ones_need(tmp_path):
    columns = Csv(write(tmp_path, 'a,b\n1.5,1.5\n16777217,16777216\n')).take(np.arange(2))
    assert columns['a'].tolist() == [1.5, 16_777_217]
    assert [columns[name].dtype for name in 'ab'] == [np.float64, np.float32]


def test_broken_records_are_left_out_and_counted(tmp_path):
    source = Csv(write(tmp_path, BROKEN), numeric=('a', 'b'), broken='drop')
    assert source.take(np.arange(2))['a'].tolist() == [1, 5]
    assert source.describe().endswith('2 rows, 2 columns, 3 broken records left out')


def test_duplicates_are_counted_kept_left_out_or_named(tmp_path):
    path = write(tmp_path, 'a,b\n1,x\n2,x\n1,x\n1,x\n')
    kept, dropped = Csv(path), Csv(path, duplicates='drop')
    assert len(kept) == 4
    assert kept.describe().endswith('2 duplicates kept')
    assert dropped.take(np.arange(2))['a'].tolist() == [1, 2]
    assert dropped.describe().endswith('2 rows, 2 columns, 2 duplicates left out')
    with pytest.raises(errors.UserError, match=r'a\.csv:4 repeats line 2'):
        Csv(path, duplicates='refuse')


@pytest.mark.parametrize('other', ['nan', '1.5'])
def test_large_integers_beside_other_numbers_stay_as_they_are_written(tmp_path, other):
    ids = ['12345678901234567', '12345678901234568', other]
    columns = Csv(write(tmp_path, '\n'.join(['a', *ids, '']))).take(np.arange(3))
    assert columns['a'].tolist() == ids
    small = [str(2**53 - 1), other]
    columns = Csv(write(tmp_path, '\n'.join(['a', *small, '']))).take(np.arange(2))
    assert columns['a'].dtype == np.float64


def test_a_blank_line_of_one_column_is_a_missing_value(tmp_path):
    gap = Csv(write(tmp_path, '\na\n1\n\n3\r\n\r\n4\n\n\n'), numeric=('a',))
    values = gap.take(np.arange(len(gap)))['a']
    np.testing.assert_array_equal(values, np.float32([1, np.nan, 3, np.nan, 4]))
    texts = Csv(write(tmp_path, 'a\nx\n\ny\n\n'))  # a record is no blank text
    assert [texts[i] for i in range(len(texts))] == [{'a': 'x'}, {'a': 'y'}]
    several = Csv(write(tmp_path, 'a,b\n1,2\n\n3,4\n'))
    assert several.take(np.arange(len(several)))['a'].tolist() == [1, 3]
    with pytest.raises(errors.UserError, match='at least one row'):
        Csv(write(tmp_path, 'a\n\n\n'))
