"""Drafted generation against the large model alone: the same greedy tokens and frequencies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.deploy import speculative
from bigmodels.deploy.decoding import generate_tokens
from bigmodels.deploy.sampling import Sampling, filtered_logits
from bigmodels.models import transformer
from tests.deploy.test_generate import GREEDY, run_tokens, task_and_params

V = 4
NO_STOPS = jnp.zeros((0, 0), jnp.int32)


@functools.cache
def tiny(seed):
    """A model of four tokens whose params are random, so that two of them seldom agree."""
    model = transformer.Transformer(
        vocab_size=V, num_layers=1, embed_dim=16, num_heads=2, max_length=8, vocab_multiple=8
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: jnp.float32(rng.normal(size=s.shape) * 0.4), shapes)
    return speculative.Decoder(model, params)


def exact(sampling, prompt, count):
    """The probability of each sequence of `count` tokens after the prompt: float64 [V ** count]."""
    model, params = tiny(0)
    sequences = np.array(list(itertools.product(range(V), repeat=count)))
    whole = np.concatenate([np.tile(prompt, (len(sequences), 1)), sequences], axis=1)
    logits = model.apply({'params': params}, whole)[:, len(prompt) - 1 : -1, :V]
    flat = logits.reshape(-1, V)
    filtered = filtered_logits(flat, sampling.rows(len(flat)))
    probs = np.asarray(jax.nn.softmax(filtered), np.float64).reshape(logits.shape)
    return np.take_along_axis(probs, sequences[..., None], axis=-1)[..., 0].prod(1)


def test_frequencies_are_those_of_the_large_model():
    draws, count, prompt, sampling = 20_000, 3, [1, 3], Sampling(0.7, top_k=3)
    generated = speculative.generate_tokens(
        tiny(0), tiny(1), jnp.tile(jnp.array([prompt]), (draws, 1)), jnp.full(draws, 2), NO_STOPS,
        jax.random.key(2), max_new_tokens=count, sampling=sampling, ahead=2,
    )  # fmt: skip
    numbers = np.asarray(generated.tokens) @ V ** np.arange(count)[::-1]
    counts = np.bincount(numbers, minlength=V**count)
    expected = draws * exact(sampling, prompt, count)
    assert counts[expected == 0].sum() == 0
    possible = expected > 5
    assert counts[~possible].sum() < 40 + 2 * expected[~possible].sum()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    degrees = possible.sum() - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # four standard deviations
    # The draft alone has others: the test can fail.
    other = np.asarray(
        generate_tokens(
            *tiny(1), jnp.tile(jnp.array([prompt]), (draws, 1)), jnp.full(draws, 2), NO_STOPS,
            jax.random.key(2), max_new_tokens=count, sampling=sampling,
        ).tokens
    )  # fmt: skip
    others = np.bincount(other @ V ** np.arange(count)[::-1], minlength=V**count)
    assert ((others - expected)[possible] ** 2 / expected[possible]).sum() > 10 * degrees


@pytest.mark.parametrize(
    ('draft', 'stops'),
    [(dict(positions='learned'), [[-1, 254]]),
     (dict(num_kv_heads=2, sliding_window=5), [[97, 98], [-1, 104]])],
    ids=['same draft', 'other draft'],
)  # fmt: skip
def test_greedy_tokens_stops_and_log_probs_are_those_of_the_large_model(draft, stops):
    task, params = task_and_params(positions='learned')
    draft_task, draft_params = task_and_params(**draft)
    expected = run_tokens(task, params, stops)
    given = speculative.generate_tokens(
        speculative.Decoder(task.model, params),
        speculative.Decoder(draft_task.model, draft_params),
        jnp.array([[97, 98, 99], [100, 0, 0]]), jnp.array([3, 1]), jnp.asarray(stops, jnp.int32),
        jax.random.key(0), max_new_tokens=9, sampling=GREEDY, ahead=3,
    )  # fmt: skip
    np.testing.assert_array_equal(given.tokens, expected.tokens)
    np.testing.assert_array_equal(given.counts, expected.counts)
    np.testing.assert_allclose(given.log_probs, expected.log_probs, atol=1e-4)


def test_mistakes():
    task, params = task_and_params(positions='learned')
    large = speculative.Decoder(task.model, params)

    def generate(draft, sampling=GREEDY, ahead=4):
        speculative.generate_tokens(
            large, draft, jnp.ones((1, 1), jnp.int32), jnp.ones(1, jnp.int32), NO_STOPS,
            jax.random.key(0), max_new_tokens=2, sampling=sampling, ahead=ahead,
        )  # fmt: skip

    with pytest.raises(errors.UserError, match='vocabulary has 4 tokens, .* 256'):
        generate(tiny(0))
    with pytest.raises(errors.UserError, match='Penalties'):
        generate(large, Sampling(0, presence_penalty=1.0))
    with pytest.raises(errors.UserError, match='ahead = 0'):
        generate(large, ahead=0)
