"""Filters against brute force, frequencies against probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.deploy.sampling import (
    Sampling,
    choose,
    draw,
    filtered_logits,
    penalised,
    prompt_history,
    sample,
)

LOGITS = np.random.default_rng(0).normal(size=(6, 13)) * 2
ALL = [
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
]
filtered = jax.jit(filtered_logits)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def rows_of(settings):
    """The arrays of rows that differ."""
    rows = [sampling.rows(1) for sampling in settings]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


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


@pytest.mark.parametrize('sampling', ALL, ids=str)
def test_filters_are_brute_force(sampling):
    given = np.asarray(filtered(jnp.float32(LOGITS), sampling.rows(len(LOGITS))))
    for row, left in zip(LOGITS, given, strict=True):
        kept = brute_force(row, sampling)
        assert set(np.flatnonzero(np.isfinite(left))) == kept
        kept = sorted(kept)
        np.testing.assert_allclose(left[kept], row[kept] / sampling.temperature, rtol=1e-5)


def test_each_row_has_its_own_filters():
    logits = jnp.float32(np.tile(LOGITS[:2], (6, 1)))
    together = filtered(logits, rows_of(ALL))
    for row, sampling in enumerate(ALL):
        alone = filtered(jnp.float32(LOGITS), sampling.rows(len(LOGITS)))[row % 2]
        np.testing.assert_array_equal(together[row], alone)


def test_a_large_vocabulary_is_filtered_as_by_sorting():
    logits = np.random.default_rng(1).normal(size=(2, 50_000)).astype(np.float32) * 3
    sampling = Sampling(top_k=300, top_p=0.7)
    given = filtered(logits, sampling.rows(2))
    for row, left in zip(np.float64(logits), given, strict=True):
        assert set(np.flatnonzero(np.isfinite(left))) == brute_force(row, sampling)


def test_the_most_probable_token_always_stays():
    rows = Sampling(top_k=1, top_p=1e-9, min_p=1.0).rows(6)
    for seed in range(5):
        tokens = sample(keys(6, seed), jnp.float32(LOGITS), rows)
        np.testing.assert_array_equal(tokens, LOGITS.argmax(-1))


def test_zero_temperature_is_greedy_beside_rows_that_are_not():
    rows = rows_of([Sampling(temperature=0, top_k=3), Sampling(temperature=50.0)] * 3)
    drawn = [sample(keys(6, seed), jnp.float32(LOGITS), rows) for seed in range(5)]
    assert drawn[0].dtype == jnp.int32
    for tokens in drawn:
        np.testing.assert_array_equal(tokens[::2], LOGITS.argmax(-1)[::2])
    assert len({tuple(tokens[1::2].tolist()) for tokens in drawn}) == 5


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9)])
def test_frequencies(sampling):
    draws, row = 20_000, LOGITS[0]
    logits = jnp.broadcast_to(jnp.float32(row), (draws, len(row)))
    tokens = jax.jit(sample)(keys(draws, 1), logits, sampling.rows(draws))
    kept = sorted(brute_force(row, sampling))
    p = np.exp(row[kept] / sampling.temperature)
    expected = draws * p / p.sum()
    counts = np.bincount(tokens, minlength=len(row))
    assert counts.sum() == counts[kept].sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = len(kept) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # four standard deviations


def test_what_is_impossible_is_never_drawn():
    """Of a large vocabulary, most of which is excluded, at the borders of blocks too."""
    logits = np.full((1, 1000), -np.inf, np.float32)
    possible = [0, 31, 32, 33, 500, 999]
    logits[0, possible] = np.log([0.3, 0.1, 0.1, 0.1, 0.1, 0.3])
    tokens = jax.jit(draw)(keys(20_000), jnp.tile(logits, (20_000, 1)))
    counts = np.bincount(tokens, minlength=1000)
    assert counts[possible].sum() == 20_000
    np.testing.assert_allclose(counts[possible] / 20_000, np.exp(logits[0, possible]), atol=0.015)


def test_penalties_are_those_of_a_loop():
    prompts = np.array([[1, 2, 2], [3, 0, 0]])
    later = [[4, 4, 2], [5, 3, 3]]
    history = prompt_history(jnp.asarray(prompts), jnp.array([3, 1]), 13)
    for row, tokens in enumerate(later):
        for token in tokens:
            history = history.at[row, token].add(2)
    settings = [
        Sampling(repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=-0.2),
        Sampling(frequency_penalty=0.7),
    ]
    given = penalised(jnp.float32(LOGITS[:2]), history, rows_of(settings))
    for row, (s, prompt) in enumerate(zip(settings, ([1, 2, 2], [3]), strict=True)):
        expected = LOGITS[row].copy()
        for token in {*prompt, *later[row]}:
            r = s.repetition_penalty
            expected[token] = expected[token] / r if expected[token] > 0 else expected[token] * r
        for token in {*later[row]}:
            expected[token] -= s.presence_penalty
        for token in later[row]:
            expected[token] -= s.frequency_penalty
        np.testing.assert_allclose(given[row], expected, rtol=1e-5)
    assert [s.penalises for s in (*settings, Sampling(temperature=0.5))] == [True, True, False]


def test_what_is_not_allowed_is_not_chosen_and_log_probs_are_of_all():
    allowed = np.zeros((6, 13), bool)
    allowed[:, [2, 7]] = True
    settings = [Sampling(), Sampling(temperature=0), Sampling(top_k=1)] * 2
    history = jnp.zeros((6, 13), jnp.int32)
    tokens, log_probs = choose(
        keys(6), jnp.float32(LOGITS), history, rows_of(settings), jnp.asarray(allowed)
    )
    best = np.where(allowed, LOGITS, -np.inf).argmax(-1)
    assert set(tokens.tolist()) <= {2, 7}
    np.testing.assert_array_equal(tokens[1:3], best[1:3])
    exact = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, exact[np.arange(6), tokens], rtol=1e-5)


def test_low_precision_logits_are_filtered_in_float32():
    narrow = jnp.asarray(LOGITS, jnp.bfloat16)
    assert filtered_logits(narrow, Sampling(top_p=0.5).rows(6)).dtype == jnp.float32


@pytest.mark.parametrize(
    'setting',
    [dict(temperature=-1), dict(top_k=-1), dict(top_p=0), dict(top_p=1.1), dict(min_p=-0.1),
     dict(min_p=2), dict(temperature=float('nan')), dict(repetition_penalty=0),
     dict(presence_penalty=float('inf')), dict(frequency_penalty=float('nan'))],
    ids=str,
)  # fmt: skip
def test_mistakes(setting):
    [name] = setting
    with pytest.raises(errors.UserError, match=f'{name} = .* must be'):
        functools.partial(Sampling, **setting)()
