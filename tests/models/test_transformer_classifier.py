"""A bidirectional Transformer against a NumPy forward pass; padding that changes nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, sharding, trees
from bigmodels.models.transformer import Transformer
from bigmodels.models.transformer_classifier import TransformerClassifier

V, L, D, HEADS = 31, 9, 16, 4
ENCODER = dict(
    vocab_size=V, num_layers=2, embed_dim=D, num_heads=HEADS, max_length=16, causal=False,
    positions='learned',
)  # fmt: skip
rng = np.random.default_rng(0)
tokens = rng.integers(0, V, (2, L))


def randomized(model):
    """Params in which no bias is 0 and no scale is 1, so that each of them counts."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
    values = np.random.default_rng(1)
    return trees.map_named(
        lambda name, leaf: jnp.float32(
            name.endswith('scale') + 0.2 * values.normal(size=leaf.shape)
        ),
        shapes,
    )


def numpy_encoder(params, inputs):
    """The states of one sequence; each token attends to all, without any mask; float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    linear = lambda x, w: x @ w['kernel'] + w['bias']

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w['scale'] + w['bias']

    x = p['embed']['embedding'][inputs] + p['position_embed']['embedding'][: len(inputs)]
    for i in range(2):
        w = p[f'layers_{i}']
        y, a = norm(x, w['attention_norm']), w['attention']
        q, k, v = (
            np.split(linear(y, a[name]), HEADS, axis=-1) for name in ('query', 'key', 'value')
        )
        heads = []
        for h in range(HEADS):
            scores = np.exp(q[h] @ k[h].T / math.sqrt(D / HEADS))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[h])
        x = x + linear(np.concatenate(heads, -1), a['out'])
        up = linear(norm(x, w['mlp_norm']), w['mlp']['up'])
        hidden = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = x + linear(hidden, w['mlp']['down'])
    return norm(x, p['final_norm'])


def test_without_a_causal_mask_attention_is_bidirectional():
    model = Transformer(**ENCODER)
    params = randomized(model)
    given = model.apply({'params': params}, tokens, return_hidden=True)
    for row, inputs in zip(given, tokens, strict=True):
        np.testing.assert_allclose(row, numpy_encoder(params, inputs), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('pool', ['mean', 'max'])
def test_classes_are_a_linear_function_of_the_pooled_states(pool):
    model = TransformerClassifier(num_classes=3, encoder=ENCODER, pool=pool)
    params = randomized(model)
    given = model.apply({'params': params}, tokens)
    for row, inputs in zip(given, tokens, strict=True):
        states = numpy_encoder(params['encoder'], inputs)
        pooled = states.mean(0) if pool == 'mean' else states.max(0)
        expected = pooled @ params['head']['kernel'] + params['head']['bias']
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    'settings',
    [dict(attention='xla'), dict(attention='blockwise', positions='rotary', scan_layers=True)],
)
def test_padding_changes_nothing(settings):
    model = TransformerClassifier(num_classes=3, encoder=ENCODER | settings)
    params = randomized(model)
    alone = model.apply({'params': params}, tokens)
    padded = np.pad(tokens, ((0, 0), (0, 6)), constant_values=5)
    segment_ids = jnp.asarray((np.arange(L + 6) < L) * np.ones((2, 1), int))
    given = model.apply({'params': params}, padded, segment_ids=segment_ids)
    np.testing.assert_allclose(given, alone, rtol=1e-5, atol=1e-5)
    unmasked = model.apply({'params': params}, padded)
    assert abs(unmasked - alone).max() > 1e-3


def test_sharding_rules_cover_the_encoder_and_the_head():
    model = TransformerClassifier(num_classes=4, encoder=ENCODER)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
    mesh = sharding.make_mesh(sharding.MeshShape(data=2, fsdp=2, tensor=2))
    specs, notes = sharding.param_specs(shapes, model.sharding_rules, mesh)
    assert tuple(specs['encoder']['layers_0']['mlp']['up']['kernel']) == ('fsdp', 'tensor')
    assert tuple(specs['encoder']['position_embed']['embedding']) == (None, 'fsdp')
    assert tuple(specs['head']['kernel']) == ('fsdp', None)
    assert all('31 does not divide' in note for note in notes)


def test_mistakes():
    make = lambda **encoder: TransformerClassifier(num_classes=2, encoder=ENCODER | encoder)
    with pytest.raises(errors.UserError, match='encoder.tie_embeddings must be True'):
        make(tie_embeddings=False)
    with pytest.raises(errors.UserError, match="key in config.model.encoder 'layers'"):
        make(layers=3)
    with pytest.raises(errors.UserError, match='17 tokens are longer than .*max_length = 16'):
        jax.eval_shape(make().init, jax.random.key(0), jnp.zeros((1, 17), int))
