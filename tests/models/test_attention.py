"""Every implementation of attention against a hand-differentiated one in float64."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, sharding
from bigmodels.models.parts import attention
from bigmodels.models.parts.attention import plain

B, L, H, K = 2, 13, 4, 8
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 13])


def reference(q, k, v, g, *, causal, window=None, segment_ids=None, slots=None, softcap=None):
    """out, dq, dk, dv of softmax attention, one head and one row at a time."""
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    group = q.shape[2] // k.shape[2]
    for b, h, i in itertools.product(range(q.shape[0]), range(q.shape[2]), range(q.shape[1])):
        slot = i if slots is None else slots[b, i]
        seen = [
            j
            for j in range(k.shape[1])
            if (not causal or j <= slot)
            and (window is None or j > slot - window)
            and (segment_ids is None or segment_ids[b, i] == segment_ids[b, j])
        ]
        n = h // group
        scores = k[b, seen, n] @ q[b, i, h] / math.sqrt(q.shape[3])
        slope = np.ones_like(scores)
        if softcap is not None:
            slope = 1 - np.tanh(scores / softcap) ** 2
            scores = softcap * np.tanh(scores / softcap)
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, i, h] = p @ v[b, seen, n]
        dv[b, seen, n] += p[:, None] * g[b, i, h]
        dp = v[b, seen, n] @ g[b, i, h]
        ds = p * (dp - p @ dp) * slope / math.sqrt(q.shape[3])
        dq[b, i, h] = ds @ k[b, seen, n]
        dk[b, seen, n] += ds[:, None] * q[b, i, h]
    return out, dq, dk, dv


def inputs(kv_heads, num_queries=L, num_keys=L):
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(B, length, heads, K))
        for length, heads in (
            (num_queries, H),
            (num_keys, kv_heads),
            (num_keys, kv_heads),
            (num_queries, H),
        )
    ]


def check(arrays, tolerance=2e-5, dtype=jnp.float32, implementation='xla', **options):
    q, k, v, g = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in arrays)
    expected = reference(q, k, v, g, **options)
    slots = options.pop('slots', None)
    if slots is not None:
        options['query_slots'] = jnp.asarray(slots)
    if options.get('segment_ids') is not None:
        options['segment_ids'] = jnp.asarray(options['segment_ids'])

    @jax.jit
    def both(q, k, v, g):
        attend = functools.partial(attention.attend, implementation=implementation, **options)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    given = both(*(jnp.asarray(x, dtype) for x in (q, k, v, g)))
    for name, one, other in zip(('out', 'dq', 'dk', 'dv'), given, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(
            np.float64(one), other, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that do not divide the length, so that padding is met."""
    small = functools.partial(attention._blockwise, block=4)
    monkeypatch.setattr(attention, '_blockwise', small)
    monkeypatch.setattr(plain, 'LEAST_ROWS', 4)


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """The arguments of the cuDNN path, given to the implementation of jax.nn that runs here."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(attention, 'choose_implementation', lambda *_, **__: ('cudnn', ''))
    monkeypatch.setattr(
        jax.nn,
        'dot_product_attention',
        lambda *a, implementation, **k: plain(*a, implementation='xla', **k),
    )


OPTIONS = [
    dict(causal=True),
    dict(causal=False),
    dict(causal=True, window=3),
    dict(causal=True, segment_ids=SEGMENTS),
    dict(causal=False, segment_ids=SEGMENTS),
    dict(causal=True, window=4, segment_ids=SEGMENTS, softcap=2.0),
]


@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '-'.join(o))
@pytest.mark.parametrize('implementation', ['xla', 'blockwise'])
def test_values_and_gradients(implementation, options, small_blocks):
    check(inputs(2), implementation=implementation, **options)


@pytest.mark.parametrize(('options', 'share'), [(dict(causal=True), 0.65), (dict(window=32), 0.4)])
def test_what_no_query_of_a_block_sees_is_left_out(options, share):
    """In the forward and in the backward pass."""
    x = jnp.zeros((1, 256, 2, K))

    def flops(**options):
        attend = functools.partial(attention.attend, implementation='xla', **options)
        step = jax.grad(lambda q, k, v: attend(q, k, v).sum(), (0, 1, 2))
        return jax.jit(step).lower(x, x, x).cost_analysis()['flops']

    assert flops(**options) < share * flops(causal=False)


@pytest.mark.parametrize(
    ('implementation', 'kv_heads'), [('xla', 1), ('xla', 4), ('blockwise', 1), ('blockwise', 4)]
)
def test_grouped_heads(implementation, kv_heads, small_blocks):
    check(inputs(kv_heads), implementation=implementation, causal=True, softcap=3.0)


@pytest.mark.parametrize('implementation', ['xla', 'blockwise'])
def test_cached_queries(implementation, small_blocks):
    """Each row is at another slot; slots not yet written are never seen."""
    q, k, v, g = inputs(2, num_queries=3, num_keys=11)
    slots = np.array([[4, 5, 6], [0, 1, 2]])
    check((q, k, v, g), implementation=implementation, causal=True, window=3, slots=slots)
    k[0, 7:] = k[1, 3:] = 1e4
    v[0, 7:] = v[1, 3:] = -1e4
    check((q, k, v, g), implementation=implementation, causal=True, slots=slots)


@pytest.mark.parametrize('options', OPTIONS[:-1], ids=lambda o: '-'.join(o))
def test_arguments_of_the_fused_kernel(options, cudnn_by_xla):
    check(inputs(2), implementation='cudnn', **options)


@pytest.mark.parametrize('implementation', ['xla', 'blockwise'])
def test_low_precision(implementation, small_blocks):
    check(inputs(2), 6e-2, jnp.bfloat16, implementation, causal=True, window=5)


def test_blocks_of_the_default_size_and_padding():
    q, k, v, _ = (jnp.float32(x[:1]) for x in inputs(2, 600, 600))
    segments = jnp.arange(600)[None] // 256
    run = lambda name: jax.jit(
        functools.partial(attention.attend, segment_ids=segments, implementation=name)
    )(q, k, v)
    np.testing.assert_allclose(run('blockwise'), run('xla'), atol=2e-6)


def test_large_scores_do_not_overflow(small_blocks):
    q, k, v, g = inputs(2)
    check((30 * q, 30 * k, v, g), 1e-2, implementation='blockwise', causal=True)


@pytest.mark.parametrize('implementation', ['xla', 'blockwise'])
def test_fully_masked_rows_are_finite(implementation, small_blocks):
    q, k, v, g = (jnp.float32(x) for x in inputs(2, 3, 9))
    slots = jnp.array([[-1, 0, 1], [-5, -1, 3]])

    def attend(q, k, v):
        return attention.attend(q, k, v, query_slots=slots, implementation=implementation)

    @jax.jit
    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    assert all(jnp.isfinite(x).all() for x in both(q, k, v))


def _temporary_bytes(implementation, length):
    def loss(q, k, v):
        return attention.attend(q, k, v, implementation=implementation).sum()

    shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_blockwise_memory_is_linear():
    short, long = (_temporary_bytes('blockwise', n) for n in (4096, 16384))
    assert long < 5 * short
    assert _temporary_bytes('xla', 16384) > 14 * _temporary_bytes('xla', 4096)
    assert 8 * long < _temporary_bytes('xla', 16384)


def test_what_runs_and_why():
    choose = attention.choose_implementation
    bf16, f32 = jnp.bfloat16, jnp.float32
    kernel, reason = choose('auto', f32, 64, 128)
    assert kernel == 'xla'
    assert 'it needs an NVIDIA GPU and this is cpu' in reason
    assert choose('auto', f32, 64, attention.BLOCKWISE_FROM)[0] == 'blockwise'
    assert choose('auto', f32, 64, attention.BLOCKWISE_FROM, cached=True)[0] == 'xla'
    assert choose('auto', bf16, 64, 8192, platform='gpu')[0] == 'cudnn'
    for blocked, words in (
        (dict(dtype=f32), 'not float32'),
        (dict(head_dim=160), 'not 160'),
        (dict(head_dim=12), 'not 12'),
        (dict(softcap=50.0), 'soft cap'),
        (dict(length=197), 'even lengths, not 197'),
        (dict(query_length=1), 'even lengths, not 1'),
        (dict(cached=True), 'cache'),
    ):
        settings = dict(dtype=bf16, head_dim=64, length=128) | blocked
        kernel, reason = choose('auto', platform='gpu', **settings)
        assert kernel == 'xla'
        assert words in reason
    assert choose('auto', f32, 64, 8192, softcap=50.0, platform='tpu')[0] == 'splash'
    for blocked, words in (
        (dict(dtype=jnp.float16), 'not float16'),
        (dict(length=100), 'multiples of 128, not 100'),
        (dict(cached=True), 'cache'),
    ):
        settings = dict(dtype=bf16, head_dim=64, length=128) | blocked
        kernel, reason = choose('auto', platform='tpu', **settings)
        assert kernel == 'xla'
        assert words in reason
    for name in ('xla', 'blockwise'):
        assert choose(name, f32, 64, 10)[0] == name
    # The same model decodes with a cache: that falls back and says so.
    assert choose('cudnn', bf16, 64, 128, cached=True, platform='gpu')[0] == 'xla'


@pytest.mark.parametrize(('name', 'needs'), [('cudnn', 'an NVIDIA GPU'), ('splash', 'a TPU')])
def test_an_explicit_kernel_that_cannot_run_is_an_error(name, needs):
    q, k, v, _ = (jnp.float32(x) for x in inputs(2))
    with pytest.raises(errors.UserError, match=f'"{name}" cannot run: it needs {needs}'):
        attention.attend(q, k, v, implementation=name)


def test_a_split_sequence_is_attended_in_a_ring():
    choose = functools.partial(
        attention.choose_implementation, dtype=jnp.float32, head_dim=8, length=32
    )
    assert choose('ring', cached=True)[0] == 'xla'
    assert choose('ring')[0] == 'xla'  # without a mesh, as where a model is initialised
    with jax.set_mesh(sharding.make_mesh(sharding.MeshShape(sequence=4))):
        assert choose('auto') == ('ring', 'auto: the sequence is split over 4 devices')
        assert choose('ring') == ('ring', 'asked for: the sequence is split over 4 devices')
        assert choose('auto', cached=True)[0] == 'xla'
        for name in ('xla', 'blockwise', 'cudnn', 'splash'):
            with pytest.raises(errors.UserError, match=f'"{name}" needs whole sequences'):
                choose(name)
        with pytest.raises(errors.UserError, match='must be a multiple of 8'):
            choose('auto', length=36)
    with (
        jax.set_mesh(sharding.make_mesh(sharding.MeshShape())),
        pytest.raises(errors.UserError, match=r'"ring" needs a sequence that is split'),
    ):
        choose('ring')


def test_remat_keeps_what_the_fused_kernel_says():
    """It has no name of ours: its primitive is known by the one that JAX gives it."""
    from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper

    for names, kept in (((attention.ATTENDED,), True), (('product',), False)):
        assert attention.keeps(*names)(_dot_product_attention_fwd_p_wrapper) == kept
    assert not attention.keeps(attention.ATTENDED)(jax.lax.dot_general_p)
