"""Keys and values in int8 against those that are kept as they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import trees
from bigmodels.deploy import weights
from bigmodels.deploy.decoding import generate_tokens
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Settings
from tests.deploy.test_generate import GREEDY, make_params, make_task

TOKENS = np.random.default_rng(0).integers(97, 105, (2, 12))
# Grouped heads of 16 numbers; windows, positions and layers of several kinds.
FIELDS = {
    'windows': dict(sliding_window=4, attention_softcap=20.0),
    'scanned': dict(positions='learned', scan_layers=True),
}


@functools.cache
def made(name):
    """(model, params) as decoding reads them."""
    fields = dict(tie_embeddings=False, num_kv_heads=2, embed_dim=64, **FIELDS[name])
    task = make_task(**fields)
    params = make_params(task)
    return weights.packed(task.model, params)


@functools.cache
def logits(name, kept):
    """Of the last 4 tokens, after the others and one by one, and the cache then."""
    model, params = made(name)
    model = model.clone(kv_cache=kept)

    @jax.jit
    def run(params):
        cache, found = model.init_cache(2, 16), []
        for first, last in ((0, 8), (8, 9), (9, 12)):
            positions = jnp.broadcast_to(jnp.arange(first, last), (2, last - first))
            out, cache = model.apply(
                {'params': params}, TOKENS[:, first:last], positions=positions, cache=cache
            )
            found.append(out)
        return jnp.concatenate(found[1:], 1), cache

    return jax.device_get(run(params))


@pytest.mark.parametrize('name', ['windows', pytest.param('scanned', marks=pytest.mark.slow)])
def test_an_int8_cache_is_small_and_near(name):
    (exact, wide), (near, cache) = (logits(name, kept) for kept in ('compute', 'int8'))
    # A scale beside the 16 numbers of a head, of as many bytes as one of float32.
    assert trees.size_bytes(cache) == (16 + 4) / 64 * trees.size_bytes(wide)
    for part in ('key', 'value'):
        values, scale = (np.float64(cache[0][key]) for key in (part, f'{part}_scale'))
        error = np.abs(values * scale - wide[0][part])[:, :, :12]
        assert (error <= scale[:, :, :12] * 0.5001).all()  # half a step at most
        assert np.abs(values).max() == 127
    one, other = (jax.nn.log_softmax(x[..., 97:105]) for x in (exact, near))
    divergence = (jnp.exp(one) * (one - other)).sum(-1).mean()
    assert 0 < divergence < 0.01


@pytest.mark.slow
def test_greedy_tokens_are_those_of_an_engine_and_of_a_wide_cache_but_for_near_ties():
    model, params = made('windows')
    narrow = model.clone(kv_cache='int8')
    prompt = TOKENS[0, :7]
    alone, wide = (
        generate_tokens(
            each, params, jnp.asarray(prompt[None]), jnp.array([7]), jnp.zeros((0, 0), jnp.int32),
            jax.random.key(0), max_new_tokens=5, sampling=GREEDY,
        )
        for each in (narrow, model)
    )  # fmt: skip
    engine = Engine(narrow, params, slots=2, length=16, widths=(4,))
    request = engine.submit(prompt.tolist(), Settings(5, GREEDY))
    while engine.num_waiting + engine.num_active:
        engine.step()
    assert request.new_tokens == alone.tokens[0].tolist() == wide.tokens[0].tolist()
    np.testing.assert_allclose(alone.log_probs, wide.log_probs, atol=0.05)
