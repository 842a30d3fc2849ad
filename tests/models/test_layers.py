"""Norms, rotary embedding, matmuls and activations against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import sharding
from bigmodels.models.parts import activations, layers

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_norms(dtype):
    x = np.asarray(jnp.asarray(3 + 5 * normal(4, 7, 16), dtype), np.float64)
    scale, bias = normal(16), normal(16)
    narrow = jnp.asarray(x, dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2

    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
    given = layers.layer_norm(narrow, jnp.float32(scale), jnp.float32(bias), 1e-5)
    assert given.dtype == dtype
    np.testing.assert_allclose(np.float64(given), expected, rtol=tolerance, atol=tolerance)
    given = layers.layer_norm(narrow, jnp.float32(scale), None, 1e-5)
    np.testing.assert_allclose(np.float64(given), expected - bias, rtol=tolerance, atol=tolerance)

    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    given = layers.rms_norm(narrow, jnp.float32(scale), 1e-6)
    assert given.dtype == dtype
    np.testing.assert_allclose(np.float64(given), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('centred', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_norms(dtype, centred):
    """Against differentiation of the definition in float64."""
    x, g = (jnp.asarray(1 + 2 * normal(3, 5, 16), dtype) for _ in range(2))
    scale, bias = jnp.float32(normal(16)), jnp.float32(normal(16))
    vectors = (scale, bias) if centred else (scale,)
    narrow = layers.layer_norm if centred else layers.rms_norm
    given = jax.vjp(lambda x, *v: narrow(x, *v, 1e-5), x, *vectors)[1](g)

    def definition(x, scale, bias=0.0):
        x = x - x.mean(-1, keepdims=True) if centred else x
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    with jax.enable_x64():
        wide = [jnp.float64(v) for v in (x, *vectors)]
        expected = jax.vjp(definition, *wide)[1](jnp.float64(g))
    tolerance = 1e-5 if dtype == 'float32' else 1e-2
    assert given[0].dtype == dtype
    assert all(d.dtype == jnp.float32 for d in given[1:])
    for d, e in zip(given, expected, strict=True):
        np.testing.assert_allclose(np.float64(d), e, rtol=tolerance, atol=5 * tolerance)


def test_gradients_of_gated_activations():
    gate, up = jnp.float32(normal(2, 40))
    for name, inner in {'swiglu': jax.nn.silu, 'geglu': jax.nn.gelu}.items():
        given = jax.grad(lambda *x, n=name: activations.GATED_ACTIVATIONS[n](*x).sum(), (0, 1))(
            gate, up
        )
        expected = jax.grad(lambda a, b, f=inner: (f(a) * b).sum(), (0, 1))(gate, up)
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def test_norms_of_large_and_tiny_inputs_stay_finite():
    for size in (1e15, 1e-15):
        x = jnp.float32(size * normal(2, 8))
        assert jnp.isfinite(layers.rms_norm(x, jnp.ones(8), 1e-6)).all()
        assert jnp.isfinite(layers.layer_norm(x, jnp.ones(8), None, 1e-6)).all()


def test_rotation_is_multiplication_by_a_unit_complex_number():
    x, positions = normal(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 0, 100, 5, 5]])
    frequencies = 10_000.0 ** -(np.arange(4) / 4)
    given, length = layers.rotary_frequencies(8, 10_000.0)
    np.testing.assert_allclose(given, frequencies, rtol=1e-6)
    assert length == 1
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, :, None, None] * frequencies)
    expected = np.concatenate([turned.real, turned.imag], -1)
    given = layers.rotate(jnp.float32(x), jnp.asarray(positions), jnp.float32(frequencies))
    np.testing.assert_allclose(given, expected, atol=2e-5)


def test_scores_after_rotation_depend_on_the_distance_only():
    q, k = jnp.float32(normal(1, 1, 1, 16)), jnp.float32(normal(1, 1, 1, 16))
    frequencies, _ = layers.rotary_frequencies(16, 10_000.0)

    def score(i, j):
        at = lambda x, i: layers.rotate(x, jnp.full((1, 1), i), frequencies)
        return float((at(q, i) * at(k, j)).sum())

    for shift in (1, 50, 900):
        np.testing.assert_allclose(score(9 + shift, 4 + shift), score(9, 4), atol=1e-3)
    assert abs(score(9, 4) - score(9, 7)) > 1e-3


def test_linear_scaling_is_position_interpolation():
    scaled = layers.rotary_frequencies(16, 10_000.0, {'name': 'linear', 'factor': 4.0})
    x = jnp.float32(normal(1, 6, 2, 16))
    positions = jnp.arange(6)[None]
    np.testing.assert_allclose(
        layers.rotate(x, 4 * positions, *scaled),
        layers.rotate(x, positions, *layers.rotary_frequencies(16, 10_000.0)),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ('factor', 'low', 'high', 'original', 'head_dim'),
    [(8.0, 1.0, 4.0, 8192, 128), (32.0, 1.0, 4.0, 8192, 64), (2.0, 0.5, 8.0, 512, 32)],
)
def test_llama3_scaling_is_the_reference_code(factor, low, high, original, head_dim):
    """`apply_scaling` of meta-llama/llama-models, models/llama3/model.py."""
    expected = []
    for i in range(0, head_dim, 2):
        frequency = 500_000.0 ** -(i / head_dim)
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            expected.append(frequency)
        elif wavelength > original / low:
            expected.append(frequency / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected.append((1 - smooth) * frequency / factor + smooth * frequency)
    scaling = {
        'name': 'llama3',
        'factor': factor,
        'low_frequency_factor': low,
        'high_frequency_factor': high,
        'original_length': original,
    }
    given, _ = layers.rotary_frequencies(head_dim, 500_000.0, scaling)
    np.testing.assert_allclose(given, expected, rtol=2e-5)


@pytest.mark.parametrize('out_dtype', [None, jnp.float32])
def test_low_precision_matmul(out_dtype):
    x = jnp.asarray(normal(3, 5, 64), jnp.bfloat16)
    kernel = jnp.float32(normal(64, 32) / 8)
    g = jnp.asarray(normal(3, 5, 32), out_dtype or jnp.bfloat16)
    y, pull = jax.vjp(lambda x, k: layers.matmul(x, k, out_dtype), x, kernel)
    dx, dkernel = pull(g)
    assert y.dtype == (out_dtype or jnp.bfloat16)
    assert dx.dtype == jnp.bfloat16
    assert dkernel.dtype == jnp.float32
    wide = [np.asarray(a, np.float64) for a in (x, kernel, g)]
    wide_x, wide_kernel, wide_g = wide
    close = dict(rtol=2e-2, atol=3e-2)
    np.testing.assert_allclose(np.float64(y), wide_x @ wide_kernel, **close)
    np.testing.assert_allclose(np.float64(dx), wide_g @ wide_kernel.T, **close)
    rows, g_rows = wide_x.reshape(-1, 64), wide_g.reshape(-1, 32)
    np.testing.assert_allclose(dkernel, rows.T @ g_rows, rtol=2e-2, atol=6e-2)


def test_wide_output_keeps_the_float32_sum():
    """The logits of a bf16 model are not rounded to bf16."""
    x = jnp.asarray(normal(4, 256), jnp.bfloat16)
    kernel = jnp.asarray(normal(256, 16), jnp.bfloat16).astype(jnp.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(layers.matmul(x, kernel, jnp.float32), exact, rtol=1e-4, atol=1e-4)


def _dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            yield eqn
        for value in eqn.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, 'eqns')):
                if hasattr(inner, 'jaxpr') or hasattr(inner, 'eqns'):
                    yield from _dots(getattr(inner, 'jaxpr', inner))


@pytest.mark.parametrize('out_dtype', [None, jnp.float32])
def test_all_three_products_have_narrow_operands_and_wide_sums(out_dtype):
    def loss(x, kernel):
        return jnp.sin(layers.matmul(x, kernel, out_dtype).astype(jnp.float32)).sum()

    x, kernel = jnp.ones((2, 3, 8), jnp.bfloat16), jnp.ones((8, 4))
    dots = list(_dots(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel).jaxpr))
    assert len(dots) == 3
    for dot in dots:
        assert {v.aval.dtype for v in dot.invars} == {jnp.dtype(jnp.bfloat16)}
        assert dot.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_split_rows_and_positions_are_not_merged(dtype):
    """The products have all dimensions of x, and are those of merged ones."""
    x, kernel, g = (jnp.asarray(normal(*shape), dtype) for shape in ((2, 4, 8), (8, 3), (2, 4, 3)))
    kernel = kernel.astype(jnp.float32)

    def products(x, kernel, g):
        y, pull = jax.vjp(layers.matmul, x, kernel)
        return y, *pull(g)

    expected = jax.jit(products)(x, kernel, g)
    jax.clear_caches()
    with jax.set_mesh(sharding.make_mesh(sharding.MeshShape(data=2, sequence=4))):
        given = jax.jit(products)(x, kernel, g)
        dots = list(_dots(jax.make_jaxpr(products)(x, kernel, g).jaxpr))
    assert [max(v.aval.ndim for v in dot.invars) for dot in dots] == [3, 3, 3]
    for one, other in zip(given, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=1e-2, atol=1e-5)


def test_embeddings_on_every_mesh():
    embed = layers.Embed(6, 4)
    ids = jnp.arange(8).reshape(2, 4) % 6
    variables = embed.init(jax.random.key(0), ids)
    expected = variables['params']['embedding'][ids]
    for shape in (dict(), dict(sequence=2, fsdp=2, tensor=2), dict(sequence=2, tensor=4)):
        with jax.set_mesh(sharding.make_mesh(sharding.MeshShape(**shape))):
            for rows in ('tensor', None):  # 6 rows do not divide by tensor 4
                look_up = lambda variables, ids, rows=rows: embed.apply(variables, ids, rows)
                np.testing.assert_array_equal(jax.jit(look_up)(variables, ids), expected)


def test_float32_matmul():
    x, kernel = normal(2, 3, 8), normal(8, 4)
    y = layers.matmul(jnp.float32(x), jnp.float32(kernel))
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-5, atol=1e-5)


def test_activations():
    x = np.linspace(-4, 4, 41)
    erf = np.vectorize(math.erf)
    expected = {
        'relu': np.maximum(x, 0),
        'relu_squared': np.maximum(x, 0) ** 2,
        'gelu': 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        'gelu_exact': 0.5 * x * (1 + erf(x / math.sqrt(2))),
        'quick_gelu': x / (1 + np.exp(-1.702 * x)),
        'silu': x / (1 + np.exp(-x)),
        'tanh': np.tanh(x),
    }
    assert expected.keys() == activations.ACTIVATIONS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(activations.ACTIVATIONS[name](jnp.float32(x)), values, atol=2e-6)
    gated = {'swiglu': 'silu', 'geglu': 'gelu'}
    assert gated.keys() == activations.GATED_ACTIVATIONS.keys()
    for name, inner in gated.items():
        given = activations.GATED_ACTIVATIONS[name](jnp.float32(x), jnp.float32(x + 1))
        np.testing.assert_allclose(given, expected[inner] * (x + 1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', activations.ACTIVATIONS)
def test_gradients_of_activations(name, dtype):
    """Against central differences in float64, of the function at what x is in its dtype."""
    x = jnp.asarray(np.linspace(-4, 4, 40), dtype)
    given = jax.grad(lambda x: activations.ACTIVATIONS[name](x).astype(jnp.float32).sum())(x)
    assert given.dtype == dtype
    wide = np.float64(x)
    shapes = {
        'relu': lambda x: np.maximum(x, 0),
        'relu_squared': lambda x: np.maximum(x, 0) ** 2,
        'gelu': lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        'gelu_exact': lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        'quick_gelu': lambda x: x / (1 + np.exp(-1.702 * x)),
        'silu': lambda x: x / (1 + np.exp(-x)),
        'tanh': np.tanh,
    }
    expected = (shapes[name](wide + 1e-5) - shapes[name](wide - 1e-5)) / 2e-5
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(np.float64(given), expected, rtol=tolerance, atol=tolerance)


def test_soft_cap():
    x = np.linspace(-100, 100, 21)
    np.testing.assert_allclose(
        layers.soft_cap(jnp.float32(x), 30.0), 30 * np.tanh(x / 30), rtol=1e-5
    )
    assert layers.soft_cap(x, None) is x


def test_linear_and_norm_modules():
    x = jnp.asarray(normal(2, 3, 8), jnp.bfloat16)
    linear = layers.Linear(5)
    params = linear.init(jax.random.key(0), x)['params']
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
        'kernel': ((8, 5), jnp.float32),
        'bias': ((5,), jnp.float32),
    }
    params['bias'] = jnp.full(5, 2.0)
    y = linear.apply({'params': params}, x)
    assert y.dtype == jnp.bfloat16
    expected = np.asarray(x, np.float64) @ np.asarray(params['kernel'], np.float64) + 2
    np.testing.assert_allclose(np.float64(y), expected, rtol=2e-2, atol=2e-2)
    names = lambda *a: set(layers.Norm(*a).init(jax.random.key(0), x)['params'])
    assert names('rms_norm', 1e-5) == {'scale'}
    assert names('layer_norm', 1e-5) == {'scale', 'bias'}
    assert names('layer_norm', 1e-5, False) == {'scale'}
