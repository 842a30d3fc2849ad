"""The tables of models of images."""

import math

import numpy as np

from bigmodels.interop.tables import dense, layer_norm
from bigmodels.interop.weights import Form, Row, Table


def _patches_to_theirs(kernel: np.ndarray) -> np.ndarray:
    """[P*P*C, D] -> [D, C, P, P]; what is no square times 3 has one channel."""
    rows, width = kernel.shape
    channels = 3 if 3 * math.isqrt(rows // 3) ** 2 == rows else 1
    size = math.isqrt(rows // channels)
    return kernel.reshape(size, size, channels, width).transpose(3, 2, 0, 1)


PATCHES = Form(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)), _patches_to_theirs)
# PyTorch keeps kernels of convolutions as [F, C, height, width].
_CONVOLVED = Form(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
_ROWS = Form(lambda x: x[0], lambda x: x[None])  # [1, L, D]
_VIT = 'vit.encoder.layer.{layer}.'

VIT = Table(
    (
        Row('class_token', 'vit.embeddings.cls_token', _ROWS),
        Row('position_embed', 'vit.embeddings.position_embeddings', _ROWS),
        Row('patch_embed/kernel', 'vit.embeddings.patch_embeddings.projection.weight', PATCHES),
        Row('patch_embed/bias', 'vit.embeddings.patch_embeddings.projection.bias'),
        *layer_norm('layers/attention_norm', _VIT + 'layernorm_before'),
        *dense('layers/attention/query', _VIT + 'attention.attention.query'),
        *dense('layers/attention/key', _VIT + 'attention.attention.key'),
        *dense('layers/attention/value', _VIT + 'attention.attention.value'),
        *dense('layers/attention/out', _VIT + 'attention.output.dense'),
        *layer_norm('layers/mlp_norm', _VIT + 'layernorm_after'),
        *dense('layers/mlp/up', _VIT + 'intermediate.dense'),
        *dense('layers/mlp/down', _VIT + 'output.dense'),
        *layer_norm('final_norm', 'vit.layernorm'),
        *dense('head', 'classifier'),
    ),
    prefix='vit.',
    ignored=(r'^vit\.(pooler\.|embeddings\.mask_token$)',),  # of other heads
)


def _convolution(ours: str, norm: str, theirs: str, beside: str = '') -> tuple[Row, ...]:
    """The rows of a convolution and the BatchNorm behind it."""
    return (
        Row(f'{ours}/kernel', f'{theirs}.convolution.weight', _CONVOLVED, beside=beside),
        Row(f'{norm}/scale', f'{theirs}.normalization.weight', beside=beside),
        Row(f'{norm}/bias', f'{theirs}.normalization.bias', beside=beside),
        Row(f'batch_stats/{norm}/mean', f'{theirs}.normalization.running_mean', beside=beside),
        Row(f'batch_stats/{norm}/variance', f'{theirs}.normalization.running_var', beside=beside),
    )


_RESNET = 'resnet.encoder.stages.{stage}.layers.{layer}.'
_REDUCED = 'layers/reduce/kernel'  # what a bottleneck has

RESNET = Table(
    (
        *_convolution('stem', 'stem_norm', 'resnet.embedder.embedder'),
        *_convolution('layers/first', 'layers/first_norm', _RESNET + 'layer.0'),
        *_convolution('layers/last', 'layers/last_norm', _RESNET + 'layer.1'),
        *_convolution('layers/reduce', 'layers/reduce_norm', _RESNET + 'layer.0'),
        *_convolution('layers/middle', 'layers/middle_norm', _RESNET + 'layer.1'),
        *_convolution('layers/last', 'layers/last_norm', _RESNET + 'layer.2', beside=_REDUCED),
        *_convolution('layers/shortcut', 'layers/shortcut_norm', _RESNET + 'shortcut'),
        *dense('head', 'classifier.1'),
    ),
    prefix='resnet.',
    ignored=(r'\.num_batches_tracked$',),  # of averages over all steps, which these are not
)
