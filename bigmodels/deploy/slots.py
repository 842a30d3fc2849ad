"""What an engine computes for the slots of its cache: programs of fixed shapes, compiled ahead.

Axes: B slots, W width of a chunk, V vocab, N alternatives.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from bigmodels import adapters
from bigmodels.deploy import decoding
from bigmodels.deploy.requests import MOST_ALTERNATIVES
from bigmodels.deploy.sampling import Sampling, choose, most_probable
from bigmodels.models import transformer

Array = jax.Array


class Programs:
    """A model, and the keys and values of all slots, which its programs change.

    Fields:
      cache: of keys and values, with a row for each slot.
      widths: of the chunks that `fill` takes, in order.
    """

    def __init__(
        self,
        model: transformer.Transformer,
        params: Mapping,
        *,
        slots: int,
        length: int,
        widths: Sequence[int],
        mesh: jax.sharding.Mesh | None,
    ):
        """Compiles everything; see `engine.Engine`."""
        self._params, self.widths = params, tuple(widths)
        if mesh is None:
            [device] = jax.tree.leaves(params)[0].devices()
            whole = split = SingleDeviceSharding(device)
            context = contextlib.nullcontext()
        else:
            heads = 'tensor' if model.kv_heads % mesh.shape['tensor'] == 0 else None
            whole = NamedSharding(mesh, PartitionSpec())
            split = NamedSharding(mesh, PartitionSpec(None, heads))
            context = jax.set_mesh(mesh)
        # As they mostly are: then they need not be copied to the devices at every step.
        shape = slots, model.vocab_rows
        self._no_history, self._all_allowed = jax.device_put(
            (np.zeros(shape, np.int32), np.ones(shape, bool)), whole
        )

        with context:
            make_cache = functools.partial(model.init_cache, slots, length)
            self.cache = jax.jit(make_cache, out_shardings=split)()
            self._compile(model, slots, whole, split)

    def _compile(self, model, slots: int, whole: Sharding, split: Sharding) -> None:
        def compiled(function, out_shardings, *arguments, donated=1):
            jitted = jax.jit(
                functools.partial(function, model),
                donate_argnums=donated,
                out_shardings=out_shardings,
                compiler_options=decoding.compiler_options(),
            )
            return jitted.lower(*arguments).compile()

        each, number = np.zeros(slots, np.int32), np.int32(0)
        seeds, sampling = each.astype(np.uint32), Sampling(temperature=0).rows(slots)
        self._decode = compiled(
            _decode,
            (split, whole, whole, whole),
            self._params,
            self.cache,
            *jax.device_put((each, each, each, seeds, each, sampling), whole),
            self._no_history,
            self._all_allowed,
        )
        numbers = [number] * 4
        self._fill = {
            width: compiled(
                _fill,
                split,
                self._params,
                self.cache,
                *jax.device_put((np.zeros((1, width), np.int32), *numbers), whole),
            )
            for width in self.widths
        }
        logits = jax.ShapeDtypeStruct((slots, model.vocab_rows), jnp.float32, sharding=whole)
        self._alternatives = compiled(_alternatives, whole, logits, donated=())

    def decode(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        adapters: np.ndarray,
        seeds: np.ndarray,
        steps: np.ndarray,
        sampling: Mapping[str, np.ndarray],
        history: np.ndarray | None,
        allowed: np.ndarray | None,
    ) -> tuple[list[int], list[float]]:
        """One more token for every slot, and its log probability; arrays [B].

        Args:
          adapters: which of the params' each slot has, see `adapters.by_row`.
          history, allowed: [B, V], see `sampling.choose`; None where they change nothing.
        """
        self.cache, tokens, log_probs, self._logits = self._decode(
            self._params,
            self.cache,
            tokens,
            positions,
            adapters,
            seeds,
            steps,
            sampling,
            self._no_history if history is None else history,
            self._all_allowed if allowed is None else allowed,
        )
        return np.asarray(tokens).tolist(), np.asarray(log_probs).tolist()

    def alternatives(self) -> list[list[tuple[int, float]]]:
        """For each slot, the tokens that were most probable in the latest `decode`, best first."""
        ids, log_probs = (np.asarray(found).tolist() for found in self._alternatives(self._logits))
        return [list(zip(*row, strict=True)) for row in zip(ids, log_probs, strict=True)]

    def fill(self, tokens: np.ndarray, start: int, source: int, slot: int, adapter: int) -> None:
        """Writes tokens [1, W] into `slot` from `start` on, behind those that `source` has."""
        self.cache = self._fill[tokens.shape[1]](
            self._params, self.cache, tokens, *map(np.int32, (start, source, slot, adapter))
        )


def _decode(
    model, params, cache, tokens, positions, rows, seeds, steps, sampling, history, allowed
) -> tuple[transformer.Cache, Array, Array, Array]:
    """The cache; tokens and log probabilities [B], see `sampling.choose`; logits float32 [B, V]."""
    logits, cache = model.apply(
        {'params': adapters.by_row(params, rows)},
        tokens[:, None],
        positions=positions[:, None],
        cache=cache,
    )

    def key(seed, step):  # of the first row of `generate_tokens`
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), step)

    keys, logits = jax.vmap(key)(seeds, steps), logits[:, 0].astype(jnp.float32)
    return cache, *choose(keys, logits, history, sampling, allowed), logits


def _fill(model, params, cache, tokens, start, source, slot, adapter) -> transformer.Cache:
    row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, source, 1), cache)
    positions = start + jnp.arange(tokens.shape[1])[None]
    _, row = model.apply(
        {'params': adapters.by_row(params, adapter[None])},
        tokens,
        positions=positions,
        cache=row,
        return_hidden=True,
    )
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, slot, 0), cache, row
    )


def _alternatives(model, logits) -> tuple[Array, Array]:
    return most_probable(logits, min(MOST_ALTERNATIVES, model.vocab_size))
