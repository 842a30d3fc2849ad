"""Params as decoding reads them: layers unrolled, kernels narrow, once and not at every token."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from bigmodels import adapters, errors, trees
from bigmodels.compress import quantize
from bigmodels.models import transformer
from bigmodels.models.parts.kernels import Adapted, Kernel

FLOATS = ('float32', 'bfloat16', 'float16')
WEIGHTS = (*FLOATS, *quantize.FORMATS)
# What is multiplied at every token. Experts and routers are left alone.
KERNELS = re.compile(
    r'^(layers_\d+/(attention|mlp)/(query|key|value|out|up|gate|down)/kernel'
    r'|embed/embedding|unembed)$'
)


def packed(
    model: transformer.Transformer, params: Mapping, weights: str | None = None
) -> tuple[transformer.Transformer, Mapping]:
    """A model and its params for `decoding.generate_tokens`.

    Args:
      weights: how kernels are kept, one of WEIGHTS; by default in the dtype of the computation,
        to which they would be rounded anyway. What is already packed stays as it is; adapters
        are merged.

    Raises:
      UserError: if there is no such way.
    """
    decoding, form = _decoding(model, weights)
    return decoding, _pack(model, [params], form)


def packed_together(
    model: transformer.Transformer, several: Sequence[Mapping], weights: str | None = None
) -> tuple[transformer.Transformer, Mapping]:
    """`packed` for an `engine.Engine` that chooses among adapters, in this order.

    Args:
      several: joined params that differ in their adapters alone, which are kept beside the
        kernels; frozen kernels that are quantised stay as they are.
    """
    decoding, form = _decoding(model, weights)
    return decoding, _pack(model, several, form)


def _decoding(model, weights: str | None) -> tuple[transformer.Transformer, '_Form']:
    weights = weights or model.dtype
    if weights not in WEIGHTS:
        raise errors.UserError(
            f'weights = {weights!r} is not a way to keep them; choose from: {", ".join(WEIGHTS)}.'
        )
    # On other platforms the matmul takes a kernel as it lies, and a copy would only cost memory.
    form = _Form(weights, jax.default_backend() == 'cpu')
    # Logits that are rounded would tie.
    return model.clone(scan_layers=False, logits_dtype='float32'), form


class _Form(NamedTuple):
    """How kernels are kept, and whether transposed."""

    weights: str
    transpose: bool

    def of(self, name: str, leaf: jax.Array) -> jax.Array | Kernel:
        """A kernel [D, F], or an embedding, in this form; other leaves as they are."""
        if not KERNELS.match(name):
            return leaf
        rows = leaf if name == 'embed/embedding' else leaf.T
        if self.weights in quantize.FORMATS:
            return quantize.quantize(rows, quantize.Format(self.weights))
        return Kernel(rows.astype(self.weights)) if self.transpose else leaf.astype(self.weights)


@functools.partial(jax.jit, static_argnames=('model', 'form'))
def _pack(model, several: Sequence[Mapping], form: _Form) -> Mapping:
    """One program: of scanned layers in float32 no unrolled copy in float32 is made."""
    if len(several) == 1:
        several = [adapters.merged(several[0])]
    whole = adapters.together([transformer.unscanned(model, params)[1] for params in several])

    def pack(name: str, leaf):
        if not isinstance(leaf, Adapted):
            return form.of(name, leaf)
        kernel = leaf.kernel if isinstance(leaf.kernel, Kernel) else form.of(name, leaf.kernel)
        down, up = leaf.down.astype(model.dtype), leaf.up.astype(model.dtype)
        return leaf.replace(kernel=kernel, down=down, up=up)

    return trees.map_named(pack, whole, is_leaf=lambda leaf: isinstance(leaf, Adapted))
