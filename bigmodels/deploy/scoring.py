"""How probable texts are that are there already. Axes: B batch, L length, V vocab."""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels.deploy.sampling import most_probable
from bigmodels.models.transformer import Transformer

Array = jax.Array
TOGETHER = 64  # positions whose logits are in memory at a time
SHORTEST = 32  # that texts are padded to at least


def scores(
    model: Transformer,
    params: Mapping,
    inputs: Array,
    following: Array,
    count: int,
    segment_ids: Array | None = None,
) -> dict[str, Array]:
    """What a model says of what follows each token, by its logits as they are.

    Experts take all tokens, as they do while a text is generated: by a capacity, which grows with
    the length, a text's figures would be others with other padding.

    Args:
      inputs, following: int32 [B, L].
      count: N, of the most probable tokens.

    Returns:
      {'log_probs' float32 [B, L] of `following`; 'tokens' int32 [B, L, N] and 'best' float32
      [B, L, N], the most probable tokens and their log probabilities, in order}.
    """
    if model.moe is not None:
        model = model.clone(moe={**model.moe, 'capacity_factor': None})
    hidden = model.apply({'params': params}, inputs, segment_ids=segment_ids, return_hidden=True)

    def of_some(given):
        hidden, following = given  # [B, C, D] and [B, C]
        logits = model.logits(params, hidden).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
        tokens, best = most_probable(logits, count)
        log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
        return {'log_probs': log_probs, 'tokens': tokens, 'best': best}

    size = math.gcd(inputs.shape[1], TOGETHER)
    split = lambda x: jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)
    found = jax.lax.map(of_some, (split(hidden), split(following)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(*inputs.shape, *x.shape[3:]), found)


def log_likelihoods(
    model: Transformer,
    params: Mapping,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What a model gives tokens after others: (nats float64 [N], whether greedy bool [N]).

    Pairs of like lengths are computed together, and padded to few lengths.

    Args:
      pairs: (tokens before, at least one; tokens). Both together have at most one more than the
        model's context, as nothing follows the last.
    """
    nats, greedy = np.zeros(len(pairs)), np.zeros(len(pairs), bool)
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        rows = [np.concatenate([np.asarray(part, np.int32) for part in pairs[i]]) for i in some]
        rows += rows[-1:] * (batch_size - len(rows))  # few programs for all
        longest = len(rows[-1]) - 1
        width = min(max(1 << (longest - 1).bit_length(), SHORTEST), model.max_length)
        inputs, following = np.zeros((2, batch_size, width), np.int32)
        for i, row in enumerate(rows):
            inputs[i, : len(row) - 1], following[i, : len(row) - 1] = row[:-1], row[1:]
        found = jax.device_get(_best(model, params, inputs, following))
        for row, i in enumerate(some):
            before, after = map(len, pairs[i])
            own = slice(before - 1, before + after - 1)
            nats[i] = found['log_probs'][row, own].astype(np.float64).sum()
            greedy[i] = (found['tokens'][row, own, 0] == following[row, own]).all()
    return nats, greedy


@functools.partial(jax.jit, static_argnames='model')
def _best(model, params, inputs, following):
    return scores(model, params, inputs, following, count=1)
