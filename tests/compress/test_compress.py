"""Params in few bits against the same numbers written out; models without some of their parts."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import compress, config, errors, sharding, trees
from bigmodels.compress import calibrate, quantize, recipes
from bigmodels.models import MODELS
from bigmodels.models.parts import kernels, layers
from bigmodels.models.parts.convolution import Conv
from bigmodels.models.parts.kernels import Kernel, Rounded
from bigmodels.tasks import Classification
from tests import test_sharding
from tests.test_sharding_rules import TABLES, VARIANTS, inputs_of, parameters

INT8 = compress.Settings(weights='int8', packed=True)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 4)).astype(np.float32)
TOKENS = RNG.integers(0, 32, (3, 8))
BLOCKS = dict(num_layers=1, embed_dim=16, num_heads=4)
CONVNET = dict(num_classes=8, stages=((8,), (8,)), dense_widths=(16, 8), norm='batch_norm')
SCANNED = dict(
    vocab_size=32, max_length=8, scan_layers=True, tie_embeddings=False, activation='swiglu',
    num_kv_heads=2,
)  # fmt: skip
# Name -> model, its fields, and what it is called with.
CALLED = {
    'tied': ('transformer', BLOCKS | dict(vocab_size=32, max_length=8), (TOKENS,)),
    'scanned': ('transformer', BLOCKS | SCANNED | dict(num_layers=2), (TOKENS,)),
    'vit': ('vit', BLOCKS | dict(num_classes=8, patch_size=4), (IMAGES,)),
    'resnet': ('resnet', dict(num_classes=8, stage_sizes=(1,), stage_widths=(8,)), (IMAGES,)),
    'basic': (
        'resnet',
        dict(
            num_classes=8,
            block='basic',
            stage_sizes=(0, 2, 1),
            stage_widths=(8, 8, 16),
            stem='cifar',
            stem_init='cosines',
        ),
        (IMAGES,),
    ),
    'convnet': ('convnet', CONVNET, (IMAGES,)),
    'conformer': (
        'conformer',
        BLOCKS | dict(num_classes=8, mlp_dim=32),
        (RNG.normal(size=(3, 16, 8)).astype(np.float32), np.array([16, 9, 12])),
    ),
}


@functools.cache
def made(name):
    """(model, params, model state); no parameter is 0."""
    kind, fields, inputs = CALLED[name]
    model = MODELS[kind](**fields)
    state = jax.device_get(dict(jax.jit(model.init)(jax.random.key(0), *inputs)))
    rng = np.random.default_rng(1)
    noise = lambda leaf: leaf + np.float32(0.1 * rng.normal(size=leaf.shape))
    return model, jax.tree.map(noise, state.pop('params')), state


def apply(name, params):
    model, _, state = made(name)
    return np.asarray(jax.jit(model.apply)({'params': params, **state}, *CALLED[name][2]))


def is_narrow(leaf):
    return isinstance(leaf, Kernel | Rounded)


def flat(params):
    return flax.traverse_util.flatten_dict(params, sep='/')


def kept(settings, params):
    return jax.jit(functools.partial(compress.kept, settings))(params)


def plain(params):
    return jax.device_get(jax.jit(compress.plain)(params))


def rounded_by_definition(name, leaf, settings):
    """In float64: the nearest of 2 * top + 1 evenly spaced values, of an output or a group."""
    if trees.is_scanned(name):
        return np.stack([rounded_by_definition('', layer, settings) for layer in leaf])
    axis = 0 if name.endswith('embedding') else -1
    rows = np.moveaxis(np.float64(leaf), axis, 0)
    groups = rows.reshape(len(rows), -1, settings.group_size or rows[0].size)
    scales = np.abs(groups).max(-1, keepdims=True) / {'int8': 127, 'int4': 7}[settings.weights]
    return np.moveaxis((np.round(groups / scales) * scales).reshape(rows.shape), 0, axis)


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('tied', INT8),
        ('conformer', INT8),
        ('scanned', dataclasses.replace(INT8, weights='int4', group_size=8)),
        ('resnet', dataclasses.replace(INT8, weights='int4', group_size=4, targets='stage')),
    ],
)
def test_a_model_computes_with_narrow_kernels_what_it_does_with_their_values(name, settings):
    _, params, _ = made(name)
    narrow = kept(settings, params)
    wide = plain(narrow)
    before, after = flat(params), flat(wide)
    chosen = compress.found(params, settings.targets, compress.KEPT)
    assert chosen == [path for path, leaf in flat(narrow).items() if is_narrow(leaf)]
    for path, leaf in before.items():
        if path not in chosen:
            np.testing.assert_array_equal(after[path], leaf)
            continue
        off = np.abs(after[path] - rounded_by_definition(path, leaf, settings)) > 1e-6
        assert off.mean() < 0.01, path  # float32 may round the middle of two otherwise
    found = apply(name, narrow)
    np.testing.assert_allclose(found, apply(name, wide), rtol=1e-4, atol=1e-4)
    assert np.abs(found - apply(name, params)).max() > 0


@pytest.mark.parametrize('name', TABLES)
def test_every_model_takes_narrow_kernels_and_has_rules_for_them(name):
    """By shapes alone, of every variant of every model."""
    settings = dataclasses.replace(INT8, activations='int8_static')
    for fields in VARIANTS[name]:
        model, shapes = MODELS[name](**fields), parameters(name, fields)
        narrow = jax.eval_shape(functools.partial(compress.kept, settings), shapes)
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs_of(name, fields))
        jax.eval_shape(model.apply, {**variables, 'params': narrow}, *inputs_of(name, fields))
        rules = compress.sharding_rules(settings, model.sharding_rules, shapes)
        _, notes = sharding.param_specs(narrow, rules, sharding.make_mesh(sharding.MeshShape()))
        assert notes == []


def test_training_rounds_as_the_export_does_and_gradients_go_straight_through():
    settings = compress.Settings(weights='int8', activations='int8')
    model, params, _ = made('scanned')
    trained = apply('scanned', jax.jit(functools.partial(compress.joined, settings))(params))
    exported = apply('scanned', kept(dataclasses.replace(settings, packed=True), params))
    np.testing.assert_allclose(trained, exported, rtol=1e-4, atol=1e-4)
    assert np.abs(trained - apply('scanned', params)).max() > 1e-3

    def loss(params, wrap):
        return jnp.square(model.apply({'params': wrap(params)}, TOKENS)).mean()

    join = functools.partial(compress.joined, dataclasses.replace(settings, activations='float32'))
    gradient = jax.jit(jax.grad(loss), static_argnames='wrap')
    straight = gradient(params, wrap=join)
    there = gradient(jax.jit(join)(params), wrap=dict)
    test_sharding.assert_close(straight, there)


def test_inputs_are_rounded_by_rows_or_by_a_scale_and_multiplied_as_integers():
    x = RNG.normal(size=(5, 24)).astype(np.float32)
    x[2] = 0
    kernel = quantize.quantize(jnp.asarray(RNG.normal(size=(6, 24))), quantize.Format())
    wide = np.float64(kernels.widened(kernel))
    for scale in (None, np.float32(0.02)):
        rounded = Rounded(kernel, scale)
        largest = np.abs(np.float64(x)).max(-1, keepdims=True)
        steps = np.where(largest > 0, largest, 1) / 127 if scale is None else 0.02
        expected = (np.clip(np.round(x / steps), -127, 127) * steps) @ wide
        np.testing.assert_allclose(layers.matmul(x, rounded), expected, rtol=1e-3, atol=1e-4)
        product = kernels.whole_product(rounded.whole(x)[0], kernel)
        np.testing.assert_allclose(product * steps, expected, rtol=1e-3, atol=1e-4)
    array = jnp.asarray(wide, jnp.float32)
    slope = jax.grad(lambda x: layers.matmul(x, Rounded(array, np.float32(0.01))).sum())(x)
    np.testing.assert_array_equal(slope == 0, np.abs(x) > 1.27)  # none beyond the largest


def test_scales_are_the_largest_inputs_over_batches():
    def measured(model, params, inputs):
        class Task:
            @staticmethod
            def loss_fn(params, model_state, batch, rng, train):
                return jnp.square(model.apply({'params': params}, batch['inputs'])).mean(), ()

        narrow = kept(dataclasses.replace(INT8, activations='int8_static'), params)
        batches = [{'inputs': inputs[i : i + 1]} for i in range(len(inputs))]
        return calibrate.measured(Task, narrow, {}, batches)

    model, params, _ = made('scanned')
    found = measured(model, params, TOKENS)
    up, gate = (flat(found)[f'layers/mlp/{name}/kernel'].scale for name in ('up', 'gate'))
    np.testing.assert_array_equal(up, gate)  # of a gated unit they are the same
    assert up.shape == (2,)
    assert up[0] != up[1]
    exact = apply('scanned', params)
    assert 0 < (apply('scanned', found) - exact).std() < 0.2 * exact.std()

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            linear = layers.Linear(4, name='linear')
            return linear(x) + linear(0.5 * x)

    x = RNG.normal(size=(2, 8)).astype(np.float32)
    params = Twice().init(jax.random.key(0), x)['params']
    with pytest.raises(errors.UserError, match='several times in a step: linear/kernel'):
        measured(Twice(), params, x)
    convolution = measured(Conv(4, 3), {'kernel': np.ones((3, 3, 4, 4), np.float32)}, IMAGES)
    np.testing.assert_allclose(convolution['kernel'].scale, np.abs(IMAGES).max() / 127, rtol=1e-6)


def test_scales_of_a_task_that_asks_for_mirror_images_too_are_those_of_the_images():
    model, params, state = made('resnet')
    narrow = kept(dataclasses.replace(INT8, activations='int8_static'), params)
    count = len(IMAGES)
    batch = {'inputs': IMAGES, 'targets': np.zeros(count, np.int32), 'weights': np.ones(count)}
    plain, mirrored = (
        calibrate.measured(Classification(model, mirror=mirror), narrow, state, [batch])
        for mirror in (False, True)
    )
    assert trees.first_difference(plain, mirrored) is None


def model_of(name, params=None):
    _, own, state = made(name)
    kind, fields, _ = CALLED[name]
    section = config.with_defaults(MODELS[kind], fields) | {'name': kind}
    whole = {'model': section, 'compress': dataclasses.asdict(compress.NONE)}
    return recipes.Model(whole, own if params is None else params, state)


# Modules whose outputs no other's are added to.
INNER = {
    'convnet': ('conv', 'dense', 'norm'),
    'resnet': ('reduce', 'middle'),
    'basic': ('first_norm',),  # kernels of channels that are scaled by 0 are as large as others
}


def zeroed(name, heads, units, params):
    """The first columns that go into heads or units, and the first rows that come out, are 0."""

    def cut(path, leaf):
        *_, module, part = ['', *path.split('/')]
        leaf = leaf.copy()
        if name in INNER:
            if module.startswith(INNER[name]):
                leaf[..., : leaf.shape[-1] // 4] = 0
        elif module in ('query', 'key', 'value'):
            leaf[..., : leaf.shape[-1] * heads // 16] = 0
        elif module in ('up', 'gate'):
            leaf[..., :units] = 0
        elif part == 'kernel' and module in ('out', 'down'):
            leaf[..., : heads if module == 'out' else units, :] = 0
        return leaf

    return trees.map_named(cut, params)


@pytest.mark.parametrize(
    ('name', 'recipe', 'parts', 'left'),
    [
        (
            'scanned',
            'units50,heads50',
            (8, 32),
            dict(num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=32),
        ),
        ('vit', 'heads75', (12, 0), dict(num_heads=1, head_dim=4)),
        ('conformer', 'heads50,units50', (8, 16), dict(num_heads=2, head_dim=4, mlp_dim=16)),
        ('convnet', 'channels25', (0, 0), dict(stages=[[6], [6]], dense_widths=[12, 6])),
        ('resnet', 'channels25', (0, 0), dict(stage_widths=[8], inner_widths=[6])),
        ('basic', 'channels25', (0, 0), dict(stage_widths=[8, 8, 16], inner_widths=[8, 6, 12])),
    ],
)
def test_parts_that_are_zero_are_taken_out_and_nothing_else(name, recipe, parts, left):
    params = zeroed(name, *parts, made(name)[1])
    smaller = recipes.applied(recipes.parse(recipe), model_of(name, params))
    section = dict(smaller.config['model'])
    assert {key: section[key] for key in left} == left
    small = MODELS[section.pop('name')](**section)
    variables = {'params': smaller.params, **smaller.model_state}
    found = jax.jit(small.apply)(variables, *CALLED[name][2])
    np.testing.assert_allclose(found, apply(name, params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('recipe', ['prune_global75', '2:4', 'prune50,int8'])
def test_the_smallest_weights_are_zero(recipe):
    model = model_of('scanned')
    smaller = recipes.applied(recipes.parse(recipe), model)
    chosen = compress.found(model.params, compress.KERNELS, compress.KERNELS)
    before, after = flat(model.params), flat(plain(smaller.params))
    gone = {path: after[path] == 0 for path in chosen}
    if recipe == 'prune_global75':
        weights, zero = (np.concatenate([tree[path].ravel() for path in chosen])
                         for tree in (before, gone))  # fmt: skip
        assert zero.mean() == pytest.approx(0.75, abs=1e-3)
        assert np.abs(weights[zero]).max() <= np.abs(weights[~zero]).min()
    for path, zero in gone.items():
        if recipe == '2:4':
            fours = zero.reshape(*zero.shape[:-2], -1, 4, zero.shape[-1])
            assert (fours.sum(-2) == 2).all(), path
        elif recipe == 'prune50,int8':  # rounding may add to them
            share = zero.reshape(2 if trees.is_scanned(path) else 1, -1).mean(-1)
            assert ((share >= 0.5) & (share < 0.53)).all(), path
    for path in before.keys() - {*chosen, 'embed/embedding'}:
        np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize(
    ('recipe', 'name', 'message'),
    [
        ('int9', 'vit', "step of a recipe 'int9'. Did you mean 'int"),
        ('prune100', 'vit', 'over 0 and under 100'),
        ('prune', 'vit', 'needs a number'),
        ('heads:much', 'vit', 'no number behind it'),
        ('int8,int4', 'vit', 'two steps of weights'),
        ('int8:7', 'vit', 'no whole number of groups of 7'),
        ('int8:1.5', 'vit', 'whole number of inputs'),
        ('a8:3', 'vit', 'takes no number'),
        ('kv8', 'vit', "'vit' keeps no keys and values"),
        ('channels50', 'vit', "convnet and resnet, not of the model 'vit'"),
        ('heads50', 'convnet', 'no attention layers'),
        ('heads10', 'vit', '10% of 4 groups of heads leaves 4'),
    ],
)
def test_mistakes_in_recipes(recipe, name, message):
    with pytest.raises(errors.UserError, match=message):
        recipes.tried(recipes.parse(recipe), model_of(name))


@pytest.mark.parametrize(('recipe', 'section'), [('int8', 'compress'), ('prune50', 'prune')])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_what_there_is(recipe, section):
    with pytest.raises(errors.UserError, match=rf'config.{section}.targets = .atention.*head/ker'):
        recipes.tried(recipes.parse(recipe, 'atention'), model_of('vit'))
    with pytest.raises(errors.UserError, match='needs scales that were measured'):
        compress.Settings(activations='int8_static')
