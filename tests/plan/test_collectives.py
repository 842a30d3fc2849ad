"""Collectives of compiled programs: known kinds, axes, counts and bytes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bigmodels import sharding
from bigmodels.plan import collectives, hlo

MESH = {'data': 2, 'fsdp': 2, 'tensor': 2}


def found_in(function, shape, spec, out_spec, **sizes):
    """The collectives of a function that runs on each device of a mesh."""
    mesh = sharding.make_mesh(sharding.MeshShape(**sizes))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=out_spec, check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()
    return collectives.summary(collectives.collectives(hlo.parse(text), dict(mesh.shape)))


P = PartitionSpec
CASES = {
    # Of an array [64, 128] split over fsdp into [16, 128]: 4 devices, 8 kB each.
    'all-gather': (lambda x: jax.lax.all_gather(x, 'fsdp', tiled=True), P(), 32768, 32768 * 3 / 4),
    'all-reduce': (lambda x: jax.lax.psum(x, 'fsdp'), P(), 8192, 2 * 8192 * 3 / 4),
    'reduce-scatter': (
        lambda x: jax.lax.psum_scatter(x, 'fsdp', tiled=True),
        P('fsdp'),
        8192,
        8192 * 3 / 4,
    ),
    'all-to-all': (
        lambda x: jax.lax.all_to_all(x, 'fsdp', 1, 0, tiled=True),
        P('fsdp'),
        8192,
        8192 * 3 / 4,
    ),
    'collective-permute': (
        lambda x: jax.lax.ppermute(x, 'fsdp', [(i, (i + 1) % 4) for i in range(4)]),
        P('fsdp'),
        8192,
        8192,
    ),
}


@pytest.mark.parametrize('kind', CASES)
def test_kinds_axes_and_bytes(kind):
    function, out_spec, size, sent = CASES[kind]
    found = found_in(function, (64, 128), P('fsdp'), out_spec, data=2, fsdp=4)
    assert found == [(kind, 'fsdp', 1, size, sent)]


def test_collectives_of_a_loop_count_as_often_as_it_turns():
    def function(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x, 'tensor') / 2, None), x, None, 5)[0]

    found = found_in(function, (16, 16), P(), P(), data=2, tensor=4)
    assert found == [('all-reduce', 'tensor', 5, 5 * 1024, 5 * 2 * 1024 * 3 / 4)]


def test_several_axes_at_once():
    total = functools.partial(jax.lax.psum, axis_name=('data', 'tensor'))
    found = found_in(total, (16, 16), P(), P(), data=2, fsdp=2, tensor=2)
    assert found == [('all-reduce', 'data+tensor', 1, 1024, 2 * 1024 * 3 / 4)]


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('replica_groups={{0,1},{2,3},{4,5},{6,7}}', 'tensor'),
        ('replica_groups=[4,2]<=[8]', 'tensor'),
        ('replica_groups=[2,4]<=[2,2,2]T(1,0,2)', 'data+tensor'),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 'fsdp+tensor'),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", 'data+fsdp'),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", 'tensor'),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", 'fsdp'),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 'data'),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 'data+tensor'),
        ('replica_groups={}', 'data+fsdp+tensor'),
        ('source_target_pairs={{0,2},{2,0},{1,3},{3,1}}', 'fsdp'),
    ],
)
def test_every_way_of_writing_groups(text, expected):
    found = collectives.replica_groups(f'channel_id=1, {text}, dimensions={{0}}', 8)
    assert collectives.axes_of(found, MESH) == expected
    if 'pairs' not in text:  # every device is in one group
        assert sorted(found.ravel().tolist()) == list(range(8))


def test_a_collective_split_over_fusions_counts_once():
    text = """HloModule m

%first (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
}

%second (q: f32[4]) -> f32[8] {
  %q = f32[4]{0} parameter(0)
  ROOT %h = f32[8]{0} all-gather(%q), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main (x: f32[4]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  %begin = f32[8]{0} fusion(%x), kind=kCustom, calls=%first
  ROOT %end = f32[8]{0} fusion(%x), kind=kCustom, calls=%second
}
"""
    [one] = collectives.collectives(hlo.parse(text), MESH)
    assert (one.kind, one.axes, one.size, one.sent) == ('all-gather', 'tensor', 32, 16)
    np.testing.assert_array_equal(one.groups, [[0, 1], [2, 3], [4, 5], [6, 7]])


def test_an_asynchronous_start_is_of_its_result():
    text = """HloModule m

ENTRY %main (x: f32[4]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  %s = (f32[4]{0}, f32[8]{0}) all-gather-start(%x), channel_id=1, replica_groups=[4,2]<=[8]
  ROOT %d = f32[8]{0} all-gather-done(%s)
}
"""
    [one] = collectives.collectives(hlo.parse(text), MESH)
    assert one.size == 32
