"""From logits to the next token, as pure functions. Axes: B batch, V vocab."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors

Array = jax.Array
FILTERS = ('top_k', 'top_p', 'min_p')
PENALTIES = ('repetition_penalty', 'presence_penalty', 'frequency_penalty')


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: penalties, the temperature, then all filters together.

    Fields:
      temperature: 0 takes the most probable token; larger is more random.
      top_k: only the k most probable tokens; 0 for all.
      top_p: only the most probable tokens that together reach this probability
        (Holtzman et al. 2020); the most probable one always stays.
      min_p: only tokens with at least this share of the largest probability
        (Nguyen et al. 2024).
      repetition_penalty: of tokens in the prompt or after it, positive logits are divided by this,
        negative ones multiplied (Keskar et al. 2019, section 4.1); 1 for none.
      presence_penalty: taken from the logits of tokens that came after the prompt.
      frequency_penalty: the same for each time that they came.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self):
        for name, good, allowed in (
            ('temperature', self.temperature >= 0, '0 or more'),
            ('top_k', 0 <= self.top_k < 2**31, '0 or more'),
            ('top_p', 0 < self.top_p <= 1, 'over 0, at most 1'),
            ('min_p', 0 <= self.min_p <= 1, 'from 0 to 1'),
            ('repetition_penalty', 0 < self.repetition_penalty < math.inf, 'over 0'),
            ('presence_penalty', math.isfinite(self.presence_penalty), 'a number'),
            ('frequency_penalty', math.isfinite(self.frequency_penalty), 'a number'),
        ):
            if not good:
                raise errors.UserError(f'{name} = {getattr(self, name)} must be {allowed}.')

    @property
    def penalises(self) -> bool:
        """Whether what came before changes the logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    def rows(self, count: int, only_used: bool = False) -> dict[str, np.ndarray]:
        """The same for `count` rows, as the functions below take it: an array [B] a field.

        only_used: leaves out groups of fields that change nothing, so that less is compiled.
        """
        names = [*FILTERS, *PENALTIES, 'temperature']
        if only_used:
            filters = (self.top_k, self.top_p, self.min_p) != (0, 1, 0)
            names = [
                *(FILTERS if self.temperature and filters else ()),
                *(PENALTIES if self.penalises else ()),
                *(('temperature',) if self.temperature else ()),
            ]
        return {
            name: np.full(count, getattr(self, name), np.int32 if name == 'top_k' else np.float32)
            for name in names
        }


def choose(
    keys: Array,
    logits: Array,
    history: Array | None,
    sampling: Mapping[str, Array],
    allowed: Array | None = None,
) -> tuple[Array, Array]:
    """The next token of each row, and how probable it was.

    Args:
      keys: [B], for the draw of each row.
      logits: [B, V].
      history: int32 [B, V], see `penalised`; None where `sampling` has no penalties.
      sampling: see `Sampling.rows`.
      allowed: bool [B, V], the tokens to choose from; None for all.

    Returns:
      (tokens int32 [B], log_probs float32 [B]), these by the logits as given: before penalties,
      temperature, filters and what is allowed.
    """
    # Else a CPU computes them inside of the argmax, which is one thread.
    logits = jax.lax.optimization_barrier(logits).astype(jnp.float32)
    adjusted = logits if history is None else penalised(logits, history, sampling)
    if allowed is not None:
        adjusted = jnp.where(allowed, adjusted, -jnp.inf)
    tokens = sample(keys, adjusted, sampling)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def most_probable(logits: Array, count: int) -> tuple[Array, Array]:
    """The tokens int32 [..., count] of the largest logits [..., V], and their log_probs, in order.

    These are as those of `choose`.
    """
    logits = logits.astype(jnp.float32)
    best, tokens = jax.lax.top_k(logits, count)
    return tokens, best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def prompt_history(prompts: Array, lengths: Array, vocab_size: int) -> Array:
    """The `history` of prompts int32 [B, P] of these lengths [B], before any new token."""
    real = jnp.arange(prompts.shape[1]) < lengths[:, None]
    empty = jnp.zeros((len(prompts), vocab_size), jnp.int32)
    return empty.at[jnp.arange(len(prompts))[:, None], prompts].max(real.astype(jnp.int32))


def penalised(logits: Array, history: Array, sampling: Mapping[str, Array]) -> Array:
    """Logits [B, V] after the penalties.

    history: int32 [B, V]: twice how often each token came after the prompt, and one more if the
    prompt has it.
    """
    repetition, presence, frequency = (sampling[name][:, None] for name in PENALTIES)

    def changed():
        divided = jnp.where(logits > 0, logits / repetition, logits * repetition)
        times = history // 2
        return jnp.where(history > 0, divided, logits) - presence * (times > 0) - frequency * times

    used = (repetition != 1) | (presence != 0) | (frequency != 0)
    return jax.lax.cond(used.any(), changed, lambda: logits)


def filtered_logits(logits: Array, sampling: Mapping[str, Array]) -> Array:
    """Logits [B, V] over the temperature, -inf where a filter excludes the token."""
    temperature = sampling['temperature'][:, None]
    logits = logits.astype(jnp.float32) / jnp.where(temperature > 0, temperature, 1)
    if 'top_k' not in sampling:
        return logits
    top_k, top_p, min_p = (sampling[name][:, None] for name in FILTERS)

    def kept():
        shares = jax.nn.softmax(logits)
        enough = min_p * shares.max(-1, keepdims=True)
        return (shares >= _least_share(shares, top_k, top_p)) & (shares >= enough)

    used = (top_k > 0) | (top_p < 1) | (min_p > 0)
    keep = jax.lax.cond(used.any(), kept, lambda: jnp.ones(logits.shape, bool))
    return jnp.where(keep, logits, -jnp.inf)


def _least_share(shares: Array, top_k: Array, top_p: Array) -> Array:
    """The smallest of the shares [B, V] that top_k and top_p [B, 1] keep, or less: [B, 1].

    Those larger than it are fewer than k and together less than p. It is found by halving an
    interval; the bits of positive floats, read as integers, are in the order of the floats. To
    sort a large vocabulary takes several times as long.
    """
    bits = jax.lax.bitcast_convert_type(shares, jnp.int32)
    most = jnp.where(top_k > 0, top_k, shares.shape[-1])
    together = jnp.where(top_p < 1, top_p, jnp.inf)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        larger = bits > middle
        count = larger.sum(-1, keepdims=True)
        total = jnp.where(larger, shares, 0).sum(-1, keepdims=True)
        kept = (count < most) & (total < together)
        return jnp.where(kept, low, middle + 1), jnp.where(kept, middle, high)

    largest = bits.max(-1, keepdims=True)
    _, least = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(largest), largest))
    return jax.lax.bitcast_convert_type(least, jnp.float32)


def sample(keys: Array, logits: Array, sampling: Mapping[str, Array]) -> Array:
    """The next token of each row of logits [B, V], by its key of keys [B]: int32 [B]."""
    best = logits.argmax(-1).astype(jnp.int32)
    if 'temperature' not in sampling:
        return best
    random = sampling['temperature'] > 0

    def drawn():
        return draw(keys, filtered_logits(logits, sampling))

    return jnp.where(random, jax.lax.cond(random.any(), drawn, lambda: best), best)


def draw(keys: Array, logits: Array) -> Array:
    """A token of each row of logits [B, V], with the probabilities of their softmax: int32 [B].

    It is where a random share of the sum of all lies, among square blocks of tokens and then in one
    of them: two random numbers a row. `jax.random.categorical` needs one for each token, which on
    a CPU takes as long as the model.
    """
    batch, size = logits.shape
    width = math.isqrt(size - 1) + 1
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    padded = jnp.pad(weights, ((0, 0), (0, width**2 - size)))
    blocks = padded.reshape(batch, width, width)
    shares = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    block = _place(blocks.sum(-1), shares[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * width + _place(inside, shares[:, 1])).astype(jnp.int32)


def _place(weights: Array, shares: Array) -> Array:
    """The first of weights [B, N] up to which their sum is over a share [B] of that of all: [B]."""
    # A weight of 0 is never the one, however sums are rounded.
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    return (sums > shares[:, None] * sums.max(-1, keepdims=True)).argmax(-1)
