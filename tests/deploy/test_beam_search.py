"""Beam search against greedy decoding and the best of all sequences there are."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import trees
from bigmodels.deploy import beam_search
from bigmodels.models import transformer
from bigmodels.models.encoder_decoder import EncoderDecoder

V, B, S, T, END = 4, 3, 5, 4, 0
MODEL = EncoderDecoder(vocab_size=V, num_layers=2, embed_dim=16, num_heads=2, max_length=8)
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
rng = np.random.default_rng(0)
SOURCES = rng.integers(1, V, (B, S))
SEGMENTS = (np.arange(S) < np.array([S, 3, 1])[:, None]).astype(np.int32)


@functools.cache
def params():
    """Random ones that let much be likely, and the end a little less than the rest."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), SOURCES, SOURCES)['params']
    rng = np.random.default_rng(3)
    values = trees.map_named(
        lambda name, leaf: jnp.float32(name.endswith('scale') + 0.3 * rng.normal(size=leaf.shape)),
        shapes,
    )
    table = values['embed']['embedding']
    return {**values, 'embed': {'embedding': table.at[END].multiply(0.3)}}


@functools.cache
def compiled(model, **sizes):
    return jit(functools.partial(beam_search.search, model, end=END, **sizes))


def search(beam_size, max_length=T, alpha=0.6, rows=slice(None), model=MODEL, values=None):
    find = compiled(model, beam_size=beam_size, max_length=max_length)
    found = find(values or params(), SOURCES[rows], SEGMENTS[rows], alpha=alpha)
    return jax.tree.map(np.asarray, found)


@functools.cache
def log_probs(length: int):
    """Of the tokens of every sequence of that length whose last token alone is the end.

    Returns (sequences [B, N, length], sums of log probabilities [B, N]), without any cache.
    """
    middles = itertools.product(range(1, V), repeat=length - 1)
    sequences = np.array([(*middle, END) for middle in middles])
    before = np.pad(sequences[:, :-1], ((0, 0), (1, 0)), constant_values=END)
    count = len(sequences)
    logits = jit(lambda p, *a: MODEL.apply({'params': p}, *a[:2], input_segment_ids=a[2]))(
        params(),
        np.repeat(SOURCES, count, axis=0),
        np.tile(before, (B, 1)),
        np.repeat(SEGMENTS, count, axis=0),
    )
    logits = np.asarray(jax.nn.log_softmax(logits)).reshape(B, count, length, V)
    chosen = np.take_along_axis(logits, sequences[None, ..., None], axis=-1)[..., 0]
    return np.tile(sequences, (B, 1, 1)), chosen.sum(-1)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
def test_a_beam_as_wide_as_there_are_sequences_finds_the_best_of_all(alpha):
    found = search(beam_size=V * (V - 1) ** (T - 1), alpha=alpha)  # all there are at any step
    for b in range(B):
        scored = [
            (score / ((5 + length) / 6) ** alpha, tuple(sequence))
            for length in range(1, T + 1)
            for sequence, score in zip(*(of[b] for of in log_probs(length)), strict=True)
        ]
        scored.sort(reverse=True)
        best = [score for score, _ in scored]
        np.testing.assert_allclose(found.scores[b, : len(best)], best, rtol=1e-4)
        for rank in range(3):
            sequence = found.tokens[b, rank]
            assert tuple(sequence[: len(scored[rank][1])]) == scored[rank][1]
            assert (sequence[len(scored[rank][1]) :] == END).all()


def greedy(max_length):
    """The likeliest token after those before it, without a cache, until the end."""
    tokens = np.full((B, max_length), END)
    apply = jit(lambda p, *a: MODEL.apply({'params': p}, *a[:2], input_segment_ids=a[2]))
    for i in range(max_length):
        before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=END)
        logits = apply(params(), SOURCES, before, SEGMENTS)[:, i]
        ended = (tokens[:, :i] == END).any(1)
        tokens[:, i] = np.where(ended, END, logits.argmax(-1))
    return tokens


def test_one_beam_is_greedy_decoding():
    expected = greedy(7)
    np.testing.assert_array_equal(search(1, max_length=7).tokens[:, 0], expected)
    assert (expected != END).any()


def test_a_source_is_searched_as_if_it_were_alone():
    together = search(2)
    for b in range(B):
        alone = search(2, rows=slice(b, b + 1))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[b])
        np.testing.assert_allclose(alone.scores[0], together.scores[b], rtol=1e-5)


def test_targets_follow_their_prompts_and_have_no_suppressed_token():
    """The scores of two beams are those of a pass without a cache."""
    prompts = np.array([[1, 2], [3, 3], [2, 0]])
    find = functools.partial(
        beam_search.search, MODEL, beam_size=2, max_length=3, end=-1, alpha=0.0,
        suppressed=(3,), suppressed_first=(1,),
    )  # fmt: skip
    found = jit(find)(params(), SOURCES, SEGMENTS, start=prompts)
    tokens = np.asarray(found.tokens).reshape(2 * B, 3)
    before = np.concatenate([np.repeat(prompts, 2, axis=0), tokens[:, :-1]], axis=1)
    logits = jit(lambda p, *a: MODEL.apply({'params': p}, *a[:2], input_segment_ids=a[2]))(
        params(), np.repeat(SOURCES, 2, axis=0), before, np.repeat(SEGMENTS, 2, axis=0)
    )
    logits = logits[:, 1:].at[..., 3].set(-np.inf).at[:, 0, 1].set(-np.inf)
    chosen = np.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
    np.testing.assert_allclose(chosen.sum((1, 2)), np.ravel(found.scores), rtol=1e-4)


def test_scanned_layers_find_the_same():
    stacks = {name: transformer.stack_layers(params()[name]) for name in ('encoder', 'decoder')}
    found = search(2, model=MODEL.clone(scan_layers=True), values={**params(), **stacks})
    np.testing.assert_array_equal(found.tokens, search(2).tokens)


def table_search(table, **options):
    """Of a chain: the logits of the token that follows another are its row of table [V, V]."""
    table = jnp.asarray(table, jnp.float32)
    find = functools.partial(
        beam_search.beam_search,
        lambda tokens, step, cache: (table[tokens], cache),
        lambda cache, beams: cache,
        None,
        batch_size=1,
        start=END,
        end=END,
        **options,
    )
    return jax.tree.map(np.asarray, jit(find)())


def test_without_an_end_the_best_unfinished_sequence_is_given():
    never = np.log([[1e-30, 0.6, 0.4], [1e-30, 0.1, 0.9], [1e-30, 0.5, 0.5]])
    found = table_search(never, beam_size=1, max_length=2, alpha=0.0)
    np.testing.assert_array_equal(found.tokens, [[[1, 2]]])
    np.testing.assert_allclose(found.scores, [[np.log(0.6 * 0.9)]], rtol=1e-5)


def test_a_wider_beam_finds_what_greed_misses():
    """The likelier first token, 1, leads to even odds; the other to a certain end."""
    table = np.log([[1e-9, 0.6, 0.4], [0.5, 0.25, 0.25], [1, 1e-9, 1e-9]])
    assert table_search(table, beam_size=1, max_length=3, alpha=0.0).tokens[0, 0, 0] == 1
    found = table_search(table, beam_size=2, max_length=3, alpha=0.0)
    np.testing.assert_array_equal(found.tokens[0, 0], [2, END, END])
    np.testing.assert_allclose(found.scores[0, 0], np.log(0.4), rtol=1e-5)


def test_a_longer_sequence_wins_under_a_length_penalty():
    """End at once with 0.5, or one token more and then the end for certain, with 0.45."""
    table = np.log([[0.5, 0.45, 0.05], [1, 1e-9, 1e-9], [1, 1e-9, 1e-9]])
    options = dict(beam_size=3, max_length=3)
    assert table_search(table, **options, alpha=0.0).tokens[0, 0].tolist() == [END, END, END]
    assert table_search(table, **options, alpha=1.0).tokens[0, 0].tolist() == [1, END, END]


def test_continuations_of_prompts_are_the_best_there_are():
    """Of a decoder alone: prompts of different lengths, every sequence scored without a cache."""
    model = transformer.Transformer(
        vocab_size=V, num_layers=2, embed_dim=16, num_heads=2, max_length=8, positions='learned'
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    rng = np.random.default_rng(1)
    values = jax.tree.map(lambda leaf: jnp.float32(0.4 * rng.normal(size=leaf.shape)), shapes)
    prompts, lengths = np.array([[1, 2, 3], [3, 0, 0]]), np.array([3, 1])

    def find(end, beam_size=V**2):
        search = functools.partial(
            beam_search.continuations, model, beam_size=beam_size, max_length=2, end=end, alpha=0.0
        )
        return jax.tree.map(np.asarray, jit(search)(values, prompts, jnp.asarray(lengths)))

    apply = jit(lambda tokens: jax.nn.log_softmax(model.apply({'params': values}, tokens)))
    for b in range(2):
        prompt = prompts[b, : lengths[b]]
        pairs = np.array(list(itertools.product(range(V), repeat=2)))
        logs = np.asarray(apply(np.concatenate([np.tile(prompt, (V**2, 1)), pairs], axis=1)))
        first = logs[:, len(prompt) - 1][np.arange(V**2), pairs[:, 0]]
        both = first + logs[:, len(prompt)][np.arange(V**2), pairs[:, 1]]
        never = find(-1)
        order = np.argsort(-both)
        np.testing.assert_array_equal(never.tokens[b, :5], pairs[order[:5]])
        np.testing.assert_allclose(never.scores[b, :5], both[order[:5]], rtol=1e-4)
        ending = find(END)
        best = max(first[pairs[:, 0] == END][0], both[pairs[:, 1] == END].max())
        np.testing.assert_allclose(ending.scores[b, 0], best, rtol=1e-4)
