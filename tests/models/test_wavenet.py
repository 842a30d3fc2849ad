"""WaveNet against its definition written out, what it sees, and its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.models.wavenet import WaveNet

ROWS, LENGTH = 2, 20
FIELDS = dict(num_classes=3, num_speakers=2, num_layers=5, cycle=3, embed_dim=6, skip_dim=7)
MODEL = WaveNet(**FIELDS, num_places=4, num_levels=16)


@pytest.fixture(scope='module')
def given():
    """Parameters, none of them zero, and arguments."""
    rng = np.random.default_rng(0)
    arguments = (
        jnp.asarray(rng.integers(16, size=(ROWS, LENGTH))),
        jnp.array([2, 0]),
        jnp.array([1, 0]),
        jnp.asarray(np.sort(rng.uniform(0, 1, (ROWS, LENGTH)), axis=1), jnp.float32),
    )
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *arguments)['params']
    params = jax.tree.map(lambda s: jnp.float32(rng.normal(size=s.shape) / 2), shapes)
    return params, arguments, jax.jit(MODEL.apply)({'params': params}, *arguments)


def written_out(params, codes, label, speaker, progress):
    """Logits [T, V] of one recording, in float64, sample by sample."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    linear = lambda name, x: x @ name['kernel'] + name['bias']
    told = p['class_embed']['embedding'][label].reshape(4, 6)
    told = np.tanh(linear(p['condition'], told + p['speaker_embed']['embedding'][speaker]))
    knots = np.linspace(0, 1, 4)
    condition = np.stack([np.interp(progress, knots, column) for column in told.T], axis=-1)
    x, total = p['embed']['embedding'][codes], np.zeros((len(codes), 7))
    for i, dilation in enumerate((1, 2, 4, 1, 2)):
        layer, y = p[f'layers_{i}'], np.zeros_like(x)
        for t in range(len(x)):
            before = x[t - dilation] if t >= dilation else np.zeros(6)
            gate, value = np.split(
                linear(layer['gate'], np.concatenate([before, x[t], condition[t]])), 2
            )
            y[t] = np.tanh(value) / (1 + np.exp(-gate))
        total += linear(layer['skip'], y)
        x = x + linear(layer['out'], y) if i < 4 else None
    hidden = linear(p['head_0'], np.maximum(total, 0))
    return linear(p['head_1'], np.maximum(hidden, 0))


def test_it_is_the_definition(given):
    params, arguments, found = given
    for row in range(ROWS):
        expected = written_out(params, *(np.asarray(x)[row] for x in arguments))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_sample_sees_its_receptive_field_and_none_after_it(given):
    params, (codes, *rest), before = given
    assert MODEL.receptive_field == 11
    changed = codes.at[:, 5].add(1) % 16
    differs = jnp.abs(MODEL.apply({'params': params}, changed, *rest) - before) > 1e-4
    expected = (np.arange(LENGTH) >= 5) & (np.arange(LENGTH) < 5 + 11)
    np.testing.assert_array_equal(differs.any(-1), np.stack([expected] * ROWS))


def test_cached_is_uncached(given):
    params, (codes, labels, speakers, progress), expected = given
    step = jax.jit(MODEL.apply)
    cache = MODEL.init_cache(ROWS)
    assert [slots.shape[0] for slots in cache.inputs] == [1, 2, 4, 1, 2]
    for t in range(LENGTH):
        one = codes[:, t : t + 1], labels, speakers, progress[:, t : t + 1]
        logits, cache = step({'params': params}, *one, cache=cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], rtol=1e-5, atol=1e-5)
    assert cache.step == LENGTH


@pytest.mark.parametrize(
    ('change', 'message'),
    [(dict(num_layers=0), 'num_layers = 0'), (dict(num_places=1), 'num_places = 1 .* least 2')],
)
def test_what_cannot_be_is_said(change, message):
    with pytest.raises(errors.UserError, match=message):
        WaveNet(**FIELDS | change)
