"""Generation with a key/value cache, the whole loop one compiled program."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodels import xla_options
from bigmodels.deploy.sampling import Sampling, choose, prompt_history
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


class Generated(NamedTuple):
    """What follows each of B prompts, up to T tokens.

    Fields:
      tokens: int32 [B, T]: a row's are the first of its count, then zeros.
      counts: int32 [B], a completed stop sequence included.
      log_probs: float32 [B, T] of these tokens, see `sampling.choose`.
    """

    tokens: Array
    counts: Array
    log_probs: Array


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
) -> Generated:
    """Continues prompts of different lengths.

    Args:
      model, params: with unrolled layers, see `weights.packed`.
      prompts: int32 [B, P], each row padded at its end.
      lengths: int32 [B] of the prompts, at least 1.
      stops: int32 [N, W]: a row ends when its latest new tokens equal one of these sequences,
        each padded at its start with -1; [0, 0] for none.
      rng: key; each row and step has its own.
      max_new_tokens: T, at least 1.
    """
    return program()(
        model,
        params,
        prompts,
        lengths,
        stops,
        rng,
        sampling.rows(len(prompts), only_used=True),
        max_new_tokens=max_new_tokens,
    )


@functools.cache
def program() -> Callable:
    """`generate_tokens` as a jitted function, which can be compiled ahead.

    It takes the settings of sampling as `Sampling.rows` gives them.
    """
    static = ('model', 'max_new_tokens')
    return jax.jit(continue_prompts, static_argnames=static, compiler_options=compiler_options())


def compiler_options() -> dict | None:
    """XLA's options for programs that decode here."""
    return xla_options.known(CPU_OPTIONS) if jax.default_backend() == 'cpu' else None


def continue_prompts(
    model, params, prompts, lengths, stops, rng, sampling, *, max_new_tokens
) -> Generated:
    """`generate_tokens` as a part of another program, with the settings of `Sampling.rows`."""
    batch, width = prompts.shape
    rows = jnp.arange(batch)
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(rows)

    def append(step, logits, so_far, history, done):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(row_keys)
        token, log_prob = choose(keys, logits, history, sampling)
        so_far = Generated(
            so_far.tokens.at[:, step].set(jnp.where(done, 0, token)),
            so_far.counts + ~done,
            so_far.log_probs.at[:, step].set(jnp.where(done, 0, log_prob)),
        )
        if history is not None:
            history = history.at[rows, token].add(2)
        return so_far, history, done | ends_with_stop(so_far.tokens, step, stops)

    def go_on(carry):
        step, (_, _, done), _ = carry
        return (step < max_new_tokens) & ~done.all()

    def one_token(carry):
        step, appended, cache = carry
        latest = jax.lax.dynamic_slice_in_dim(appended[0].tokens, step - 1, 1, axis=1)
        positions = (lengths + step - 1)[:, None]
        logits, cache = model.apply({'params': params}, latest, positions=positions, cache=cache)
        return step + 1, append(step, logits[:, 0], *appended), cache

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
    nothing = Generated(
        jnp.zeros((batch, max_new_tokens), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros((batch, max_new_tokens)),
    )
    logits = model.logits(params, last)
    history = None
    if 'repetition_penalty' in sampling:
        history = prompt_history(prompts, lengths, logits.shape[-1])
    first = 1, append(0, logits, nothing, history, jnp.zeros(batch, bool)), cache
    _, (generated, _, _), _ = jax.lax.while_loop(go_on, one_token, first)
    return generated


def ends_with_stop(tokens: Array, step: Array, stops: Array) -> Array:
    """Whether each row's tokens up to `step`, [B] or of all, end with a sequence: bool [B]."""
    if not stops.size:
        return jnp.zeros(len(tokens), bool)
    width = stops.shape[1]
    padded = jnp.pad(tokens, ((0, 0), (width, 0)), constant_values=-2)
    latest = jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i + 1, width))(
        padded, jnp.broadcast_to(step, len(tokens))
    )  # [B, W]
    return ((latest[:, None] == stops) | (stops == -1)).all(-1).any(-1)
