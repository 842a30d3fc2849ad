"""Speculative decoding: a small model drafts tokens, and the large one checks several at once.

What is generated has the distribution of the large model alone, whatever the draft (Leviathan et
al. 2023, algorithm 1); greedy tokens are the same. It is the faster the more often both agree.

Axes: B batch, A drafted tokens, V vocab.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodels import errors
from bigmodels.deploy import decoding
from bigmodels.deploy.decoding import Generated
from bigmodels.deploy.sampling import Sampling, draw, filtered_logits
from bigmodels.models.transformer import Cache, Transformer

Array = jax.Array


class Decoder(NamedTuple):
    """A model and its params, as of `weights.packed`."""

    model: Transformer
    params: Mapping


def generate_tokens(
    large: Decoder,
    draft: Decoder,
    prompts: Array,
    lengths: Array,
    stops: Array,
    rng: Array,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    ahead: int = 4,
) -> Generated:
    """`decoding.generate_tokens` of the large model, with `ahead` drafted tokens a round.

    Raises:
      UserError: for models of different vocabularies, or penalties.
    """
    sizes = large.model.vocab_size, draft.model.vocab_size
    if sizes[0] != sizes[1]:
        raise errors.UserError(
            f'A draft needs the same tokenizer: its vocabulary has {sizes[1]} tokens, that of the '
            f'large model {sizes[0]}.'
        )
    if sampling.penalises:
        raise errors.UserError('Penalties do not go with a draft: leave one of them out.')
    if ahead < 1:
        raise errors.UserError(f'ahead = {ahead} must be at least 1.')
    return _program()(
        large.model,
        draft.model,
        (large.params, draft.params),
        prompts,
        lengths,
        stops,
        rng,
        sampling.rows(len(prompts), only_used=True),
        max_new_tokens=max_new_tokens,
        ahead=ahead,
    )


@functools.cache
def _program() -> Callable:
    return jax.jit(
        _generate,
        static_argnums=(0, 1),
        static_argnames=('max_new_tokens', 'ahead'),
        compiler_options=decoding.compiler_options(),
    )


def _generate(
    large_model, draft_model, params, prompts, lengths, stops, rng, sampling, *,
    max_new_tokens, ahead,
) -> Generated:  # fmt: skip
    batch, width = prompts.shape
    room = max_new_tokens + ahead + 1  # a round may write beyond the end
    large, draft = Decoder(large_model, params[0]), Decoder(draft_model, params[1])
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(batch))

    def one_round(carry):
        latest, so_far, done, caches = carry
        keys = jax.vmap(jax.random.split)(jax.vmap(jax.random.fold_in)(row_keys, so_far.counts))
        first = lengths - 1 + so_far.counts  # the position of the latest token
        drafted, shares, draft_cache = _drafted(
            keys[:, 0], draft, latest, first, caches[1], sampling, ahead
        )
        inputs = jnp.concatenate([latest[:, None], drafted], axis=1)
        logits, cache = _logits(large, inputs, first, caches[0])
        tokens, accepted = _checked(
            keys[:, 1], drafted, shares, jax.vmap(_probabilities, (1, None), 1)(logits, sampling)
        )
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        after, ends = _appended(
            so_far, tokens, log_probs[..., 0], accepted + 1, stops, max_new_tokens
        )
        so_far = Generated(*map(jax.vmap(jnp.where, (0, 0, 0)), (done,) * 3, so_far, after))
        latest = jnp.take_along_axis(so_far.tokens, so_far.counts[:, None] - 1, axis=1)[:, 0]
        return latest, so_far, done | ends, (cache, draft_cache)

    nothing = Generated(
        jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, jnp.int32), jnp.zeros((batch, room))
    )
    caches = tuple(
        _logits(of, prompts, jnp.zeros_like(lengths), of.model.init_cache(batch, width + room))[1]
        for of in (large, draft)
    )
    # The last token of a prompt is computed again, as the first of a round.
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    _, generated, _, _ = jax.lax.while_loop(
        lambda carry: ~carry[2].all(), one_round, (last, nothing, jnp.zeros(batch, bool), caches)
    )
    tokens, counts, log_probs = generated
    real = jnp.arange(max_new_tokens) < counts[:, None]
    tokens, log_probs = (jnp.where(real, x[:, :max_new_tokens], 0) for x in (tokens, log_probs))
    return Generated(tokens, counts, log_probs)


def _logits(of: Decoder, tokens: Array, first: Array, cache: Cache) -> tuple[Array, Cache]:
    """Logits [B, L, V] of tokens [B, L] from the positions `first` [B] on, and the cache."""
    # Beyond the context nothing is kept, but a look-up there would be NaN, also for what is kept.
    positions = jnp.minimum(first[:, None] + jnp.arange(tokens.shape[1]), of.model.max_length - 1)
    logits, cache = of.model.apply({'params': of.params}, tokens, positions=positions, cache=cache)
    return logits[..., : of.model.vocab_size].astype(jnp.float32), cache


def _probabilities(logits: Array, sampling: Mapping[str, Array]) -> Array:
    """Of the tokens that `sampling.sample` draws from logits [B, V]: [B, V]."""
    best = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    if 'temperature' not in sampling:
        return best
    drawn = jax.nn.softmax(filtered_logits(logits, sampling))
    return jnp.where(sampling['temperature'][:, None] > 0, drawn, best)


def _drafted(
    keys, draft: Decoder, latest, first, cache, sampling, ahead: int
) -> tuple[Array, Array, Cache]:
    """Tokens [B, A] after the latest, the probabilities that they had [B, A, V], and the cache."""

    def one_token(carry, step):
        token, cache = carry
        logits, cache = _logits(draft, token[:, None], first + step, cache)
        shares = _probabilities(logits[:, 0], sampling)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        token = draw(step_keys, jnp.log(shares))
        return (token, cache), (token, shares)

    # One step more than is used: it leaves the keys and values of the last token in the cache.
    (_, cache), (tokens, shares) = jax.lax.scan(one_token, (latest, cache), jnp.arange(ahead + 1))
    return tokens[:ahead].T, jnp.moveaxis(shares[:ahead], 0, 1), cache


def _checked(keys, drafted, shares, probabilities) -> tuple[Array, Array]:
    """Which tokens follow: int32 [B, A + 1], and how many of the drafted ones are among them [B].

    A drafted token stays with the probability that the large model's is of the draft's, if those
    before it do. The next one is drawn from what the draft had too little of.

    Args:
      drafted: int32 [B, A], of the probabilities `shares` [B, A, V].
      probabilities: of the large model, [B, A + 1, V].
    """
    ahead = drafted.shape[1]
    keys = jax.vmap(jax.random.split)(keys)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (ahead,)))(keys[:, 0])
    of_draft, of_large = (
        jnp.take_along_axis(p, drafted[..., None], axis=-1)[..., 0]
        for p in (shares, probabilities[:, :ahead])
    )
    stays = jnp.cumprod((uniform * of_draft < of_large).astype(jnp.int32), axis=1)
    accepted = stays.sum(1)
    lacking = jnp.maximum(probabilities - jnp.pad(shares, ((0, 0), (0, 1), (0, 0))), 0)
    lacking = jnp.take_along_axis(lacking, accepted[:, None, None], axis=1)[:, 0]
    following = draw(keys[:, 1], jnp.log(lacking))
    tokens = jnp.pad(drafted * stays, ((0, 0), (0, 1)))
    return tokens.at[jnp.arange(len(tokens)), accepted].set(following), accepted


def _appended(
    so_far: Generated, tokens, log_probs, counts, stops, max_new_tokens: int
) -> tuple[Generated, Array]:
    """With the first `counts` [B] of tokens [B, A + 1], up to an end; and whether there is one."""
    put = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice(row, new, (start,)))
    written = put(so_far.tokens, tokens, so_far.counts)
    new = jnp.arange(tokens.shape[1])
    places = so_far.counts[:, None] + new
    ends = places + 1 == max_new_tokens
    ends |= jax.vmap(lambda place: decoding.ends_with_stop(written, place, stops), 1, 1)(places)
    ends &= new < counts[:, None]
    counts = jnp.where(ends.any(1), ends.argmax(1) + 1, counts)
    log_probs = put(so_far.log_probs, log_probs, so_far.counts)
    return Generated(written, so_far.counts + counts, log_probs), ends.any(1)
