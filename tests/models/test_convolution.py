"""Convolutions and batch normalisation against float64 references in numpy."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from bigmodels import trees
from bigmodels.models.parts import batch_norm, convolution
from bigmodels.models.parts.convolution import winograd

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def reference(x, kernel, stride, padding=None):
    """The definition, in float64: one product for each place of the kernel."""
    size = len(kernel)
    around = size // 2 if padding is None else padding
    x = np.pad(np.float64(x), ((0, 0), (around, around), (around, around), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    total = 0
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            columns = slice(j, j + stride * (width - 1) + 1, stride)
            total = total + x[:, rows, columns] @ np.float64(kernel[i, j])
    return total


def reference_gradients(x, kernel, g, stride, padding):
    """Of sum(convolution * g), which is linear in either: by its value at every unit array."""

    def along(shape, function):
        units = np.eye(np.prod(shape)).reshape(-1, *shape)
        return np.array([(function(unit) * g).sum() for unit in units]).reshape(shape)

    return (
        along(x.shape, lambda unit: reference(unit, kernel, stride, padding)),
        along(kernel.shape, lambda unit: reference(x, unit, stride, padding)),
    )


# Height, width, channels in and out, kernel size, stride, padding.
SHAPES = [
    (4, 6, 2, 3, 3, 1, None),
    (5, 4, 2, 3, 3, 1, None),
    (6, 4, 2, 3, 3, 2, None),
    (4, 4, 3, 2, 1, 1, None),
    (5, 4, 3, 2, 1, 2, None),
    (5, 6, 2, 3, 3, 2, None),
    (7, 6, 1, 2, 5, 3, None),
    (8, 8, 1, 2, 7, 2, None),
    (6, 5, 2, 2, 3, 1, 0),
    (8, 6, 1, 2, 4, 1, 0),
    (8, 9, 1, 2, 5, 4, 1),
    (7, 8, 1, 2, 4, 3, 2),
]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('products', [True, False])
def test_convolution_and_its_gradients(shape, products, monkeypatch):
    """By XLA, and by products where the shape is one for them, however few channels."""
    monkeypatch.setattr(convolution, 'MIN_CHANNELS', 1 if products else 1 << 20)
    height, width, inputs, outputs, size, stride, padding = shape
    x, kernel = normal(2, height, width, inputs), normal(size, size, inputs, outputs)
    expected = reference(x, kernel, stride, padding)
    convolve = functools.partial(convolution.convolve, stride=stride, padding=padding)
    y, pullback = jax.vjp(convolve, x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    g = normal(*expected.shape)
    exact_gradients = reference_gradients(x, kernel, g, stride, padding)
    for gradient, exact in zip(pullback(g), exact_gradients, strict=True):
        np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_minimal_filtering_in_blocks(dtype, monkeypatch):
    """Blocks of single images, and every image in one; in bfloat16 with sums in float32."""
    x, kernel, g = normal(6, 8, 8, 16), normal(3, 3, 16, 24) / 12, normal(6, 8, 8, 24)
    exact = [reference(x, kernel, 1)]
    exact += jax.vjp(lambda x, k: convolution._convolve(x, k, 1, 1), x, kernel)[1](g)
    x, kernel, g = (jnp.asarray(array, dtype) for array in (x, kernel, g))
    tolerance = 1e-5 if dtype == 'float32' else 1.5e-2
    for size in (1, 1 << 30):
        monkeypatch.setattr(winograd, 'BLOCK_BYTES', size)
        y = winograd.convolve(x, kernel)
        assert y.dtype == dtype
        found = y, winograd.input_gradient(g, kernel), winograd.kernel_gradient(x, g)
        for array, expected in zip(found, exact, strict=True):
            difference = np.linalg.norm(np.float64(array) - expected)
            assert difference < tolerance * np.linalg.norm(expected)


def test_every_example_has_a_gradient_of_its_own():
    """Under vmap, as private training takes it."""
    x, kernel = normal(3, 4, 4, 16), normal(3, 3, 16, 16)
    loss = lambda kernel, image: jnp.sin(convolution.convolve(image[None], kernel)).sum()
    each = jax.vmap(jax.grad(loss), (None, 0))(kernel, x)
    whole = jax.grad(lambda k: jnp.sin(convolution._convolve(x, k, 1, 1)).sum())(kernel)
    np.testing.assert_allclose(each.sum(0), whole, rtol=1e-3, atol=1e-3)


def test_batch_norm_in_training():
    """Output and gradients are those of the definition, differentiated by JAX in float64."""
    x, scale, bias, g = 3 * normal(4, 3, 2, 5) + 2, normal(5), normal(5), normal(4, 3, 2, 5)

    def definition(x, scale, bias):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return scale * (x - mean) / jnp.sqrt(variance + 1e-5) + bias

    ours = lambda *arguments: batch_norm.normalize_batch(*arguments, 1e-5)[0]
    y, pullback = jax.vjp(ours, x, scale, bias)
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (x, scale, bias)]
        expected, exact = jax.vjp(definition, *wide)
        exact = exact(jnp.asarray(g, jnp.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(pullback(g), exact, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=2e-5)


def test_cosines_are_those_of_a_patch_both_ways_and_the_rest_random():
    kernel = np.asarray(convolution.cosines(jax.random.key(0), (3, 3, 2, 40)))
    patch = normal(3, 3, 2)
    found = np.einsum('hwc,hwcf->f', patch, kernel)
    expected = math.sqrt(2) * scipy.fft.dctn(patch, norm='ortho')
    order = sorted(np.ndindex(3, 3, 2), key=lambda frequencies: (sum(frequencies), frequencies))
    np.testing.assert_allclose(found[:18], [expected[i] for i in order], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kernel[..., 18:36], -kernel[..., :18])
    assert 0.2 < kernel[..., 36:].std() < 0.45  # sqrt(2 / 18) is a third
    few = convolution.cosines(jax.random.key(1), (3, 3, 2, 5))
    np.testing.assert_array_equal(few, kernel[..., :5])


def test_cosines_of_smooth_images_are_almost_uncorrelated():
    """As those of photographs are: neighbours correlate by 0.95, colours by 0.9."""
    places = np.arange(3)
    apart = np.abs(places[:, None] - places)
    by_place, by_colour = 0.95**apart, np.where(apart, 0.9, 1.0)
    covariance = np.kron(np.kron(by_place, by_place), by_colour)

    def correlation(kernel):
        """The root mean square of those between features."""
        filters = np.asarray(kernel, np.float64).reshape(27, -1)
        features = filters.T @ covariance @ filters
        scale = np.sqrt(np.diag(features))
        correlations = (features / np.outer(scale, scale))[np.triu_indices(len(features), 1)]
        return np.sqrt(np.mean(correlations**2))

    key, shape = jax.random.key(0), (3, 3, 3, 27)
    assert correlation(convolution.cosines(key, shape)) < 0.02
    assert correlation(nn.initializers.he_normal()(key, shape)) > 0.3


def test_batch_norm_keeps_averages_and_evaluates_with_them():
    norm = batch_norm.BatchNorm(momentum=0.75)
    x = normal(6, 2, 2, 3) * 2 + 1
    variables = norm.init(jax.random.key(0), x, train=False)
    y, state = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    stats = state['batch_stats']
    np.testing.assert_allclose(stats['mean'], 0.25 * x.mean((0, 1, 2)), rtol=1e-5)
    unbiased = x.var((0, 1, 2), ddof=1, dtype=np.float64)
    np.testing.assert_allclose(stats['variance'], 0.75 + 0.25 * unbiased, rtol=1e-5)
    evaluated = norm.apply({**variables, **state}, x, train=False)
    expected = (x - stats['mean']) / np.sqrt(stats['variance'] + 1e-5)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-5)
    assert abs(np.mean(y)) < 1e-5


class Normed(nn.Module):
    """Two of them, each after a convolution, the first with others in a scope."""

    @nn.compact
    def __call__(self, x, train):
        for name in ('stem', 'top'):
            x = nn.Conv(4, (1, 1), name=f'{name}_conv')(x)
            x = batch_norm.BatchNorm(name=f'{name}_norm')(x, train)
        return x


def test_frozen_batch_norm_is_as_in_evaluation():
    x, model = normal(6, 2, 2, 3) * 2 + 1, Normed()
    variables = model.init(jax.random.key(0), x, train=False)
    params, stats = variables['params'], variables['batch_stats']
    stats = jax.tree.map(lambda value: value + 0.5, stats)
    apply = lambda train: model.apply(
        {'params': params, 'batch_stats': stats}, x, train, mutable=['batch_stats']
    )
    free, updated = apply(True)
    y, kept = batch_norm.frozen(('^stem',))(apply)(True)
    kept = kept['batch_stats']
    for name in ('mean', 'variance'):
        np.testing.assert_array_equal(kept['stem_norm'][name], stats['stem_norm'][name])
        assert (kept['top_norm'][name] != stats['top_norm'][name]).all()
    assert np.abs(y - free).max() > 0.1
    everything, kept = batch_norm.frozen(('conv', 'norm/scale'))(apply)(True)
    np.testing.assert_array_equal(everything, apply(False)[0])
    after, again = apply(True)  # the context has ended
    np.testing.assert_array_equal(after, free)
    assert trees.first_difference(updated, again) is None
    assert trees.first_difference(kept['batch_stats'], stats) is None


def test_batch_norm_of_values_far_from_zero():
    """Mean and square in one pass lose digits of the variance, but not its sign."""
    y, _, variance = batch_norm.normalize_batch(
        jnp.full((64, 2), 1e4), jnp.ones(2), jnp.zeros(2), 1e-5
    )
    assert jnp.isfinite(y).all()
    assert (variance >= 0).all()
