"""Filters against brute force, frequencies against probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.deploy.sampling import Sampling, filtered_logits, sample

LOGITS = np.random.default_rng(0).normal(size=(6, 13)) * 2


def brute_force(row, s):
    """The set of tokens that all filters keep, by sorting and adding one at a time."""
    p = np.exp(row / s.temperature - (row / s.temperature).max())
    p /= p.sum()
    order = np.argsort(-p)
    kept = set(order[: s.top_k] if s.top_k else order)
    total, nucleus = 0.0, set()
    for token in order:
        nucleus.add(token)
        total += p[token]
        if total >= s.top_p:
            break
    return kept & nucleus & {i for i in order if p[i] >= s.min_p * p.max()}


@pytest.mark.parametrize(
    'sampling',
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=1),
        Sampling(top_k=4),
        Sampling(top_k=13),
        Sampling(top_k=100),
        Sampling(top_p=0.6),
        Sampling(top_p=0.95, temperature=2.0),
        Sampling(top_p=1e-6),
        Sampling(min_p=0.1),
        Sampling(min_p=1.0),
        Sampling(temperature=1.5, top_k=6, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_filters_are_brute_force(sampling):
    given = np.asarray(filtered_logits(jnp.float32(LOGITS), sampling))
    for row, filtered in zip(LOGITS, given, strict=True):
        kept = brute_force(row, sampling)
        assert set(np.flatnonzero(np.isfinite(filtered))) == kept
        kept = sorted(kept)
        np.testing.assert_allclose(filtered[kept], row[kept] / sampling.temperature, rtol=1e-5)


def test_the_most_probable_token_always_stays():
    sampling = Sampling(top_k=1, top_p=1e-9, min_p=1.0)
    tokens = jax.vmap(lambda key: sample(key, jnp.float32(LOGITS), sampling))(
        jax.random.split(jax.random.key(0), 5)
    )
    np.testing.assert_array_equal(tokens, np.tile(LOGITS.argmax(-1), (5, 1)))


def test_zero_temperature_is_greedy_and_needs_no_rng():
    given = sample(jax.random.key(0), jnp.float32(LOGITS), Sampling(temperature=0, top_k=3))
    assert given.dtype == jnp.int32
    np.testing.assert_array_equal(given, LOGITS.argmax(-1))


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9)])
def test_frequencies(sampling):
    draws, row = 20_000, LOGITS[0]
    tokens = sample(
        jax.random.key(1), jnp.broadcast_to(jnp.float32(row), (draws, len(row))), sampling
    )
    kept = sorted(brute_force(row, sampling))
    p = np.exp(row[kept] / sampling.temperature)
    expected = draws * p / p.sum()
    counts = np.bincount(tokens, minlength=len(row))
    assert counts.sum() == counts[kept].sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = len(kept) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # four standard deviations


def test_low_precision_logits_are_filtered_in_float32():
    narrow = jnp.asarray(LOGITS, jnp.bfloat16)
    assert filtered_logits(narrow, Sampling(top_p=0.5)).dtype == jnp.float32


def test_settings_are_static():
    compiled = jax.jit(sample, static_argnames='sampling')
    compiled(jax.random.key(0), jnp.float32(LOGITS), sampling=Sampling(top_k=3))
    assert hash(Sampling(top_k=3)) == hash(Sampling(top_k=3))


@pytest.mark.parametrize(
    'setting',
    [dict(temperature=-1), dict(top_k=-1), dict(top_p=0), dict(top_p=1.1), dict(min_p=-0.1),
     dict(min_p=2), dict(temperature=float('nan'))],
    ids=str,
)  # fmt: skip
def test_mistakes(setting):
    [name] = setting
    with pytest.raises(errors.UserError, match=f'{name} = .* must be'):
        functools.partial(Sampling, **setting)()
