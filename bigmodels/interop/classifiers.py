"""Published classifiers of images: `models.vit` and `models.resnet`."""

from collections.abc import Sequence

import flax.linen as nn

from bigmodels import errors
from bigmodels.interop.family import GELU, Entries, Family
from bigmodels.interop.image_tables import RESNET, VIT
from bigmodels.models import resnet
from bigmodels.models.resnet import ResNet
from bigmodels.models.vit import ViT


def _read_classes(config: Entries) -> Entries:
    labels = config.get('id2label')
    return {'num_classes': config.get('num_labels', 2) if labels is None else len(labels)}


def _write_classes(model: ViT | ResNet) -> Entries:
    return _labels([f'LABEL_{i}' for i in range(model.num_classes)])


def names(classes: Sequence[str], model: nn.Module) -> Entries:
    """What config.json says of the classes that a classifier's run knows by name, if it does."""
    is_classifier = isinstance(model, ViT | ResNet) and len(classes) == model.num_classes
    return _labels([str(name) for name in classes]) if is_classifier else {}


def _labels(names: Sequence[str]) -> Entries:
    return {
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    }


def _expansion(block: str) -> int:
    """Channels that a block gives for each of its inner ones."""
    return resnet.EXPANSION if block == 'bottleneck' else 1


def _read_resnet(config: Entries) -> Entries:
    block = config['layer_type']
    if block not in ('basic', 'bottleneck'):
        raise errors.unknown('layer_type in config.json', block, ('basic', 'bottleneck'))
    widths = [width / _expansion(block) for width in config['hidden_sizes']]
    if config['embedding_size'] != widths[0] or not all(width.is_integer() for width in widths):
        raise errors.UserError(
            f'config.json has hidden_sizes = {config["hidden_sizes"]} behind an embedding_size of '
            f'{config["embedding_size"]}; here they are multiples of {_expansion(block)}, the '
            f'first of them {_expansion(block)} times as many.'
        )
    return {
        'block': block,
        'stage_sizes': tuple(config['depths']),
        'stage_widths': tuple(map(int, widths)),
        'strides': 'v1' if config['downsample_in_bottleneck'] else 'v1.5',
        **_read_classes(config),
    }


def _write_resnet(model: ResNet) -> Entries:
    return {
        'layer_type': model.block,
        'depths': list(model.stage_sizes),
        'hidden_sizes': [width * _expansion(model.block) for width in model.stage_widths],
        'embedding_size': model.stage_widths[0],
        'downsample_in_bottleneck': model.strides == 'v1',
        **_write_classes(model),
    }


CLASSIFIERS = (
    Family(
        'vit',
        'ViTForImageClassification',
        table=VIT,
        model=ViT,
        names={
            'hidden_size': 'embed_dim',
            'num_hidden_layers': 'num_layers',
            'num_attention_heads': 'num_heads',
            'intermediate_size': 'mlp_dim',
            'layer_norm_eps': 'norm_epsilon',
            'patch_size': 'patch_size',
        },
        defaults={'layer_norm_eps': 1e-12, 'hidden_act': 'gelu'},
        fixed={'pool': 'token'},
        activation_key='hidden_act',
        activations=GELU,
        read=_read_classes,
        write=_write_classes,
        only={'qkv_bias': True},
    ),
    Family(
        'resnet',
        'ResNetForImageClassification',
        table=RESNET,
        model=ResNet,
        names={},
        defaults={
            'layer_type': 'bottleneck',
            'depths': [3, 4, 6, 3],
            'hidden_sizes': [256, 512, 1024, 2048],
            'embedding_size': 64,
            'downsample_in_bottleneck': False,
        },
        fixed={},
        read=_read_resnet,
        write=_write_resnet,
        only={'hidden_act': 'relu', 'downsample_in_first_stage': False},
    ),
)
