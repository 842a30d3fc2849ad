"""Generation with a key/value cache, the whole loop one compiled program.

python -m bigmodels.deploy.generate --workdir=runs/transformer --prompt='def '
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, xla_options
from bigmodels.data.tokenizers import document
from bigmodels.deploy import weights as weights_lib
from bigmodels.deploy.sampling import Sampling, sample
from bigmodels.models import transformer

Array = jax.Array
# What `kernels.multiply` needs on a CPU: sums that may be reordered, so that a reduction is a loop
# over vectors; that loop not split in two, nor given to a library that widens kernels in memory
# (which gets whole products alone: fused with their neighbours it does not take narrow ones);
# kernels not widened once for the whole loop over tokens, which would then read them wide; and
# optimization barriers that still stand when operations are fused, which newer versions of XLA
# cannot compile: there narrow kernels may be widened at every token.
KEEPS_BARRIERS = jax.__version_info__ < (0, 11)
CPU_OPTIONS = {
    'xla_cpu_enable_fast_math': True,
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT',
    'xla_disable_hlo_passes': 'tree_reduction_rewriter,while-loop-invariant-code-motion'
    + (',cse_barrier_expander' if KEEPS_BARRIERS else ''),
}


def generate_tokens(
    model: transformer.Transformer,
    params: Mapping,
    prompts: Array,
    lengths: Array,
    stops: Array,
    rng: Array,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> tuple[Array, Array]:
    """Continues prompts of different lengths.

    Args:
      model, params: with unrolled layers, see `weights.packed`.
      prompts: int32 [B, P], each row padded at its end.
      lengths: int32 [B] of the prompts, at least 1.
      stops: int32 [N, W]: a row ends when its latest new tokens equal one of these sequences,
        each padded at its start with -1; [0, 0] for none.
      rng: key; each row and step has its own.
      max_new_tokens: at least 1.

    Returns:
      (tokens int32 [B, max_new_tokens], counts int32 [B]): a row's tokens are the first `count`,
      a completed stop sequence included.
    """
    return program()(
        model,
        params,
        prompts,
        lengths,
        stops,
        rng,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )


@functools.cache
def program() -> Callable:
    """`generate_tokens` as a jitted function, which can be compiled ahead."""
    options = xla_options.known(CPU_OPTIONS) if jax.default_backend() == 'cpu' else None
    static = ('model', 'max_new_tokens', 'sampling')
    return jax.jit(_generate_tokens, static_argnames=static, compiler_options=options)


def _generate_tokens(model, params, prompts, lengths, stops, rng, *, max_new_tokens, sampling):
    batch, width = prompts.shape
    row_keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(jnp.arange(batch))

    def append(step, logits, tokens, counts, done):
        # Else a CPU computes them inside of the argmax, which is one thread.
        logits = jax.lax.optimization_barrier(logits)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(row_keys)
        token = jax.vmap(lambda key, row: sample(key, row[None], sampling)[0])(keys, logits)
        tokens = tokens.at[:, step].set(jnp.where(done, 0, token))
        return tokens, counts + ~done, done | _ends_with_stop(tokens, step, stops)

    def go_on(carry):
        step, (_, _, done), _ = carry
        return (step < max_new_tokens) & ~done.all()

    def one_token(carry):
        step, so_far, cache = carry
        latest = jax.lax.dynamic_slice_in_dim(so_far[0], step - 1, 1, axis=1)
        positions = (lengths + step - 1)[:, None]
        logits, cache = model.apply({'params': params}, latest, positions=positions, cache=cache)
        return step + 1, append(step, logits[:, 0], *so_far), cache

    # The slots of padding are written with garbage: each is overwritten before it is ever seen,
    # because a query only sees slots up to its own position.
    hidden, cache = model.apply(
        {'params': params},
        prompts,
        positions=jnp.broadcast_to(jnp.arange(width), prompts.shape),
        cache=model.init_cache(batch, width + max_new_tokens),
        return_hidden=True,
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    nothing = (
        jnp.zeros((batch, max_new_tokens), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch, bool),
    )
    first = 1, append(0, model.logits(params, last), *nothing), cache
    _, (tokens, counts, _), _ = jax.lax.while_loop(go_on, one_token, first)
    return tokens, counts


def _ends_with_stop(tokens: Array, step: Array, stops: Array) -> Array:
    """Whether each row's tokens up to `step` end with one of the sequences: bool [B]."""
    if not stops.size:
        return jnp.zeros(len(tokens), bool)
    width = stops.shape[1]
    padded = jnp.pad(tokens, ((0, 0), (width, 0)), constant_values=-2)
    latest = jax.lax.dynamic_slice_in_dim(padded, step + 1, width, axis=1)  # [B, W]
    return ((latest[:, None] == stops) | (stops == -1)).all(-1).any(-1)


def generate_text(
    task: Any,
    params: Mapping,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    seed: int,
    stop: Sequence[str] = (),
    weights: str | None = None,
) -> list[str]:
    """Continuations of prompts, each up to a stop string (left out) or the end of the text.

    A prompt begins a document: the tokenizer's token for that comes before it, and an empty one
    stands for the end-of-text token where there is none. `weights`: see `weights.packed`.

    Raises:
      UserError: for a prompt that leaves no room in the context, or no tokens to generate.
    """
    if max_new_tokens < 1:
        raise errors.UserError(f'max_new_tokens = {max_new_tokens} must be at least 1.')
    if '' in stop:
        raise errors.UserError('A stop string is empty: it would end every text at once.')
    vocabulary = task.vocabulary
    encoded = [document(vocabulary, prompt) for prompt in prompts]
    encoded = [ids if len(ids) else np.asarray([vocabulary.end_of_text]) for ids in encoded]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + max_new_tokens > task.model.max_length:
            raise errors.UserError(
                f'A prompt of {len(ids)} tokens and {max_new_tokens} new ones exceed the context '
                f'of {task.model.max_length}: shorten {prompt[:40]!r}... or ask for fewer.'
            )
    model, params = weights_lib.packed(task.model, params, weights)
    width = max(map(len, encoded))
    rows = np.stack([np.pad(ids, (0, width - len(ids))) for ids in encoded])
    stops = [vocabulary.encode(text) for text in stop]
    if task.append_end_of_text:  # otherwise the token is an ordinary one
        stops.append(np.asarray([vocabulary.end_of_text]))
    longest = max(map(len, stops), default=0)
    tokens, counts = generate_tokens(
        model,
        params,
        jnp.asarray(rows, jnp.int32),
        jnp.asarray([len(ids) for ids in encoded], jnp.int32),
        jnp.asarray(
            [np.pad(ids, (longest - len(ids), 0), constant_values=-1) for ids in stops], jnp.int32
        ).reshape(len(stops), longest),
        jax.random.key(seed),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
    texts = []
    for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True):
        ids = row[:count]
        if task.append_end_of_text and count and ids[-1] == vocabulary.end_of_text:
            ids = ids[:-1]
        texts.append(_cut(vocabulary.decode(ids), stop))
    return texts


def _cut(text: str, stop: Sequence[str]) -> str:
    """Text before the first stop string; tokens need not end where a stop string ends."""
    ends = [text.index(word) for word in stop if word in text]
    return text[: min(ends)] if ends else text
