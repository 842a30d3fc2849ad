"""Networks on graphs: GCN and GAT, by sums over the edges that end at a node.

Axes: B graphs, N nodes, E edges, F features, H heads, K head_dim.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels.models.parts import layers

Array = jax.Array


class GCN(nn.Module):
    """inputs [B, N, F], edges int [B, E, 2] -> logits float32 [B, N, num_classes].

    Kipf and Welling 2017 (arXiv:1609.02907): each layer a linear function, spread along the edges
    by `propagate`; ReLU between layers, dropout on the inputs of each.

    Fields:
      hidden_dims: the width of each hidden layer.
    """

    num_classes: int
    hidden_dims: Sequence[int] = (16,)
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, inputs: Array, edges: Array, *, train: bool = False) -> Array:
        x, senders, receivers = as_one_graph(inputs, edges)
        glorot = nn.initializers.glorot_uniform()
        for i, width in enumerate((*self.hidden_dims, self.num_classes)):
            x = jax.nn.relu(x) if i else x
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = layers.Linear(width, use_bias=False, kernel_init=glorot, name=f'layers_{i}')(x)
            x = propagate(x, senders, receivers)
            x += self.param(f'bias_{i}', nn.initializers.zeros, (width,))
        return x.reshape(*inputs.shape[:2], -1)


class GAT(nn.Module):
    """inputs [B, N, F], edges int [B, E, 2] -> logits float32 [B, N, num_classes].

    Velickovic et al. 2018 (arXiv:1710.10903): hidden layers of attention whose heads are joined,
    through ELU; a last one whose heads are averaged; dropout on the inputs of each layer and on
    its attention.

    Fields:
      num_layers: with the last one.
      num_heads, head_dim: of hidden layers.
      num_output_heads: of the last one.
    """

    num_classes: int
    num_layers: int = 2
    num_heads: int = 8
    head_dim: int = 8
    num_output_heads: int = 1
    dropout_rate: float = 0.6

    @nn.compact
    def __call__(self, inputs: Array, edges: Array, *, train: bool = False) -> Array:
        x, senders, receivers = as_one_graph(inputs, edges)
        options = dict(dropout_rate=self.dropout_rate, train=train)
        for i in range(self.num_layers - 1):
            x = GraphAttention(self.num_heads, self.head_dim, **options, name=f'layers_{i}')(
                x, senders, receivers
            )
            x = jax.nn.elu(x.reshape(len(x), -1))
        last = f'layers_{self.num_layers - 1}'
        x = GraphAttention(self.num_output_heads, self.num_classes, **options, name=last)(
            x, senders, receivers
        )
        return x.mean(1).reshape(*inputs.shape[:2], -1)


class GraphAttention(nn.Module):
    """x [N, F] -> [N, H, K]: each node attends to those with an edge to it, and to itself."""

    num_heads: int
    head_dim: int
    dropout_rate: float
    train: bool

    @nn.compact
    def __call__(self, x: Array, senders: Array, receivers: Array) -> Array:
        heads, head_dim = self.num_heads, self.head_dim
        glorot = nn.initializers.glorot_uniform()
        dropout = nn.Dropout(self.dropout_rate, deterministic=not self.train)
        x = layers.Linear(heads * head_dim, use_bias=False, kernel_init=glorot, name='project')(
            dropout(x)
        ).reshape(-1, heads, head_dim)
        scores = {
            name: (x * self.param(f'{name}_kernel', glorot, (heads, head_dim))).sum(-1)
            for name in ('sender', 'receiver')
        }
        senders, receivers = with_loops(senders, receivers, len(x))
        scores = scores['sender'][senders] + scores['receiver'][receivers]  # [E, H]
        attention = dropout(segment_softmax(jax.nn.leaky_relu(scores, 0.2), receivers, len(x)))
        values = attention[..., None] * dropout(x)[senders]
        bias = self.param('bias', nn.initializers.zeros, (heads, head_dim))
        return jax.ops.segment_sum(values, receivers, len(x)) + bias


def as_one_graph(inputs: Array, edges: Array) -> tuple[Array, Array, Array]:
    """Graphs [B, N, F] and edges [B, E, 2] as one graph of parts without edges between them.

    Returns:
      Nodes [B * N, F]; senders and receivers, int [B * E].
    """
    b, n, f = inputs.shape
    edges = edges + n * jnp.arange(b)[:, None, None]
    return inputs.reshape(b * n, f), edges[..., 0].ravel(), edges[..., 1].ravel()


def with_loops(senders: Array, receivers: Array, num_nodes: int) -> tuple[Array, Array]:
    """The edges, and one from every node to itself."""
    nodes = jnp.arange(num_nodes)
    return jnp.concatenate([senders, nodes]), jnp.concatenate([receivers, nodes])


def propagate(x: Array, senders: Array, receivers: Array) -> Array:
    """D^-1/2 (A + I) D^-1/2 x for x [N, F], A the edges and D the row sums of A + I.

    The graph is meant to be undirected: an edge in both directions.
    """
    senders, receivers = with_loops(senders, receivers, len(x))
    degrees = jax.ops.segment_sum(jnp.ones(len(receivers)), receivers, len(x))
    scaled = x * jax.lax.rsqrt(degrees)[:, None]
    return jax.ops.segment_sum(scaled[senders], receivers, len(x)) * jax.lax.rsqrt(degrees)[:, None]


def segment_softmax(scores: Array, receivers: Array, num_nodes: int) -> Array:
    """The softmax of scores [E, H] over the edges that end at the same node."""
    highest = jax.ops.segment_max(scores, receivers, num_nodes)
    weights = jnp.exp(scores - jax.lax.stop_gradient(highest)[receivers])
    return weights / jax.ops.segment_sum(weights, receivers, num_nodes)[receivers]
