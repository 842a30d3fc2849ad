"""Beam search, of which greedy decoding is the case of one beam.

Axes: B batch, W beams, T target length, V vocab.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodels.models import encoder_decoder
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.models.transformer import Transformer

Array = jax.Array


class Hypotheses(NamedTuple):
    """W sequences for each of B sources, the best first; a score of -inf stands for none.

    Fields:
      tokens: int32 [B, W, T]; behind the end token only end tokens follow.
      scores: float32 [B, W]: the sum of the tokens' log probabilities, of finished sequences over
        `length_penalty`.
    """

    tokens: Array
    scores: Array


def length_penalty(length: Array | int, alpha: float) -> Array:
    """((5 + length) / 6)^alpha, over which log probabilities are compared (Wu et al. 2016, eq. 14).

    `length` counts the end token.
    """
    return ((5 + jnp.asarray(length, jnp.float32)) / 6) ** alpha


def beam_search(
    next_logits: Callable[[Array, Array, Any], tuple[Array, Any]],
    reordered: Callable[[Any, Array], Any],
    cache: Any,
    *,
    batch_size: int,
    beam_size: int,
    max_length: int,
    start: int | Array,
    end: int,
    alpha: float = 0.6,
) -> Hypotheses:
    """The most probable sequences, as far as W beams find them.

    Every step continues the W best unfinished sequences by the W best continuations of them all;
    those that end are finished. A source is done once W are. So one beam is greedy decoding, and as
    many beams as there are sequences find the best of all.

    Args:
      next_logits: (tokens int32 [B * W], step, cache) -> (logits [B * W, V], cache), of the tokens
        that follow `tokens`, which are those numbered `step` of their sequences.
      reordered: (cache, beams int32 [B, W]) -> the cache in which each source's beams are those
        that `beams` gives of its former ones.
      cache: as `next_logits` takes it for the first token.
      batch_size, beam_size: B and W.
      max_length: T, the most tokens of a sequence, the end token included.
      start: the token before the first one of a sequence, for all sources or int32 [B].
      end: the token that ends a sequence; -1 for none.
      alpha: see `length_penalty`; 0 compares sums of log probabilities.

    Returns:
      Each source's finished sequences; where none has finished, the unfinished ones.
    """

    def one_token(carry):
        step, alive, finished, latest, cache = carry
        logits, cache = next_logits(latest.reshape(-1), step, cache)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_probs = log_probs.reshape(batch_size, beam_size, -1)
        alive, finished, beams = _continued(alive, finished, log_probs, step, end, alpha)
        return step + 1, alive, finished, alive.tokens[:, :, step], reordered(cache, beams)

    def goes_on(carry):
        step, _, finished, _, _ = carry
        return (step < max_length) & ~_is_done(finished).all()

    tokens = jnp.full((batch_size, beam_size, max_length), end, jnp.int32)
    nothing = jnp.full((batch_size, beam_size), -jnp.inf)
    first = (
        jnp.int32(0),
        Hypotheses(tokens, nothing.at[:, 0].set(0)),  # the beams are still one and the same
        Hypotheses(tokens, nothing),
        jnp.broadcast_to(jnp.asarray(start, jnp.int32).reshape(-1, 1), (batch_size, beam_size)),
        cache,
    )
    # The first step may add to the cache; those after it keep its structure, as a loop must.
    _, alive, finished, _, _ = jax.lax.while_loop(goes_on, one_token, one_token(first))
    found = jnp.isfinite(finished.scores[:, :1])
    return Hypotheses(
        jnp.where(found[..., None], finished.tokens, alive.tokens),
        jnp.where(found, finished.scores, alive.scores / length_penalty(max_length, alpha)),
    )


def _continued(
    alive: Hypotheses, finished: Hypotheses, log_probs: Array, step: Array, end: int, alpha: float
) -> tuple[Hypotheses, Hypotheses, Array]:
    """The hypotheses after token `step`, and the former beams int32 [B, W] of those alive.

    log_probs: [B, W, V] of the tokens that may follow those alive.
    """
    batch_size, beam_size, vocab_size = log_probs.shape
    # Of twice as many at least W do not end, as each beam has one way to end.
    count = min(2 * beam_size, beam_size * vocab_size)
    scores = (alive.scores[..., None] + log_probs).reshape(batch_size, -1)
    scores, places = jax.lax.top_k(scores, count)
    beams, latest = jnp.divmod(places, vocab_size)
    tokens = jnp.take_along_axis(alive.tokens, beams[..., None], axis=1)
    tokens = tokens.at[:, :, step].set(latest)
    ends = latest == end
    counts = ends & (jnp.arange(count) < beam_size) & ~_is_done(finished)
    ended = jnp.where(counts, scores / length_penalty(step + 1, alpha), -jnp.inf)
    finished, _ = _best(_joined(finished, Hypotheses(tokens, ended)), beam_size)
    alive, kept = _best(Hypotheses(tokens, jnp.where(ends, -jnp.inf, scores)), beam_size)
    return alive, finished, jnp.take_along_axis(beams, kept, axis=1)


def _is_done(finished: Hypotheses) -> Array:
    """Whether W sequences of a source have finished: bool [B, 1]."""
    return jnp.isfinite(finished.scores).all(1, keepdims=True)


def _joined(one: Hypotheses, other: Hypotheses) -> Hypotheses:
    return jax.tree.map(lambda *sides: jnp.concatenate(sides, axis=1), one, other)


def _best(hypotheses: Hypotheses, count: int) -> tuple[Hypotheses, Array]:
    """The `count` of the highest scores, the best first, and their places int32 [B, count]."""
    scores, places = jax.lax.top_k(hypotheses.scores, count)
    tokens = jnp.take_along_axis(hypotheses.tokens, places[..., None], axis=1)
    return Hypotheses(tokens, scores), places


def search(
    model: EncoderDecoder,
    params: Mapping,
    inputs: Array,
    segment_ids: Array | None,
    *,
    beam_size: int,
    max_length: int,
    end: int,
    alpha: float = 0.6,
    start: int | Array | None = None,
    suppressed: Sequence[int] = (),
    suppressed_first: Sequence[int] = (),
) -> Hypotheses:
    """`beam_search` of the targets of sources.

    Args:
      inputs: int [B, S], or of sound float [B, 2 * S, M].
      segment_ids: int [B, S], 0 where a source is padded, else 1; None where none is.
      max_length, end, alpha: see `beam_search`; the former counts no token of `start`.
      start: the token before the first one of a target; by default `end`. Or several before each,
        int [B, P].
      suppressed, suppressed_first: tokens that no target has, and with which none begins.
    """
    model, params = encoder_decoder.unscanned(model, params)
    variables = {'params': params}
    context = model.apply(variables, inputs, segment_ids=segment_ids, method='encode')
    prompts = jnp.asarray(end if start is None else start, jnp.int32)
    prompts = jnp.broadcast_to(prompts, (len(inputs), prompts.shape[-1] if prompts.ndim else 1))
    before = prompts.shape[1] - 1

    def decoded(tokens, first, cache):
        # The first call leaves the context's keys and values in the cache.
        return model.apply(
            variables,
            tokens,
            context if 'context' not in cache[0] else context._replace(states=None),
            positions=jnp.broadcast_to(first + jnp.arange(tokens.shape[1]), tokens.shape),
            cache=cache,
            method='decode',
        )

    def next_logits(tokens, step, cache):
        logits, cache = decoded(tokens[:, None], before + step, cache)
        logits = logits[:, 0].at[:, list(suppressed)].set(-jnp.inf)
        begun = logits.at[:, list(suppressed_first)].set(-jnp.inf)
        return jnp.where(step == 0, begun, logits), cache

    cache = model.init_cache(len(inputs) * beam_size, before + max_length)
    if before:
        _, cache = decoded(jnp.repeat(prompts[:, :-1], beam_size, axis=0), 0, cache)
    return beam_search(
        next_logits,
        _reordered,
        cache,
        batch_size=len(inputs),
        beam_size=beam_size,
        max_length=max_length,
        start=prompts[:, -1],
        end=end,
        alpha=alpha,
    )


def continuations(
    model: Transformer,
    params: Mapping,
    prompts: Array,
    lengths: Array,
    *,
    beam_size: int,
    max_length: int,
    end: int,
    alpha: float = 0.6,
) -> Hypotheses:
    """`beam_search` of what follows prompts.

    Args:
      model, params: with unrolled layers, see `weights.packed`.
      prompts, lengths: see `decoding.generate_tokens`.
      max_length, end, alpha: see `beam_search`.
    """
    batch_size, width = prompts.shape
    variables = {'params': params}
    _, cache = model.apply(
        variables,
        prompts,
        positions=jnp.broadcast_to(jnp.arange(width), prompts.shape),
        cache=model.init_cache(batch_size, width + max_length),
        return_hidden=True,
    )
    # The last token of a prompt is computed again, as the one before the first.
    last = jnp.repeat(lengths - 1, beam_size)[:, None]

    def next_logits(tokens, step, cache):
        logits, cache = model.apply(variables, tokens[:, None], positions=last + step, cache=cache)
        return logits[:, 0], cache

    return beam_search(
        next_logits,
        _reordered,
        jax.tree.map(lambda value: jnp.repeat(value, beam_size, axis=0), cache),
        batch_size=batch_size,
        beam_size=beam_size,
        max_length=max_length,
        start=jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1),
        end=end,
        alpha=alpha,
    )


def _reordered(cache, beams: Array):
    """A decoder's cache with its beams taken anew; the context is the same for all of them."""

    def taken(value):  # [B * W, ...]; within each source, so that a mesh may split these
        apart = value.reshape(*beams.shape, *value.shape[1:])
        places = beams.reshape(*beams.shape, *(1,) * (value.ndim - 1))
        return jnp.take_along_axis(apart, places, axis=1).reshape(value.shape)

    return tuple(
        {name: value if name == 'context' else taken(value) for name, value in layer.items()}
        for layer in cache
    )
