"""ViT in PyTorch, with the weights of ours: what `benchmark_train.py` compares it with."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from experiments.twins import weights
from experiments.twins.resnet import ACTIVATIONS, loss  # noqa: F401


def make(params, model_state, model) -> nn.Module:
    """The twin of a `bigmodels.models.vit.ViT` with unrolled layers, in training mode."""
    twin = ViT(model, num_positions=len(params['position_embed']))
    weights.load(twin, params)
    return twin.train()


class ViT(nn.Module):
    """images [B, H, W, C], as ours, -> logits."""

    def __init__(self, model, num_positions):
        super().__init__()
        width, size = model.embed_dim, model.patch_size
        self.patch_size, self.uses_token = size, model.pool == 'token'
        self.patch_embed = nn.Linear(3 * size * size, width)
        if self.uses_token:
            self.class_token = nn.Parameter(torch.zeros(1, width))
        self.position_embed = nn.Parameter(torch.zeros(num_positions, width))
        self.blocks = [Block(model.settings) for _ in range(model.num_layers)]
        for i, block in enumerate(self.blocks):
            self.add_module(f'layers_{i}', block)
        self.final_norm = nn.LayerNorm(width, model.norm_epsilon)
        self.head = nn.Linear(width, model.num_classes)

    def forward(self, images):
        b, h, w, c = images.shape
        size = self.patch_size
        x = images.reshape(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
        x = self.patch_embed(x.reshape(b, -1, size * size * c))
        if self.uses_token:
            x = torch.cat([self.class_token.expand(b, 1, -1), x], 1)
        x = x + self.position_embed
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)
        return self.head(x[:, 0] if self.uses_token else x.mean(1))


class Block(nn.Module):
    def __init__(self, settings):
        super().__init__()
        norm = functools.partial(nn.LayerNorm, settings.embed_dim, settings.norm_epsilon)
        self.attention_norm, self.attention = norm(), Attention(settings)
        self.mlp_norm, self.mlp = norm(), FeedForward(settings)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    def __init__(self, settings):
        super().__init__()
        width, self.num_heads = settings.embed_dim, settings.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, l, d = x.shape
        heads = lambda y: y.view(b, l, self.num_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        )
        return self.out(y.transpose(1, 2).reshape(b, l, d))


class FeedForward(nn.Module):
    def __init__(self, settings):
        super().__init__()
        width, inner = settings.embed_dim, settings.mlp_dim or 4 * settings.embed_dim
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = ACTIVATIONS[settings.activation]

    def forward(self, x):
        return self.down(self.activation(self.up(x)))
