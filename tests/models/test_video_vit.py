"""The factorised Video Vision Transformer against its definition, written out in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, trees
from bigmodels.models.video_vit import VideoViT, tubelets
from bigmodels.tasks import Classification
from tests import test_sharding

FIELDS = dict(num_classes=10, num_layers=2, num_temporal_layers=1, embed_dim=32, num_heads=2)
SMALL = {pool: VideoViT(**FIELDS, patch_size=4, pool=pool) for pool in ('token', 'mean')}
SHAPE = (6, 8, 12, 3)  # T, H, W, C


@functools.partial(jax.jit, static_argnums=(0, 1))
def variables(model, shape=SHAPE):
    """With parameters that are all random, so that none can be left out unseen."""
    params = model.init(jax.random.key(0), jnp.zeros((1, *shape)))['params']
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return {'params': jax.tree.unflatten(structure, noisy)}


def videos(count=2):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def test_the_published_number_of_parameters():
    """ViViT-B/16x2, factorised encoder, on 400 classes and 32 frames: 115.1 M (table 2)."""
    model = VideoViT(400, num_layers=12, embed_dim=768, num_heads=12)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 224, 224, 3)))
    assert round(trees.count(shapes['params']) / 1e6, 1) == 115.1


def test_tubelets_are_boxes_of_the_video():
    given = np.arange(2 * np.prod(SHAPE)).reshape(2, *SHAPE)
    found = tubelets(given, 2, 4)
    assert found.shape == (2, 3, 6, 96)
    box = given[1, 4:6, 4:8, 8:12]  # the last time, row and column
    np.testing.assert_array_equal(
        np.asarray(found)[1, 2, 5].reshape(4, 4, 2, 3), box.transpose(1, 2, 0, 3)
    )


def linear(p, x):
    return x @ p['kernel'] + p['bias']


def norm(p, x):
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x - x.mean(-1, keepdims=True)) / deviation * p['scale'] + p['bias']


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def encoded(p, x, heads, pool):
    """x [L, D] -> [D], by one encoder."""
    if pool == 'token':
        x = np.concatenate([p['class_token'], x])
    x = x + p['position_embed']
    for name in sorted(name for name in p if name.startswith('layers_')):
        block = p[name]
        h = norm(block['attention_norm'], x)
        query, key, value = (
            linear(block['attention'][part], h).reshape(len(x), heads, -1).swapaxes(0, 1)
            for part in ('query', 'key', 'value')
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        attended = (shares @ value).swapaxes(0, 1).reshape(len(x), -1)
        x = x + linear(block['attention']['out'], attended)
        hidden = gelu(linear(block['mlp']['up'], norm(block['mlp_norm'], x)))
        x = x + linear(block['mlp']['down'], hidden)
    x = norm(p['final_norm'], x)
    return x[0] if pool == 'token' else x.mean(0)


@pytest.mark.parametrize('pool', SMALL)
def test_logits_are_those_of_the_definition(pool):
    model, given = SMALL[pool], videos()
    state = variables(model)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state['params'])
    expected = []
    for video in given.astype(np.float64):
        times = []
        for t in range(0, 6, 2):
            tokens = [
                video[t : t + 2, r : r + 4, c : c + 4].transpose(1, 2, 0, 3).ravel()
                for r in range(0, 8, 4)
                for c in range(0, 12, 4)
            ]
            tokens = linear(p['tubelet_embed'], np.array(tokens))
            times.append(encoded(p['spatial'], tokens, 2, pool))
        expected.append(linear(p['head'], encoded(p['temporal'], np.array(times), 2, pool)))
    np.testing.assert_allclose(jax.jit(model.apply)(state, given), expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_times_counts():
    model, given = SMALL['mean'], videos()
    state = variables(model)
    apply = jax.jit(model.apply)
    one, other = (apply(state, x) for x in (given, given[:, ::-1]))
    assert np.abs(one - other).max() > 0.01


def batches(count=test_sharding.STEPS):
    rng = np.random.default_rng(0)
    rows = test_sharding.ROWS
    return [
        {
            'inputs': rng.normal(size=(rows, *SHAPE)).astype(np.float32),
            'targets': rng.integers(0, 10, rows).astype(np.int32),
            'weights': np.ones(rows, np.float32),
        }
        for _ in range(count)
    ]


@functools.cache
def on_one_device():
    return test_sharding.train(
        Classification(SMALL['mean'], num_frames=6), batches(), num_devices=1
    )


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [dict(data=8), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_placement_computes_the_same(mesh):
    figures, state, _ = on_one_device()
    task = Classification(SMALL['mean'], num_frames=6)
    placed_figures, placed, _ = test_sharding.train(task, batches(), **mesh)
    np.testing.assert_allclose(placed_figures, figures, rtol=1e-4)
    test_sharding.assert_close(placed.params, state.params, 1e-4)


@pytest.mark.parametrize('change', [dict(scan_layers=True), dict(remat='full')], ids=str)
def test_scanned_and_rematerialised_layers_are_the_plain_ones(change):
    model, given = SMALL['token'], videos()
    params = variables(model)['params']
    changed, other = model.clone(**change), dict(params)
    for name in ('spatial', 'temporal') if 'scan_layers' in change else ():
        encoder = dict(params[name])
        stack = [encoder.pop(key) for key in sorted(encoder) if key.startswith('layers_')]
        encoder['layers'] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
        other[name] = encoder
    loss = lambda params, model: jnp.square(model.apply({'params': params}, given)).sum()
    gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = gradients(params, model)
    same_value, same_gradient = gradients(other, changed)
    np.testing.assert_allclose(same_value, value, rtol=1e-5)
    for name in ('tubelet_embed', 'head'):
        np.testing.assert_allclose(
            same_gradient[name]['kernel'], gradient[name]['kernel'], rtol=1e-3, atol=1e-4
        )


def test_an_impossible_shape_is_said():
    for shape, message in [
        ((5, 8, 12, 3), 'tubelet_frames = 2 does not divide videos of 5 frames'),
        ((6, 8, 10, 3), 'patch_size = 4 does not divide images of 8 x 10 pixels'),
        ((8, 12, 3), r'Videos are \[B, T, H, W, C\], but the inputs are \[1, 8, 12, 3\]'),
    ]:
        with pytest.raises(errors.UserError, match=message):
            variables(SMALL['token'], shape)
