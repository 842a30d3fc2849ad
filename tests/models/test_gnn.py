"""Networks on graphs against dense matrices; the published numbers of parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import trees
from bigmodels.models import gnn

rng = np.random.default_rng(0)
NODES, WIDTH = 6, 4
ADJACENCY = np.triu(rng.random((NODES, NODES)) < 0.4, 1)
ADJACENCY = (ADJACENCY | ADJACENCY.T).astype(np.float32)
ADJACENCY[5] = ADJACENCY[:, 5] = 0  # a node alone
EDGES = np.argwhere(ADJACENCY).astype(np.int32)
FEATURES = rng.normal(size=(NODES, WIDTH)).astype(np.float32)
SMALL = [gnn.GCN(3, hidden_dims=(5,)), gnn.GAT(3, num_heads=2, head_dim=5, num_output_heads=2)]


def shaken(model):
    variables = model.init(jax.random.key(0), FEATURES[None], EDGES[None])
    keys = iter(jax.random.split(jax.random.key(1), 20))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), variables)


@pytest.mark.parametrize(
    ('model', 'count'), [(gnn.GCN(7), 23_063), (gnn.GAT(7), 92_373)], ids=['gcn', 'gat']
)
def test_the_published_number_of_parameters_on_cora(model, count):
    shapes = jax.eval_shape(
        functools.partial(model.init, jax.random.key(0)),
        jnp.zeros((1, 10, 1433)),
        jnp.zeros((1, 4, 2), jnp.int32),
    )
    assert trees.count(shapes['params']) == count


def test_gcn_is_kipf_and_wellings_equation_9():
    model = SMALL[0]
    variables = shaken(model)
    params = jax.tree.map(np.asarray, variables['params'])
    looped = ADJACENCY + np.eye(NODES)
    scale = looped.sum(1) ** -0.5
    spread = scale[:, None] * looped * scale
    hidden = spread @ FEATURES @ params['layers_0']['kernel'] + params['bias_0']
    expected = spread @ np.maximum(hidden, 0) @ params['layers_1']['kernel'] + params['bias_1']
    np.testing.assert_allclose(
        model.apply(variables, FEATURES[None], EDGES[None])[0], expected, atol=1e-5
    )


def dense_attention(x, params, heads):
    """Equations 1 to 4 of Velickovic et al. over all pairs of nodes: [N, heads, K]."""
    x = (x @ params['project']['kernel']).reshape(NODES, heads, -1)
    sent = (x * params['sender_kernel']).sum(-1)
    received = (x * params['receiver_kernel']).sum(-1)
    scores = received[:, None] + sent[None]  # [receiver, sender, head]
    scores = np.where(scores > 0, scores, 0.2 * scores)
    scores = np.where((ADJACENCY.T + np.eye(NODES))[..., None] > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum('rsh,shk->rhk', weights, x) + params['bias']


def test_gat_is_attention_over_neighbours():
    model = SMALL[1]
    variables = shaken(model)
    params = jax.tree.map(np.asarray, variables['params'])
    hidden = dense_attention(FEATURES, params['layers_0'], 2).reshape(NODES, -1)
    hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
    expected = dense_attention(hidden, params['layers_1'], 2).mean(1)
    np.testing.assert_allclose(
        model.apply(variables, FEATURES[None], EDGES[None])[0], expected, atol=1e-5
    )


@pytest.mark.parametrize('model', SMALL, ids=['gcn', 'gat'])
def test_graphs_of_a_batch_do_not_see_each_other_and_nodes_have_no_order(model):
    variables = shaken(model)
    order = rng.permutation(NODES)
    place = np.argsort(order)
    graphs = np.stack([FEATURES, FEATURES[order]])
    edges = np.stack([EDGES, place[EDGES][::-1]])
    alone = model.apply(variables, FEATURES[None], EDGES[None])[0]
    both = model.apply(variables, graphs, edges)
    np.testing.assert_allclose(both[0], alone, atol=1e-5)
    np.testing.assert_allclose(both[1], alone[order], atol=1e-5)


def test_attention_does_not_overflow():
    scores = jnp.array([[1e4], [0.0], [-1e4]])
    weights = gnn.segment_softmax(scores, jnp.array([0, 0, 1]), 2)
    np.testing.assert_array_equal(weights.ravel(), [1, 0, 1])
