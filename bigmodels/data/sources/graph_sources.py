"""Random-access sources of graphs."""

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import checked_index
from bigmodels.data.sources.table_sources import arrays_digest, read_npz

# Features by those that are not 0: feature_value[i] of node feature_row[i] in feature_col[i].
SPARSE = ('feature_row', 'feature_col', 'feature_value', 'num_nodes', 'num_features')


class GraphNpz:
    """One graph in an `.npz` archive: the only record.

    Record: see `read_graph`; with `split` also 'weights', float32 [N], 1 for the nodes of the
    array `is_<split>`.
    """

    def __init__(self, path: str, split: str = ''):
        self._path, self._split = path, split
        graph = read_graph(path)
        masks = {
            name.removeprefix('is_'): graph.pop(name)
            for name in list(graph)
            if name.startswith('is_')
        }
        if split and split not in masks:
            raise errors.unknown(f'split of {path}', split, masks)
        if split and not masks[split].any():
            raise errors.UserError(f'{path}: is_{split} has no node.')
        if split:
            graph['weights'] = masks[split].astype(np.float32)
        for array in graph.values():
            array.setflags(write=False)
        self._graph = graph

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        checked_index(index, 1)
        return dict(self._graph)

    def fingerprint(self) -> str:
        return arrays_digest('graph_npz', self._graph)

    def describe(self) -> str:
        count, width = self._graph['features'].shape
        share = f', {int(self._graph["weights"].sum()):,} {self._split}' if self._split else ''
        edges = len(self._graph['edges'])
        return f'graph {self._path}: {count:,} nodes{share}, {edges:,} edges, {width:,} features'


def read_graph(path: str) -> dict[str, np.ndarray]:
    """The arrays of a graph in an `.npz` archive.

    Returns:
      'features' float32 [N, F], read as they are or from the arrays of SPARSE; 'edges' int32
      [E, 2], from node to node; and the other arrays of N entries, such as 'label' and masks
      'is_train'.

    Raises:
      UserError: see `read_npz`; and for an array that is not there, an index out of range, an
        entry that is there twice, and a feature that is not finite.
    """
    arrays = read_npz(path)
    features = arrays['features'] if 'features' in arrays else _dense(arrays, path)
    if features.ndim != 2 or features.dtype.kind not in 'iufb':
        raise errors.UserError(
            f'{path}: features must be numbers [N, F], got {features.dtype} {features.shape}.'
        )
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise errors.UserError(f'{path}: features has a value that is not finite.')
    if 'edges' not in arrays:
        raise errors.unknown(f'array in {path}', 'edges', arrays)
    count = len(features)
    edges = checked_edges(arrays['edges'], count, path)
    others = {
        name: array
        for name, array in arrays.items()
        if name not in SPARSE and array.shape == (count,)
    }
    return {'features': features, 'edges': edges, **others}


def checked_edges(edges: np.ndarray, num_nodes: int, where: str) -> np.ndarray:
    """Edges as int32 [E, 2], of nodes that are there.

    Those from a node to itself are left out: models have one of every node.

    Args:
      where: what has them, for errors.

    Raises:
      UserError: for another shape, an edge to a node that is not among `num_nodes`, or one that is
        there twice.
    """
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in 'iu':
        raise errors.UserError(
            f'The edges of {where} must be integers [E, 2], got {edges.dtype} {edges.shape}.'
        )
    outside = ((edges < 0) | (edges >= num_nodes)).any(1)
    if outside.any():
        edge = outside.argmax()
        raise errors.UserError(
            f'Edge {edge} of {where}, {edges[edge, 0]} to {edges[edge, 1]}, is out of range: there '
            f'are nodes 0 to {num_nodes - 1}.'
        )
    numbered = edges[:, 0].astype(np.int64) * num_nodes + edges[:, 1]  # as rows of two: slow
    distinct, counts = np.unique(numbered, return_counts=True)
    if len(distinct) < len(edges):
        sender, receiver = divmod(distinct[counts.argmax()], num_nodes)
        raise errors.UserError(
            f'The edge {sender} to {receiver} of {where} is there {counts.max()} times: give each '
            f'one once.'
        )
    return edges[edges[:, 0] != edges[:, 1]].astype(np.int32)


def _dense(arrays: dict[str, np.ndarray], path: str) -> np.ndarray:
    """float32 [N, F] from its entries that are not 0."""
    for name in SPARSE:
        if name not in arrays:
            raise errors.unknown(f'array in {path}', name, arrays)
    rows, columns, values, *shape = (arrays[name] for name in SPARSE)
    kinds = (rows.dtype.kind, columns.dtype.kind, *(size.dtype.kind for size in shape))
    if (
        not set(kinds) <= {'i', 'u'}
        or values.dtype.kind not in 'iufb'
        or not rows.shape == columns.shape == values.shape == (rows.size,)
        or any(size.ndim for size in shape)
    ):
        described = [f'{name} {arrays[name].dtype} {arrays[name].shape}' for name in SPARSE]
        raise errors.UserError(
            f'{path}: {", ".join(SPARSE[:3])} must have equally many numbers, the first two '
            f'integers, and {SPARSE[3]} and {SPARSE[4]} must be one integer each; got '
            f'{", ".join(described)}.'
        )
    shape = tuple(int(size) for size in shape)
    for name, indices, size in zip(SPARSE, (rows, columns), shape, strict=False):
        if len(indices) and not 0 <= indices.min() <= indices.max() < size:
            raise errors.UserError(
                f'{path}: {name} has indices from {indices.min()} to {indices.max()}, out of the '
                f'range 0 to {size - 1}.'
            )
    if len(np.unique(np.stack([rows, columns], 1), axis=0)) < len(rows):
        raise errors.UserError(f'{path}: {SPARSE[0]} and {SPARSE[1]} name an entry twice.')
    features = np.zeros(shape, np.float32)
    features[rows, columns] = values
    return features
