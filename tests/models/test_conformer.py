"""The Conformer against its equations in numpy, and what its padding must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bigmodels import errors, sharding
from bigmodels.models import conformer
from bigmodels.models.parts.convolution import depthwise

HEADS = 2


@pytest.mark.parametrize('own', [False, True])
def test_depthwise_convolution_and_its_gradient(own):
    """Both forms against sums written out, and the gradient against small differences."""
    rng = np.random.default_rng(0)
    x, kernel, weights = (
        rng.normal(size=(2, 7, 3)),
        rng.normal(size=(5, 3)),
        rng.normal(size=(2, 7, 3)),
    )
    convolve = functools.partial(depthwise._convolve, stride=1) if own else depthwise.convolve
    y = convolve(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(y, direct(x, kernel), atol=1e-5)
    gradients = jax.grad(lambda *a: (convolve(*a) * weights).sum(), (0, 1))(
        jnp.asarray(x), jnp.asarray(kernel)
    )
    for number, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        ahead, behind = ([x, kernel], [x, kernel])
        ahead[number], behind[number] = (
            (x, kernel)[number] + sign * 1e-4 * direction for sign in (1, -1)
        )
        slope = ((direct(*ahead) - direct(*behind)) * weights).sum() / 2e-4
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-3)


def direct(x, kernel):
    """y[t] = sum over k of kernel[k] x[t + k - K // 2], one term at a time."""
    b, l, d = x.shape
    y = np.zeros((b, l, d))
    for t in range(l):
        for k in range(len(kernel)):
            if 0 <= t + k - len(kernel) // 2 < l:
                y[:, t] += kernel[k] * x[:, t + k - len(kernel) // 2]
    return y


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def linear(x, p):
    return x @ p['kernel'] + p['bias']


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def feed_forward(x, p):
    hidden = linear(x, p['up'])
    return linear(hidden * sigmoid(hidden), p['down'])


def attention(x, p):
    """Of one sequence [L, D]; pairs (i, i + K/2) of each head are turned by their position."""
    l, d = x.shape
    k = d // HEADS
    angles = np.arange(l)[:, None] * 10_000.0 ** -(np.arange(0, k, 2) / k)

    def turned(name):
        heads = linear(x, p[name]).reshape(l, HEADS, k)
        number = (heads[..., : k // 2] + 1j * heads[..., k // 2 :]) * np.exp(1j * angles)[:, None]
        return np.concatenate([number.real, number.imag], -1)

    scores = np.einsum('ihk,jhk->hij', turned('query'), turned('key')) / np.sqrt(k)
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    values = linear(x, p['value']).reshape(l, HEADS, k)
    return linear(np.einsum('hij,jhk->ihk', weights, values).reshape(l, d), p['out'])


def convolution(x, p):
    """Gulati et al. 2020, figure 2, from the first pointwise convolution on; of [L, D]."""
    gated = linear(x, p['value_pointwise']) * sigmoid(linear(x, p['gate_pointwise']))
    y = norm(direct(gated[None], p['depthwise'])[0], p['norm'])
    return linear(y * sigmoid(y), p['out_pointwise'])


def reference(x, p):
    """Equation 1 of the paper."""
    x = x + feed_forward(norm(x, p['first_mlp_norm']), p['first_mlp']) / 2
    x = x + attention(norm(x, p['attention_norm']), p['attention'])
    x = x + convolution(norm(x, p['convolution_norm']), p['convolution'])
    x = x + feed_forward(norm(x, p['last_mlp_norm']), p['last_mlp']) / 2
    return norm(x, p['final_norm'])


def random_like(params, seed=0):
    """Parameters of about the same size, so that no bias is zero and no scale one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), params)


def test_a_block_is_the_equations():
    model = conformer.Conformer(num_classes=3, num_layers=1, embed_dim=8, num_heads=HEADS, taps=5)
    block = conformer.Block(model.settings, model.taps)
    x = np.random.default_rng(1).normal(size=(2, 9, 8)).astype(np.float32)
    real = np.arange(9) < np.array([9, 6])[:, None]
    params = random_like(block.init(jax.random.key(0), x, real)['params'])
    y = block.apply({'params': params}, x, real)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    np.testing.assert_allclose(y[0], reference(x[0].astype(float), wide), atol=2e-5)
    np.testing.assert_allclose(y[1, :6], reference(x[1, :6].astype(float), wide), atol=2e-5)


@pytest.mark.parametrize('pool', ['mean', 'none'])
@pytest.mark.parametrize('subsampling', [1, 2, 4])
def test_padding_changes_nothing(pool, subsampling):
    """Neither how much there is nor what is in it; and the states' number is as told."""
    model = conformer.Conformer(
        num_classes=5, num_layers=2, embed_dim=8, num_heads=2, taps=5, pool=pool,
        subsampling=subsampling, subsampling_channels=4,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 23, 8)).astype(np.float32)
    lengths = np.array([23, 12, 5])
    params = random_like(model.init(jax.random.key(0), x, lengths)['params'])
    apply = jax.jit(lambda x, lengths: model.apply({'params': params}, x, lengths))
    longer = np.concatenate([x, np.zeros((3, 10, 8), np.float32)], 1)
    garbage = np.where(np.arange(33)[:, None] < lengths[:, None, None], longer, 50 + longer)
    padded = apply(garbage, lengths)
    for i, length in enumerate(lengths):
        alone = apply(x[i : i + 1, :length], lengths[i : i + 1])[0]
        if pool == 'none':
            assert len(alone) == model.output_lengths(int(length))
        together = padded[i] if pool == 'mean' else padded[i, : len(alone)]
        np.testing.assert_allclose(together, alone, atol=2e-5)


@pytest.mark.slow
def test_recomputation_changes_nothing():
    fields = dict(num_classes=5, num_layers=2, embed_dim=8, num_heads=2, subsampling_channels=4)
    plain, remat = (conformer.Conformer(**fields, remat=remat) for remat in ('none', 'full'))
    x, lengths = jnp.ones((2, 16, 8)).at[:, 3].set(0.5), jnp.array([16, 9])
    params = plain.init(jax.random.key(0), x, lengths)['params']

    def gradient(model):
        return jax.grad(lambda p: model.apply({'params': p}, x, lengths)[:, 0].sum())(params)

    for one, other in zip(*map(jax.tree.leaves, map(gradient, (plain, remat))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_on_a_mesh_it_computes_the_same():
    model = conformer.Conformer(num_classes=4, num_layers=1, embed_dim=16, num_heads=2)
    x = np.random.default_rng(0).normal(size=(8, 32, 8)).astype(np.float32)
    lengths = np.arange(8) * 3 + 8
    params = model.init(jax.random.key(0), x, lengths)['params']
    expected = model.apply({'params': params}, x, lengths)
    mesh = sharding.make_mesh(sharding.MeshShape(data=2, fsdp=2, tensor=2))
    specs, _ = sharding.param_specs(params, model.sharding_rules, mesh)
    place = lambda leaf, spec: jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))
    placed = jax.tree.map(place, params, specs, is_leaf=lambda s: isinstance(s, PartitionSpec))
    with jax.set_mesh(mesh):
        batch = sharding.put_batch({'x': x, 'lengths': lengths}, mesh)
        out = jax.jit(lambda p, b: model.apply({'params': p}, b['x'], b['lengths']))(placed, batch)
    np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(subsampling=3), r'model\.subsampling = 3 must be a power of 2'),
        (dict(taps=4), r'model\.taps = 4 must be odd'),
        (dict(num_heads=3), 'is not divisible by num_heads'),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(errors.UserError, match=message):
        conformer.Conformer(
            **(dict(num_classes=2, num_layers=1, embed_dim=8, num_heads=2) | fields)
        )
