"""A Transformer with a prefix: what sees what, and that a cache changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.models.transformer import Prefix, Transformer

MODEL = Transformer(vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, max_length=16)
BEFORE, LENGTH = 3, 7
LENGTHS = np.array([4, 2])


@pytest.fixture(scope='module')
def given():
    """Parameters, the states of a prefix, and tokens."""
    tokens = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, 16)
    states = jax.random.normal(jax.random.key(1), (2, BEFORE, 8))
    return jax.jit(MODEL.init)(jax.random.key(2), tokens), states, tokens


def test_a_prefix_sees_itself_whole_and_what_follows_is_causal(given):
    variables, states, tokens = given
    apply = jax.jit(lambda s, t: MODEL.apply(variables, t, prefix=Prefix(s, LENGTHS)))
    logits = apply(states, tokens)
    assert logits.shape == (2, LENGTH, 16)
    for place in range(BEFORE + LENGTH):
        s, t = states, tokens
        if place < BEFORE:
            s = s.at[:, place].multiply(-1)
        else:
            t = t.at[:, place - BEFORE].add(1) % 16
        differs = jnp.abs(apply(s, t) - logits).max(-1) > 1e-6
        for row, length in enumerate(LENGTHS):
            inside = place < BEFORE + length
            expected = [bool(inside or place <= BEFORE + i) for i in range(LENGTH)]
            assert differs[row].tolist() == expected


def test_a_prefix_of_everything_is_a_bidirectional_model(given):
    variables, _, tokens = given
    embedded = variables['params']['embed']['embedding'][tokens[:, :BEFORE]]
    whole = Prefix(embedded, jnp.full(2, LENGTH - BEFORE))
    found = MODEL.apply(variables, tokens[:, BEFORE:], prefix=whole)
    expected = MODEL.clone(causal=False).apply(variables, tokens)[:, BEFORE:]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_cached_is_uncached(given):
    """The prefixes, of different lengths, at once, and then token by token."""
    variables, states, tokens = given
    prefix = Prefix(states, LENGTHS)
    expected = MODEL.apply(variables, tokens, prefix=prefix)
    cache = MODEL.init_cache(2, BEFORE + LENGTH)
    logits, cache = MODEL.apply(variables, tokens[:, :4], prefix=prefix, cache=cache)
    np.testing.assert_allclose(logits[0], expected[0, :4], rtol=1e-5, atol=1e-5)
    step = jax.jit(MODEL.apply)
    for i in range(3):
        place = (LENGTHS + i)[:, None]
        latest = jnp.take_along_axis(tokens, place, axis=1)
        logits, cache = step(variables, latest, positions=BEFORE + place, cache=cache)
        wanted = jnp.take_along_axis(expected, place[..., None], axis=1)
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_go_with_a_prefix_is_said(given):
    variables, states, tokens = given
    with pytest.raises(errors.UserError, match='no model.sliding_window'):
        MODEL.clone(sliding_window=4).apply(variables, tokens, prefix=Prefix(states, LENGTHS))
