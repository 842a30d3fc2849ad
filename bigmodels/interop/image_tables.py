"""The tables of models of images."""

import math

import numpy as np

from bigmodels.interop.tables import dense, layer_norm
from bigmodels.interop.weights import TRANSPOSED, Form, Row, Table


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

_VECTOR = Form(lambda x: x[None], lambda x: x[0])  # [D], a row of ours
_NUMBER = Form(lambda x: x.reshape(()), lambda x: x.reshape(1))


def _encoder(tower: str, theirs: str) -> tuple[Row, ...]:
    """The rows of the layers of one of CLIP's towers."""
    ours, layer = f'{tower}/layers/', theirs + '.encoder.layers.{layer}.'
    return (
        *layer_norm(ours + 'attention_norm', layer + 'layer_norm1'),
        *dense(ours + 'attention/query', layer + 'self_attn.q_proj'),
        *dense(ours + 'attention/key', layer + 'self_attn.k_proj'),
        *dense(ours + 'attention/value', layer + 'self_attn.v_proj'),
        *dense(ours + 'attention/out', layer + 'self_attn.out_proj'),
        *layer_norm(ours + 'mlp_norm', layer + 'layer_norm2'),
        *dense(ours + 'mlp/up', layer + 'mlp.fc1'),
        *dense(ours + 'mlp/down', layer + 'mlp.fc2'),
    )


_TOWERS = (
    Row(
        'image_tower/patch_embed/kernel', 'vision_model.embeddings.patch_embedding.weight', PATCHES
    ),
    Row('image_tower/position_embed', 'vision_model.embeddings.position_embedding.weight'),
    *_encoder('image_tower', 'vision_model'),
    *layer_norm('image_tower/final_norm', 'vision_model.post_layernorm'),
    Row('text_tower/embed/embedding', 'text_model.embeddings.token_embedding.weight', vocabulary=0),
    Row('text_tower/position_embed/embedding', 'text_model.embeddings.position_embedding.weight'),
    *_encoder('text_tower', 'text_model'),
    *layer_norm('text_tower/final_norm', 'text_model.final_layer_norm'),
)
_IGNORED = (r'\.embeddings\.position_ids$',)  # of older files; counted here

CLIP = Table(
    (
        *_TOWERS,
        Row('image_tower/class_token', 'vision_model.embeddings.class_embedding', _VECTOR),
        *layer_norm('image_tower/embed_norm', 'vision_model.pre_layrnorm'),
        Row('image_tower/head/kernel', 'visual_projection.weight', TRANSPOSED),
        Row('text_head/kernel', 'text_projection.weight', TRANSPOSED),
        Row('log_scale', 'logit_scale'),
    ),
    ignored=_IGNORED,
)

_POOL = 'vision_model.head.'


def _query_key_value(name: str, part: int) -> tuple[Row, Row]:
    """The rows of a projection that PyTorch keeps with two others in one tensor."""
    ours, theirs = f'image_tower/pool/attention/{name}', _POOL + 'attention.in_proj_'
    return (
        Row(f'{ours}/kernel', f'{theirs}weight', TRANSPOSED, (part, 3)),
        Row(f'{ours}/bias', f'{theirs}bias', part=(part, 3)),
    )


SIGLIP = Table(
    (
        *_TOWERS,
        Row('image_tower/patch_embed/bias', 'vision_model.embeddings.patch_embedding.bias'),
        Row('image_tower/pool/probe', _POOL + 'probe', _ROWS),
        *_query_key_value('query', 0),
        *_query_key_value('key', 1),
        *_query_key_value('value', 2),
        *dense('image_tower/pool/attention/out', _POOL + 'attention.out_proj'),
        *layer_norm('image_tower/pool/norm', _POOL + 'layernorm'),
        *dense('image_tower/pool/mlp/up', _POOL + 'mlp.fc1'),
        *dense('image_tower/pool/mlp/down', _POOL + 'mlp.fc2'),
        *dense('text_head', 'text_model.head'),
        Row('log_scale', 'logit_scale', _NUMBER),
        Row('bias', 'logit_bias', _NUMBER),
    ),
    ignored=_IGNORED,
)
