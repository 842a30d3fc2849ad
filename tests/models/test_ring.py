"""Ring attention over simulated devices against `attention.attend` on whole sequences."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodels import errors, sharding
from bigmodels.models.parts import attention
from bigmodels.models.parts.attention import balanced, ring
from tests import programs

B, L, H, N, K = 2, 32, 4, 2, 8
rng = np.random.default_rng(0)
SEGMENTS = np.sort(rng.integers(0, 4, (B, L)), axis=1)
# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def mesh(**shape):
    shape = sharding.MeshShape(**{'data': 1} | shape)
    count = np.prod([getattr(shape, axis) for axis in sharding.AXES])
    return sharding.make_mesh(shape, jax.devices()[:count])


def inputs(kv_heads=N, dtype=jnp.float32):
    """query, key, value, and the gradient of the output."""
    heads = (H, kv_heads, kv_heads, H)
    return [jnp.asarray(rng.normal(size=(B, L, h, K)), dtype) for h in heads]


def with_gradients(attend):
    def run(q, k, v, g):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    return jit(run)


def whole(**options):
    return functools.partial(attention.attend, implementation='xla', **options)


def in_ring(segment_ids=None, **options):
    """The ring with arrays in natural order."""

    def attend(*arrays):
        q, k, v, ids = jax.tree.map(balanced.to_balanced, (*arrays, segment_ids))
        out = ring.ring_attend(q, k, v, segment_ids=ids, **options)
        return balanced.from_balanced(out)

    return attend


def check(arrays, shape, tolerance=3e-6, **options):
    if 'segment_ids' in options:
        options['segment_ids'] = jnp.asarray(options['segment_ids'])
    expected = with_gradients(whole(**options))(*arrays)
    with jax.set_mesh(mesh(**shape)):
        given = with_gradients(in_ring(**options))(*arrays)
    for name, one, other in zip(('out', 'dq', 'dk', 'dv'), given, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = np.float64(one), np.float64(other)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize('size', [2, 4, 8])
def test_each_device_holds_an_early_and_a_late_half(size):
    x = np.arange(B * L * 3).reshape(B, L, 3)
    for array in (x, x[..., 0], x[:1], np.float32(x)):
        with jax.set_mesh(mesh(sequence=size, data=8 // size)):
            moved = jax.jit(balanced.to_balanced)(array)
            np.testing.assert_array_equal(jax.jit(balanced.from_balanced)(moved), array)
        halves = np.split(array, 2 * size, axis=1)
        order = [half for i in range(size) for half in (i, 2 * size - 1 - i)]
        np.testing.assert_array_equal(moved, np.concatenate([halves[i] for i in order], axis=1))
        assert moved.addressable_shards[0].data.shape[1] == L // size


def test_gradients_of_the_layout_are_the_inverse():
    x, g = (jnp.float32(rng.normal(size=(B, L, 3))) for _ in range(2))
    with jax.set_mesh(mesh(sequence=4, tensor=2)):
        for move, back in (
            (balanced.to_balanced, balanced.from_balanced),
            (balanced.from_balanced, balanced.to_balanced),
        ):
            pulled = jax.jit(lambda x, g, move=move: jax.vjp(move, x)[1](g)[0])(x, g)
            np.testing.assert_array_equal(pulled, jax.jit(back)(g))


def test_whole_sequences_stay_as_they_are():
    x = jnp.arange(6).reshape(1, 6)
    assert balanced.to_balanced(x) is x  # without a mesh
    with jax.set_mesh(mesh(data=8)):
        np.testing.assert_array_equal(balanced.from_balanced(x), x)


MESHES = [
    dict(sequence=2, data=2, tensor=2),
    dict(sequence=4, tensor=2),
    dict(sequence=8),
]
OPTIONS = [
    dict(causal=True),
    dict(causal=False),
    dict(causal=True, window=5),
    dict(causal=False, window=9, softcap=2.0),
    dict(causal=True, segment_ids=SEGMENTS),
    dict(causal=False, segment_ids=SEGMENTS),
    dict(causal=True, window=9, segment_ids=SEGMENTS, softcap=2.0),
]


@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '-'.join(o))
@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_values_and_gradients(shape, options):
    check(inputs(), shape, **options)


def test_one_device_is_a_ring():
    check(inputs(), dict(sequence=1), causal=True, window=9, segment_ids=SEGMENTS)


@pytest.mark.parametrize('kv_heads', [1, 4])
def test_heads_are_split_only_where_both_kinds_divide(kv_heads):
    check(inputs(kv_heads), dict(sequence=2, tensor=4), causal=True, window=11)


def test_rows_that_do_not_divide_are_not_split():
    check([x[:1] for x in inputs()], dict(sequence=2, fsdp=2, data=2), causal=True)


def test_halves_in_several_blocks(monkeypatch):
    """Blocks of the largest divisor of the 8 keys of a half: 2."""
    monkeypatch.setattr(ring, 'BLOCK', 3)
    check(inputs(), dict(sequence=2), causal=True, window=9, segment_ids=SEGMENTS, softcap=2.0)


def test_low_precision():
    check(inputs(dtype=jnp.bfloat16), dict(sequence=4), 4e-2, causal=True)


def _dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, 'eqns')):
            if hasattr(value, 'eqns') or hasattr(value, 'jaxpr'):
                yield from _dots(getattr(value, 'jaxpr', value))


def test_products_have_narrow_operands_and_wide_sums():
    with jax.set_mesh(mesh(sequence=2)):
        attend = functools.partial(ring.ring_attend, softcap=3.0)
        jaxpr = with_gradients(attend).trace(*inputs(dtype=jnp.bfloat16)).jaxpr
    dots = list(_dots(jaxpr.jaxpr))
    # Pairs of halves: three of the own keys, two in the loop, two of the last; 2 and 5 products.
    assert len(dots) == 7 * (2 + 5)
    for dot in dots:
        assert {x.aval.dtype for x in dot.invars} == {jnp.dtype(jnp.bfloat16)}
        assert dot.outvars[0].aval.dtype == jnp.float32


def test_large_scores_do_not_overflow():
    q, k, v, g = inputs()
    check((30 * q, 30 * k, v, g), dict(sequence=4), 1e-3, causal=True)


def test_fully_masked_rows_are_finite():
    with jax.set_mesh(mesh(sequence=4)):
        results = with_gradients(in_ring(causal=True, window=0))(*inputs())
    assert all(jnp.isfinite(x).all() for x in results)


def compiled(size, length, gradients=False, causal=True):
    """The program of one row and head in the balanced layout over `size` devices."""
    on = mesh(sequence=size)
    x = jax.ShapeDtypeStruct(
        (1, length, 1, K), jnp.float32, sharding=NamedSharding(on, P(None, 'sequence'))
    )
    attend = functools.partial(ring.ring_attend, causal=causal)
    if gradients:
        attend = jax.grad(lambda *a: ring.ring_attend(*a).sum(), argnums=(0, 1, 2))
    with jax.set_mesh(on):
        return jax.jit(attend).lower(x, x, x).compile()


@pytest.mark.parametrize('size', [2, 4])
def test_keys_go_round_by_permutes_only(size):
    """Keys and values are sent before the loop over devices and in it, in both passes.

    XLA takes the first sending of both passes for one. Gradients go round in the loop, to the
    last device and home.
    """
    loop = 2 * (size > 2)
    assert programs.collectives(compiled(size, 64)) == {'collective-permute': 2 + loop}
    gradients = programs.collectives(compiled(size, 64, gradients=True))
    assert gradients == {'collective-permute': 2 + loop + (2 * loop + 2 + 2)}


def test_the_layout_takes_two_permutes():
    x = jnp.zeros((B, L, 3))
    with jax.set_mesh(mesh(sequence=8)):
        for move in (balanced.to_balanced, balanced.from_balanced):
            program = jax.jit(move, out_shardings=P(None, 'sequence')).lower(x).compile()
            assert programs.collectives(program) == {'collective-permute': 2}


@pytest.mark.parametrize('size', [2, 4, 8])
@pytest.mark.parametrize('gradients', [False, True])
def test_causal_work_is_divided(size, gradients):
    """On each device: 3 pairs of halves of its own keys, then 2 for each other device.

    XLA counts the body of the loop over devices once, and its last turn is outside of it.
    """
    flops = lambda size: compiled(size, 512, gradients).cost_analysis()['flops']
    pair = flops(1) / 3 / size**2
    counted = 3 + 2 + 2 * (size > 2)
    np.testing.assert_allclose(flops(size) / pair, counted, rtol=0.15)
    trips = re.findall(r'known_trip_count[^0-9]*(\d+)', compiled(size, 512).as_text())
    assert trips == ([str(size - 2)] if size > 3 else [])


@pytest.mark.parametrize('gradients', [False, True])
def test_memory_is_linear_in_the_part_of_a_device(gradients, monkeypatch):
    monkeypatch.setattr(ring, 'BLOCK', 64)
    needed = lambda size, length: (
        compiled(size, length, gradients).memory_analysis().temp_size_in_bytes
    )
    one = needed(1, 2048)
    for size in (2, 4, 8):
        assert needed(size, 2048) < 2 * one / size
    assert needed(4, 4096) < 2.2 * needed(4, 2048)


def test_lengths_that_do_not_divide():
    with jax.set_mesh(mesh(sequence=8)):
        with pytest.raises(errors.UserError, match='must be a multiple of 16'):
            balanced.to_balanced(jnp.zeros((1, 24)))
        x = jnp.zeros((1, 24, 1, 8))
        with pytest.raises(errors.UserError, match='A sequence of 24 tokens'):
            ring.ring_attend(x, x, x)
