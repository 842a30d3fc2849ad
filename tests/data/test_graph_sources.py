"""Graphs in archives, and what must not be in one."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources.graph_sources import GraphNpz, read_graph
from tests.data import test_sources

GRAPH = {
    'features': np.array([[0, 2], [1, 1], [0, 0]], np.float32),
    'edges': np.array([[0, 1], [1, 0], [2, 1]]),
    'label': np.array([0, 1, 1], np.uint8),
    'is_train': np.array([True, False, False]),
    'is_test': np.array([False, True, True]),
}
SPARSE = {
    'feature_row': np.array([0, 1, 1]),
    'feature_col': np.array([1, 0, 1]),
    'feature_value': np.array([2, 1, 1], np.float32),
    'num_nodes': np.int32(3),
    'num_features': np.int32(2),
}


def write(folder, **changes):
    path = folder / 'graph.npz'
    arrays = {name: value for name, value in (GRAPH | changes).items() if value is not None}
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize('changes', [{}, SPARSE | {'features': None}])
def test_a_graph_is_one_record(tmp_path, changes):
    source = GraphNpz(write(tmp_path, **changes), split='test')
    assert len(source) == 1
    record = source[0]
    assert record.keys() == {'features', 'edges', 'label', 'weights'}
    np.testing.assert_array_equal(record['features'], GRAPH['features'])
    np.testing.assert_array_equal(record['edges'], GRAPH['edges'])
    np.testing.assert_array_equal(record['weights'], np.float32([0, 1, 1]))
    test_sources.test_contract(source)
    assert '3 nodes, 2 test, 3 edges, 2 features' in source.describe()
    assert source.fingerprint() != GraphNpz(write(tmp_path, **changes), split='train').fingerprint()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'edges': np.array([[0, 1], [1, 3]])}, r'Edge 1 of .*graph\.npz, 1 to 3, is out of range'),
        ({'edges': np.array([[-1, 1]])}, r'Edge 0 of .*graph\.npz, -1 to 1, is out of range'),
        ({'edges': np.array([[0.0, 1.0]])}, r'must be integers \[E, 2\]'),
        ({'edges': np.array([0, 1])}, r'must be integers \[E, 2\]'),
        ({'edges': None}, "'edges'"),
        ({'features': None}, "'feature_row'"),
        (
            SPARSE | {'features': None, 'feature_col': np.array([1, 2, 0])},
            r'graph\.npz: feature_col has indices from 0 to 2, out of the range 0 to 1',
        ),
        (
            SPARSE
            | {'features': None, 'feature_row': np.array([0, 1, 1])}
            | {'feature_col': np.array([1, 0, 0])},
            r'graph\.npz: feature_row and feature_col name an entry twice',
        ),
        ({'edges': np.array([[0, 1], [2, 1], [0, 1]])}, r'The edge 0 to 1 of .* is there 2 times'),
        ({'features': np.array([['a'], ['b'], ['c']])}, r'features must be numbers \[N, F\]'),
        ({'features': np.float32([1, 2, 3])}, r'features must be numbers \[N, F\], got float32'),
        *(
            (SPARSE | {'features': None} | change, 'must have equally many numbers')
            for change in (
                {'feature_row': np.float32([0, 1, 1])},
                {'feature_value': np.float32([2, 1])},
                {'feature_value': np.array(['a', 'b', 'c'])},
                {'num_nodes': np.array([3, 3])},
            )
        ),
        (
            {'features': np.float32([[1, 0], [np.nan, 1], [0, 1]])},
            r'graph\.npz: features has a value that is not finite',
        ),
    ],
)
def test_what_no_graph_may_have_is_named(tmp_path, changes, message):
    with pytest.raises(errors.UserError, match=message):
        read_graph(write(tmp_path, **changes))


def test_an_edge_from_a_node_to_itself_is_left_out(tmp_path):
    edges = read_graph(write(tmp_path, edges=np.array([[0, 1], [2, 2], [1, 0]])))['edges']
    np.testing.assert_array_equal(edges, [[0, 1], [1, 0]])


def test_a_split_has_nodes(tmp_path):
    with pytest.raises(errors.UserError, match='is_test has no node'):
        GraphNpz(write(tmp_path, is_test=np.zeros(3, bool)), split='test')


def test_an_unknown_split_names_those_there_are(tmp_path):
    with pytest.raises(errors.UserError, match="'valid'.*test, train"):
        GraphNpz(write(tmp_path), split='valid')
