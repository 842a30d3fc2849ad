"""Params as decoding reads them: layers unrolled, kernels narrow, once and not at every token."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax

from bigmodels import adapters, errors, trees
from bigmodels.compress import quantize
from bigmodels.models import transformer
from bigmodels.models.parts.kernels import Kernel

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
    weights = weights or model.dtype
    if weights not in WEIGHTS:
        raise errors.UserError(
            f'weights = {weights!r} is not a way to keep them; choose from: {", ".join(WEIGHTS)}.'
        )
    # On other platforms the matmul takes a kernel as it lies, and a copy would only cost memory.
    transpose = jax.default_backend() == 'cpu'
    decoding = model.clone(scan_layers=False, logits_dtype='float32')  # rounded ones would tie
    return decoding, _pack(model, params, weights, transpose)


@functools.partial(jax.jit, static_argnames=('model', 'weights', 'transpose'))
def _pack(model, params: Mapping, weights: str, transpose: bool) -> Mapping:
    """One program: of scanned layers in float32 no unrolled copy in float32 is made."""

    def pack(name: str, leaf: Any):
        if not KERNELS.match(name):
            return leaf
        rows = leaf if name == 'embed/embedding' else leaf.T
        if weights in quantize.FORMATS:
            return quantize.quantize(rows, quantize.Format(weights))
        return Kernel(rows.astype(weights)) if transpose else leaf.astype(weights)

    params = adapters.merged(params)
    return trees.map_named(pack, transformer.unscanned(model, params)[1])
