"""The TPU's kernel, interpreted, against `attention.attend`; and compiled, where libtpu is."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import sharding
from bigmodels.models.parts import attention
from bigmodels.models.parts.attention import splash
from bigmodels.models.parts.blocks import REMAT_POLICIES
from tests import tpus

B, L, H, N, K = 2, 256, 4, 2, 16
rng = np.random.default_rng(0)
SEGMENTS = np.sort(rng.integers(0, 4, (B, L)), axis=1).astype(np.int32)
# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def inputs(kv_heads=N, head_dim=K, dtype=jnp.float32, rows=B):
    return [
        jnp.asarray(rng.normal(size=(rows, L, heads, head_dim)), dtype)
        for heads in (H, kv_heads, kv_heads, H)
    ]


def with_gradients(attend, arrays):
    """The output and the gradients of query, key and value."""

    @jit
    def both(q, k, v, g):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    return [np.float32(x) for x in both(*arrays)]


def interpreted(**options):
    """The kernel in four blocks of queries and keys, without a TPU."""
    return functools.partial(splash.splash_attend, **options, block=128, interpret=True)


def check(arrays, tolerance=2e-5, **options):
    if 'segment_ids' in options:
        options['segment_ids'] = jnp.asarray(options['segment_ids'])
    given = with_gradients(interpreted(**options), arrays)
    plain = functools.partial(attention.attend, implementation='xla', **options)
    expected = with_gradients(plain, arrays)
    for name, one, other in zip(('out', 'dq', 'dk', 'dv'), given, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    'options',
    [
        dict(causal=True),
        dict(causal=False, segment_ids=SEGMENTS),
        dict(causal=True, window=3, softcap=2.0),
        dict(causal=False, window=200),
        dict(causal=True, window=130, segment_ids=SEGMENTS, softcap=2.0),
    ],
    ids=lambda o: '-'.join(o),
)
def test_values_and_gradients(options):
    check(inputs(), **options)


@pytest.mark.parametrize(('kv_heads', 'head_dim'), [(1, 8), (4, 136)])
def test_grouped_heads_and_head_sizes(kv_heads, head_dim):
    check(inputs(kv_heads, head_dim))


def test_low_precision():
    check(inputs(dtype=jnp.bfloat16), 6e-2, window=100)


@pytest.mark.parametrize(
    ('shape', 'kv_heads'),
    [(dict(data=2, tensor=2), 2), (dict(fsdp=2, tensor=4), 2), (dict(data=8), 1)],
    ids=['heads over tensor', 'heads that do not divide', 'rows that do not divide'],
)
def test_each_device_computes_its_rows_and_heads(shape, kv_heads):
    arrays = inputs(kv_heads)
    options = dict(segment_ids=jnp.asarray(SEGMENTS), window=100)
    expected = with_gradients(interpreted(**options), arrays)
    shape = sharding.MeshShape(**{'data': 1} | shape)
    count = shape.data * shape.fsdp * shape.tensor
    with jax.set_mesh(sharding.make_mesh(shape, jax.devices()[:count])):
        given = with_gradients(interpreted(**options), arrays)
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_tpu_compiles_it():
    """Heads of 64 need no padding, and nothing but the kernel's arrays has length L."""
    length, rows, heads = 4096, 2, 4  # of each device
    mesh = sharding.make_mesh(sharding.MeshShape(data=2, tensor=2), tpus.devices('v5e:2x2'))
    compiled = compiled_gradient(
        mesh, length, functools.partial(attention.attend, softcap=30.0, window=1000)
    )
    text = compiled.as_text()
    assert 'splash_mha_fwd' in text
    assert 'splash_mha_dkv' in text
    assert compiled.memory_analysis().temp_size_in_bytes < rows * heads * length * length


@pytest.mark.parametrize(('policy', 'times'), [('full', 2), ('attention', 1)])
def test_remat_of_all_but_attention_does_not_run_its_kernel_again(policy, times):
    """The backward pass needs the sum of the softmax too, which remat therefore keeps."""
    mesh = sharding.make_mesh(sharding.MeshShape(data=4), tpus.devices('v5e:2x2'))
    attend = jax.checkpoint(
        lambda q, k, v, segment_ids: attention.attend(q, k, v, segment_ids=segment_ids),
        policy=REMAT_POLICIES[policy],
    )
    text = compiled_gradient(mesh, 256, lambda *x, segment_ids: attend(*x, segment_ids)).as_text()
    assert len(re.findall(r'%splash_mha_fwd\S* = .*custom-call', text)) == times


def compiled_gradient(mesh, length, attend):
    """`attend` and its gradient, with segments, for bfloat16 and heads of 64."""
    placed = sharding.batch_sharding(mesh)
    query, key = (
        jax.ShapeDtypeStruct((4, length, heads, 64), jnp.bfloat16, sharding=placed)
        for heads in (8, 4)
    )
    ids = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=placed)

    def loss(q, k, v, segment_ids):
        return jnp.float32(attend(q, k, v, segment_ids=segment_ids)).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        return gradient.lower(query, key, key, ids).compile()
