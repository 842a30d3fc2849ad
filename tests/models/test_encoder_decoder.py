"""The encoder-decoder against a NumPy forward pass, a published size, and itself in other forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, sharding, trees
from bigmodels.models import encoder_decoder
from bigmodels.models.encoder_decoder import EncoderDecoder

V, B, S, L, D = 23, 3, 7, 5, 16
# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
rng = np.random.default_rng(0)
SOURCES, TARGETS = rng.integers(0, V, (B, S)), rng.integers(0, V, (B, L))


def make(**changes) -> EncoderDecoder:
    settings = dict(vocab_size=V, num_layers=2, embed_dim=D, num_heads=4, max_length=16)
    return EncoderDecoder(**settings | changes)


def randomized(model):
    """Params in which no bias is 0 and no scale is 1, so that each of them counts."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCES, TARGETS)['params']
    rng = np.random.default_rng(1)
    return trees.map_named(
        lambda name, leaf: jnp.float32(name.endswith('scale') + 0.3 * rng.normal(size=leaf.shape)),
        shapes,
    )


@functools.cache
def model_and_params():
    model = make()
    return model, randomized(model)


@functools.cache
def applied(model, method):
    return jit(lambda p, a, o: model.apply({'params': p}, *a, method=method, **o))


def run(model, params, *arguments, method=None, **options):
    return applied(model, method)(params, arguments, options)


def numpy_forward(params, source, target, heads):
    """Vaswani et al. 2017 with learned positions, for one pair; float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w['scale'] + w['bias']

    linear = lambda x, w: x @ w['kernel'] + w['bias']

    def attention(x, seen, w, causal):
        q, k, v = (
            np.split(linear(states, w[name]), heads, -1)
            for states, name in ((x, 'query'), (seen, 'key'), (seen, 'value'))
        )
        out = []
        for h in range(heads):
            scores = q[h] @ k[h].T / math.sqrt(q[h].shape[-1])
            if causal:
                scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[h])
        return linear(np.concatenate(out, -1), w['out'])

    def stack(tokens, w, causal, seen=None):
        x = p['embed']['embedding'][tokens] * math.sqrt(D)
        x = x + w['position_embed']['embedding'][: len(tokens)]
        for i in range(2):
            b = w[f'layers_{i}']
            x = norm(x + attention(x, x, b['attention'], causal), b['attention_post_norm'])
            if seen is not None:
                y = attention(x, seen, b['cross_attention'], causal=False)
                x = norm(x + y, b['cross_attention_post_norm'])
            hidden = np.maximum(linear(x, b['mlp']['up']), 0)
            x = norm(x + linear(hidden, b['mlp']['down']), b['mlp_post_norm'])
        return norm(x, w['final_norm'])

    encoded = stack(source, p['encoder'], causal=False)
    return stack(target, p['decoder'], True, encoded) @ p['embed']['embedding'].T


def test_forward_is_the_published_one():
    model = make(
        positions='learned', norm_placement='post', activation='relu', scale_embeddings=True
    )
    params = randomized(model)
    given = run(model, params, SOURCES, TARGETS)
    assert given.dtype == jnp.float32
    for row, source, target in zip(given, SOURCES, TARGETS, strict=True):
        expected = numpy_forward(params, source, target, model.num_heads)
        np.testing.assert_allclose(row, expected, rtol=2e-4, atol=2e-4)


def test_the_size_of_t5_small():
    """60,506,624 (Raffel et al. 2020), 512 of them its relative positions."""
    model = EncoderDecoder(
        vocab_size=32128, num_layers=6, embed_dim=512, num_heads=8, mlp_dim=2048, norm='rms_norm',
        positions='relative', activation='relu', use_bias=False, scan_layers=True,
    )  # fmt: skip
    shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCES, TARGETS)
    assert trees.count(shapes) == 60_506_624


@pytest.mark.parametrize('positions', ['rotary', 'learned'])
def test_padding_of_sources_and_targets_changes_nothing(positions):
    model = make(positions=positions)
    params = randomized(model)
    lengths = np.array([S, 3, 1])
    ones = (np.arange(S + 4) < lengths[:, None]).astype(np.int32)
    noise = rng.integers(0, V, (B, S + 4))
    sources = np.where(ones, np.pad(SOURCES, ((0, 0), (0, 4))), noise)
    targets = np.concatenate([TARGETS, noise[:, :2]], 1)
    padded = run(model, params, sources, targets, input_segment_ids=ones)
    for row, source, target, length in zip(padded, SOURCES, TARGETS, lengths, strict=True):
        [alone] = run(model, params, source[None, :length], target[None])
        np.testing.assert_allclose(row[:L], alone, rtol=1e-4, atol=1e-4)


def test_packed_pairs_are_those_apart():
    model, params = model_and_params()
    repeat = lambda length: np.repeat(np.arange(1, B + 1), length)[None]
    logits = run(
        model,
        params,
        SOURCES.reshape(1, -1),
        TARGETS.reshape(1, -1),
        input_positions=np.tile(np.arange(S), B)[None],
        input_segment_ids=repeat(S),
        positions=np.tile(np.arange(L), B)[None],
        segment_ids=repeat(L),
    )
    expected = run(model, params, SOURCES, TARGETS)
    np.testing.assert_allclose(logits.reshape(B, L, V), expected, rtol=1e-4, atol=1e-4)


RELATIVE = dict(positions='relative', relative_buckets=4, relative_distance=4)


@pytest.mark.parametrize('settings', [{}, dict(num_kv_heads=2, qk_norm=True, **RELATIVE)])
def test_cached_is_uncached(settings):
    """Two hypotheses of each source, which share its keys and values, token by token."""
    model = make(**settings)
    params = randomized(model)
    ones = (np.arange(S) < np.array([S, 3, 1])[:, None]).astype(np.int32)
    targets = rng.integers(0, V, (2 * B, L))
    expected = run(
        model,
        params,
        np.repeat(SOURCES, 2, axis=0),
        targets,
        input_segment_ids=np.repeat(ones, 2, axis=0),
    )
    decode = functools.partial(run, model, params, method='decode')
    context = run(model, params, SOURCES, segment_ids=ones, method='encode')
    cache = model.init_cache(2 * B, L + 1)
    for i in range(L):
        logits, cache = decode(
            targets[:, i : i + 1], context, positions=np.full((2 * B, 1), i), cache=cache
        )
        np.testing.assert_allclose(logits[:, 0], expected[:, i], rtol=1e-4, atol=1e-4)
        context = context._replace(states=None)
        assert cache[0]['context']['key'].shape[0] == B


def loss(model, params, **options):
    return jnp.sin(model.apply({'params': params}, SOURCES, TARGETS, **options)).mean()


def test_scanned_is_unrolled():
    model = make(scan_layers=True, remat='full')
    params = randomized(model)
    plain, unrolled = encoder_decoder.unscanned(model.clone(remat='none'), params)
    assert plain == make()
    value, grads = jit(jax.value_and_grad(functools.partial(loss, model)))(params)
    other, other_grads = jit(jax.value_and_grad(functools.partial(loss, plain)))(unrolled)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    grads = encoder_decoder.unscanned(model, grads)[1]
    assert jax.tree.structure(grads) == jax.tree.structure(other_grads)
    for one, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)
    assert encoder_decoder.unscanned(plain, unrolled)[1] is unrolled


def test_flops_by_hand():
    model = make(use_bias=False, num_encoder_layers=3, mlp_dim=32)
    params = jax.eval_shape(model.init, jax.random.key(0), SOURCES, TARGETS)['params']
    encoder = 3 * (4 * D * D + 2 * D * 32 + 2 * D) + D
    context = 2 * 2 * D * D  # keys and values of the sources, in each of two layers
    decoder = 2 * (6 * D * D + 2 * D * 32 + 3 * D) + D + V * D
    # Two products of 2 * D operations a visible key, and twice that in the backward pass.
    seen = 3 * S * S + 2 * L * L / 2 + 2 * L * S
    expected = 6 * ((encoder + context) * S + decoder * L) + 12 * D * seen
    assert model.flops_per_row(params, S, L) == expected


@pytest.mark.parametrize('field', [dict(sliding_window=4), dict(causal=False)])
def test_settings_without_a_meaning_are_refused(field):
    with pytest.raises(errors.UserError, match='is not for an encoder-decoder'):
        make(**field)


def test_a_length_of_sources_is_for_sound():
    with pytest.raises(errors.UserError, match='max_source_length is for sound'):
        make(max_source_length=8)


@pytest.mark.parametrize('axis', ['sequence', 'stage'])
def test_meshes_that_split_sequences_or_layers_are_refused(axis):
    model, params = model_and_params()
    shape = sharding.MeshShape(data=1, **{axis: 2})
    with (
        jax.set_mesh(sharding.make_mesh(shape, jax.devices()[:2])),
        pytest.raises(errors.UserError, match=f'config.mesh.{axis} = 2'),
    ):
        jax.eval_shape(functools.partial(loss, model), params)
