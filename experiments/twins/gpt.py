"""nanoGPT's model in PyTorch, with the weights of a `Transformer` of the same shape.

Pre-norm blocks, learned positions, tied embeddings, packed query, key and value, PyTorch's own
fused attention: what nanoGPT's model.py does, written for the comparison.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.twins import weights


class Block(nn.Module):
    """Attention and feed-forward of x [B, L, D], each added to its input."""

    def __init__(self, embed_dim: int, mlp_dim: int, num_heads: int, bias: bool, epsilon: float):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(embed_dim, epsilon, bias=bias)
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim, bias)
        self.out = nn.Linear(embed_dim, embed_dim, bias)
        self.mlp_norm = nn.LayerNorm(embed_dim, epsilon, bias=bias)
        self.up = nn.Linear(embed_dim, mlp_dim, bias)
        self.down = nn.Linear(mlp_dim, embed_dim, bias)

    def forward(self, x):
        b, l, d = x.shape
        heads = lambda y: y.view(b, l, self.num_heads, d // self.num_heads).transpose(1, 2)
        query, key, value = self.query_key_value(self.attention_norm(x)).split(d, dim=2)
        y = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, l, d))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate='tanh'))


class GPT(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c.vocab_size, c.embed_dim)
        self.position_embed = nn.Embedding(c.max_length, c.embed_dim)
        mlp_dim = c.mlp_dim or 4 * c.embed_dim
        self.blocks = nn.ModuleList(
            Block(c.embed_dim, mlp_dim, c.num_heads, c.use_bias, c.norm_epsilon)
            for _ in range(c.num_layers)
        )
        self.final_norm = nn.LayerNorm(c.embed_dim, c.norm_epsilon, bias=c.use_bias)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position_embed.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.embed.weight)


def make(params: Mapping, model_state: Mapping, model) -> GPT:
    """The twin of a `Transformer` with GPT-2's choices, with its parameters.

    Args:
      params: numpy arrays, by module and name.
      model: the `Transformer`, of unrolled layers.

    Raises:
      ValueError: for a model that the twin does not have.
    """
    fixed = dict(positions='learned', norm='layer_norm', norm_placement='pre', activation='gelu',
                 tie_embeddings=True, moe=None, sliding_window=None, scan_layers=False)  # fmt: skip
    other = {name for name, value in fixed.items() if getattr(model, name) != value}
    if other:
        raise ValueError(f'the twin is a GPT-2; other fields: {", ".join(sorted(other))}')
    twin = GPT(model)
    ours = {name: params[name] for name in ('embed', 'position_embed', 'final_norm')}
    for i in range(model.num_layers):
        layer = params[f'layers_{i}']
        attention, mlp = layer['attention'], layer['mlp']
        parts = [attention[name] for name in ('query', 'key', 'value')]
        packed = {kind: np.concatenate([part[kind] for part in parts], -1) for kind in parts[0]}
        ours[f'blocks.{i}'] = {
            'attention_norm': layer['attention_norm'],
            'query_key_value': packed,
            'out': attention['out'],
            'mlp_norm': layer['mlp_norm'],
            'up': mlp['up'],
            'down': mlp['down'],
        }
    weights.load(twin, ours)
    return twin.train()


def loss(module: nn.Module, batch: Mapping) -> torch.Tensor:
    """Mean cross-entropy of batch['targets'] [B, L] in nats."""
    logits = module(batch['inputs'])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch['targets'].flatten())
