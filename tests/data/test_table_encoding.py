"""Columns of a table as arrays, against SciPy's ranks."""

import numpy as np
import pytest
from scipy import stats

from bigmodels import errors
from bigmodels.data import table_encoding
from bigmodels.data.sources.table_sources import Csv

rng = np.random.default_rng(0)
COLUMNS = {
    'height': rng.normal(170, 10, 200).round(1),
    'gain': np.where(rng.random(200) < 0.8, 0, rng.exponential(1000, 200)),
    'town': np.array(['A'] * 150 + ['B'] * 46 + ['C'] * 4, object),
    'sex': np.array([1, 2] * 100),
}
NUMERIC, CATEGORICAL = ('height', 'gain'), ('town', 'sex')


def fitted(missing='refuse'):
    return table_encoding.fit(COLUMNS, NUMERIC, CATEGORICAL, min_count=5, missing=missing)


def one(**changes):
    return {'height': [170.0], 'gain': [0.0], 'town': ['A'], 'sex': [1]} | changes


def test_numbers_become_normal_scores_of_their_mid_ranks():
    arrays = fitted().encode(COLUMNS)
    assert arrays['inputs'].dtype == np.float32
    for i, name in enumerate(NUMERIC):
        ranks = (stats.rankdata(COLUMNS[name]) - 0.5) / 200
        np.testing.assert_allclose(arrays['inputs'][:, i], stats.norm.ppf(ranks), atol=1e-5)


def test_many_values_are_thinned_out_and_scores_stay():
    values = rng.exponential(1.0, 20_000)
    knots, scores = table_encoding.normal_scores(values, 'x')
    assert len(knots) == len(scores) <= table_encoding.KNOTS
    assert (knots[0], knots[-1]) == (values.min(), values.max())
    exact = stats.norm.ppf((stats.rankdata(values) - 0.5) / len(values))
    thinned = np.interp(values, knots, scores)
    np.testing.assert_allclose(thinned, exact, atol=0.6)  # the 20 outermost values are one piece
    middle = np.abs(exact) < 2.5
    np.testing.assert_allclose(thinned[middle], exact[middle], atol=0.02)


def test_outside_of_the_training_values_scores_stay_those_of_the_ends():
    encoding = fitted()
    for value, end in ((-1e9, 'min'), (1e9, 'max')):
        outside = encoding.encode(one(height=[value]))
        at_end = encoding.encode(one(height=[getattr(COLUMNS['height'], end)()]))
        np.testing.assert_array_equal(outside['inputs'], at_end['inputs'])


def test_categories_are_numbered_through_and_rare_or_new_ones_are_unknown():
    encoding = fitted()
    assert encoding.categories == {'town': ['A', 'B'], 'sex': ['1', '2']}
    assert encoding.num_categories == 6
    codes = encoding.encode(COLUMNS)['categories']
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes[:, 0], np.repeat([1, 2, 0], [150, 46, 4]))
    np.testing.assert_array_equal(codes[:, 1], np.tile([4, 5], 100))
    # As another file may type the same column.
    same = encoding.encode(one(town=['never seen', ' A ', None], sex=['1', 1.0, 3], height=[1] * 3,
                               gain=[0] * 3))  # fmt: skip
    assert same['categories'].tolist() == [[0, 4], [1, 4], [0, 3]]


def test_a_category_is_the_same_whatever_type_its_column_was_read_as(tmp_path):
    def column(text):
        (tmp_path / 'a.csv').write_text('x,y\n' + text)
        source = Csv(str(tmp_path / 'a.csv'))
        return source.take(np.arange(len(source)))

    gap = column('1.0,a\n,b\n16777217,c\n0.10,d\n')  # text, for the gap
    encoding = table_encoding.fit(gap, (), ('x',))
    assert encoding.categories == {'x': ['', '0.1', '1', '16777217']}
    for text in ('1,a\n16777217,b\n', '1.0,a\n16777217.0,b\nnan,c\n0.1,d\n'):
        codes = encoding.encode(column(text))['categories'].ravel().tolist()
        assert codes == [3, 4, 1, 2][: len(codes)]


def test_a_missing_category_is_one_of_its_own():
    columns = {'town': np.array(['A', '?', '', 'A', 'nan', 'B'], object)}
    encoding = table_encoding.fit(columns, (), ('town',))
    assert encoding.categories == {'town': ['', 'A', 'B']}
    arrays = encoding.encode({'town': [None, float('nan'), 'NULL', 'B', 'C']})
    assert arrays['categories'].ravel().tolist() == [1, 1, 1, 3, 0]
    assert arrays['inputs'].shape == (5, 0)


@pytest.mark.parametrize('value', [None, float('nan'), '?', ''])
def test_a_missing_number_is_refused_or_the_median_with_a_category(value):
    with pytest.raises(errors.UserError, match=r"'height' has no value in record 1.*impute"):
        fitted().encode(one(height=[170, value], gain=[0, 0], town=['A'] * 2, sex=[1] * 2))
    encoding = fitted('impute')
    assert encoding.num_categories == 10
    arrays = encoding.encode(one(height=[value]))
    assert abs(arrays['inputs'][0, 0]) < 0.02
    assert arrays['categories'].tolist() == [[1, 4, 7, 8]]
    assert encoding.encode(one())['categories'].tolist() == [[1, 4, 6, 8]]


@pytest.mark.parametrize('value', ['tall', float('inf'), '-inf', [1, 2]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(errors.UserError, match=r"'height' has .* in record 0, which is no finite"):
        fitted('impute').encode(one(height=[value]))


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(errors.UserError, match="lacks 'town'"):
        fitted().encode({name: value for name, value in one().items() if name != 'town'})
    with pytest.raises(errors.UserError, match="lacks 'towm'. Did you mean 'town'"):
        table_encoding.fit(COLUMNS, NUMERIC, ('towm',))
    with pytest.raises(errors.UserError, match="'x' has no number in any training record"):
        table_encoding.fit({'x': ['', '?']}, ('x',), ())


def test_what_is_saved_encodes_the_same(tmp_path):
    encoding = fitted('impute')
    encoding.save(tmp_path / 'table.json')
    again = table_encoding.restore(tmp_path / 'table.json')
    for name, value in encoding.encode(COLUMNS).items():
        np.testing.assert_array_equal(again.encode(COLUMNS)[name], value)


def test_a_scale_standardises_and_restores():
    values = np.stack([rng.normal(5, 3, 50), np.full(50, 7.0)], axis=1)
    scale = table_encoding.scale_of(values)
    standardised = scale.standardised(values)
    np.testing.assert_allclose(standardised.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standardised.std(0), [1, 0], atol=1e-6)
    np.testing.assert_allclose(scale.restored(standardised), values, rtol=1e-5)
    equal = table_encoding.scale_of(np.full((1000, 1), 0.1))
    np.testing.assert_allclose(equal.standardised(np.array([[0.1], [0.2]])), [[0], [0.1]])
