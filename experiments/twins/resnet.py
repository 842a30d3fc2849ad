"""ResNet in PyTorch, with the weights of ours: what `benchmark_train.py` compares it with."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from bigmodels.models.resnet import EXPANSION
from experiments.twins import weights


def make(params, model_state, model) -> nn.Module:
    """The twin of a `bigmodels.models.resnet.ResNet` with these weights, in training mode.

    Channels are last in memory, which is what PyTorch is fastest with on CPUs.
    """
    twin = ResNet(model)
    weights.load(twin, params, model_state.get('batch_stats', {}))
    return twin.to(memory_format=torch.channels_last).train()


def loss(module: nn.Module, batch) -> torch.Tensor:
    """The mean cross-entropy of a batch: inputs [B, H, W, C], targets [B]."""
    return F.cross_entropy(module(batch['inputs']).float(), batch['targets'])


ACTIVATIONS = {
    'relu': F.relu,
    'gelu': functools.partial(F.gelu, approximate='tanh'),
    'gelu_exact': F.gelu,
    'silu': F.silu,
}


class ResNet(nn.Module):
    """images [B, H, W, C], as ours, -> logits."""

    def __init__(self, model):
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, momentum=1 - model.momentum)
        width = model.stage_widths[0]
        self.activation = ACTIVATIONS[model.activation]
        self.large_stem = model.stem == 'imagenet'
        size, stride = (7, 2) if self.large_stem else (3, 1)
        self.stem = nn.Conv2d(3, width, size, stride, size // 2, bias=False)
        self.stem_norm = norm(width)
        self.blocks = []
        outer = 1 if model.block == 'basic' else EXPANSION
        block = Basic if model.block == 'basic' else Bottleneck
        for stage, (count, inner) in enumerate(
            zip(model.stage_sizes, model.stage_widths, strict=True)
        ):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(block(width, inner, stride, norm, model))
                self.add_module(f'stage{stage}_{i}', self.blocks[-1])
                width = outer * inner
        self.head = nn.Linear(width, model.num_classes)

    def forward(self, images):
        x = self.activation(self.stem_norm(self.stem(images.permute(0, 3, 1, 2))))
        if self.large_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """x, projected where the shapes differ, plus a branch."""

    def __init__(self, width, outer, stride, norm, model):
        super().__init__()
        self.pools = model.downsampling == 'pool' and stride > 1
        self.activation = ACTIVATIONS[model.activation]
        self.last_norm = norm(outer)
        self.shortcut = None
        if stride > 1 or width != outer:
            kind = ConvOfMean if self.pools else nn.Conv2d
            self.shortcut = kind(width, outer, 1, stride, bias=False)
            self.shortcut_norm = norm(outer)

    def forward(self, x):
        y = self.last_norm(self.branch(x))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return self.activation(x + y)


class LargestOfConv(nn.Conv2d):
    def forward(self, x):
        y = F.conv2d(x, self.weight, padding=self.padding)
        return F.max_pool2d(y, self.stride)


class ConvOfMean(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.avg_pool2d(x, self.stride), self.weight)


class Basic(Block):
    def __init__(self, width, inner, stride, norm, model):
        super().__init__(width, inner, stride, norm, model)
        kind = LargestOfConv if self.pools else nn.Conv2d
        self.first = kind(width, inner, 3, stride, 1, bias=False)
        self.first_norm = norm(inner)
        self.last = nn.Conv2d(inner, inner, 3, 1, 1, bias=False)

    def branch(self, x):
        return self.last(self.activation(self.first_norm(self.first(x))))


class Bottleneck(Block):
    def __init__(self, width, inner, stride, norm, model):
        super().__init__(width, EXPANSION * inner, stride, norm, model)
        kind = LargestOfConv if self.pools else nn.Conv2d
        self.reduce = nn.Conv2d(width, inner, 1, bias=False)
        self.reduce_norm = norm(inner)
        self.middle = kind(inner, inner, 3, stride, 1, bias=False)
        self.middle_norm = norm(inner)
        self.last = nn.Conv2d(inner, EXPANSION * inner, 1, bias=False)

    def branch(self, x):
        y = self.activation(self.reduce_norm(self.reduce(x)))
        return self.last(self.activation(self.middle_norm(self.middle(y))))
