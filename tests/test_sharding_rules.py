"""Every model's sharding table, against variants of the model that together use all of it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from bigmodels import sharding, trees
from bigmodels.models import MODELS

RESNET = dict(num_classes=8, stage_sizes=(1, 1), stage_widths=(8, 16))
TRANSFORMER = dict(vocab_size=32, num_layers=2, embed_dim=16, num_heads=2, max_length=8)
# Per model with a table: what differs between variants that together have every parameter.
VARIANTS = {
    'clip': [
        dict(
            embed_dim=8,
            init_bias=-10.0,
            image=dict(num_layers=2, embed_dim=16, num_heads=2, patch_size=4),
            text=TRANSFORMER | dict(positions='learned'),
        ),
        dict(
            embed_dim=16,
            project_images=False,
            image=dict(num_layers=2, embed_dim=16, num_heads=2, patch_size=4, pool='attention'),
            text=TRANSFORMER | dict(token_types=2),
        ),
    ],
    'convnet': [
        dict(num_classes=8, stages=((16, 16), (8,)), dense_widths=(8,), norm='batch_norm'),
    ],
    'detector': [
        dict(num_classes=8, backbone=dict(stage_sizes=(1, 1), stage_widths=(8, 16), block=block))
        for block in ('basic', 'bottleneck')
    ],
    'dit': [dict(num_classes=7, num_layers=2, embed_dim=16, num_heads=2)],
    'efficientnet': [dict(num_classes=8, strides=(1,) * 7)],
    'encoder_decoder': [
        TRANSFORMER | dict(positions='learned', scan_layers=True),
        TRANSFORMER | dict(tie_embeddings=False, num_encoder_layers=1, use_bias=False),
        TRANSFORMER | dict(positions='relative', scan_layers=True),
        TRANSFORMER | dict(num_mels=8, positions='learned', key_bias=False),
    ],
    'conformer': [dict(num_classes=8, num_layers=2, embed_dim=16, num_heads=2)],
    'resnet': [RESNET | dict(block='basic', stem='cifar'), RESNET | dict(block='bottleneck')],
    'transformer': [
        TRANSFORMER | dict(positions='learned', qk_norm=True, norm_placement='both'),
        TRANSFORMER | dict(tie_embeddings=False, activation='swiglu', use_bias=False),
        TRANSFORMER | dict(scan_layers=True, use_bias=False, qkv_bias=True, num_kv_heads=1),
        TRANSFORMER | dict(use_bias=False, attention_bias=True, norm_offset=1.0),
        TRANSFORMER | dict(embed_norm=True, token_types=2, logits_transform=True),
        TRANSFORMER | dict(moe=dict(num_experts=4), activation='swiglu', scan_layers=True),
        TRANSFORMER | dict(moe=dict(num_experts=2, num_shared_experts=1)),
    ],
    'sparse_autoencoder': [dict(num_features=16, top_k=2)],
    'unet': [dict(num_classes=8, widths=(8, 16, 16))],
    'transformer_classifier': [
        dict(num_classes=8, encoder=TRANSFORMER | dict(positions='learned', qk_norm=True)),
    ],
    'video_vit': [
        dict(num_classes=8, num_layers=2, embed_dim=16, num_heads=2, patch_size=4),
    ],
    'vision_language': [
        dict(
            image=dict(num_layers=2, embed_dim=16, num_heads=2, patch_size=4, pool='none'),
            text=TRANSFORMER | {name: value},
        )
        for name, value in (
            ('positions', 'learned'),
            ('tie_embeddings', False),
            ('logits_transform', True),
        )
    ],
    'vit': [
        dict(num_classes=8, num_layers=2, embed_dim=16, num_heads=2, patch_size=4, pool=pool)
        for pool in ('token', 'attention')
    ],
    'wavenet': [
        dict(num_classes=8, num_speakers=2, num_layers=2, cycle=2, embed_dim=16, skip_dim=8),
    ],
}
TABLES = {
    name: model.sharding_rules
    for name, model in MODELS.items()
    if getattr(model, 'sharding_rules', ())
}


def inputs_of(name: str, fields: dict) -> list[jax.ShapeDtypeStruct]:
    """What a model is called with."""
    inputs = [jax.ShapeDtypeStruct((1, 8), jnp.int32)]
    if name in ('convnet', 'detector', 'efficientnet', 'resnet', 'unet', 'vit'):
        inputs = [jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)]
    elif name == 'video_vit':
        inputs = [jax.ShapeDtypeStruct((1, 4, 8, 8, 3), jnp.float32)]
    elif name == 'clip':
        text = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        inputs = [jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), text, text]
    elif name == 'dit':
        inputs = [
            jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        ]
    elif name == 'sparse_autoencoder':
        inputs = [jax.ShapeDtypeStruct((1, 8), jnp.float32)]
    elif name == 'encoder_decoder':
        sound = jax.ShapeDtypeStruct((1, 16, 8), jnp.float32)
        inputs = [sound if 'num_mels' in fields else inputs[0], *inputs]
    elif name == 'conformer':
        inputs = [
            jax.ShapeDtypeStruct((1, 16, 8), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        ]
    elif name == 'vision_language':
        image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        inputs = [image, *inputs, jax.ShapeDtypeStruct((1,), jnp.int32)]
    elif name == 'wavenet':
        row = jax.ShapeDtypeStruct((1,), jnp.int32)
        inputs = [*inputs, row, row, jax.ShapeDtypeStruct((1, 8), jnp.float32)]
    return inputs


def parameters(name: str, fields: dict):
    """The shapes of a model's parameters."""
    model = MODELS[name](**fields)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs_of(name, fields))['params']


def test_every_table_has_its_variants_here():
    assert TABLES.keys() == VARIANTS.keys()


@pytest.mark.parametrize('name', TABLES)
def test_every_parameter_has_a_rule_and_every_rule_a_parameter(name):
    numbered = [(pattern, number) for number, (pattern, _) in enumerate(TABLES[name])]
    used = set()
    for fields in VARIANTS[name]:
        used |= set(jax.tree.leaves(trees.match_rules(numbered, parameters(name, fields), name)))
    unused = [rule for number, rule in enumerate(TABLES[name]) if number not in used]
    assert unused == []


@pytest.mark.parametrize('name', TABLES)
def test_every_rule_fits_its_parameters_and_names_an_axis_once(name):
    """As `param_specs` checks it, on a mesh of every axis with two devices on each."""
    count = len(sharding.AXES)
    mesh = AbstractMesh((2,) * count, sharding.AXES, axis_types=(AxisType.Auto,) * count)
    for fields in VARIANTS[name]:
        _, notes = sharding.param_specs(parameters(name, fields), TABLES[name], mesh)
        assert notes == []
