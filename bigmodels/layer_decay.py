"""Learning rates that shrink from the last layer of a network to the first.

What lies near the input is general and moves least when a trained network is trained further
(Howard and Ruder 2018, section 3.2; Clark et al. 2020, appendix B).
"""

import re
from typing import Any

import numpy as np

from bigmodels import errors, trees

_LAYER = re.compile(r'(?:^|/)layers(?:_(\d+))?(?:_\w+)?(?:/|$)')
_EMBEDDING = re.compile(
    r'(?:^|/)(?:(?:\w+_)?(?:embed|token)|embed_norm|frequencies|subsample_\d+)(?:/|$)'
)


def layer_factors(params: Any, decay: float) -> Any:
    """The factor of each parameter's learning rate, a float or, for scanned layers, [layers, 1...].

    Of n layers the last has the factor `decay`, the first decay**n, and embeddings and their norm,
    or what subsamples sound, decay**(n + 1); everything else, such as a head, has 1. Layers are
    named layers_0 to layers_(n - 1), or `layers` where they are stacked; each folder that holds
    such names is a network of its own, and the embeddings belong to the deepest one.

    Args:
      params: arrays or shapes.

    Raises:
      UserError: if there are no such layers.
    """
    depths = {}
    for name, leaf in trees.flatten_named(params).items():
        if found := _LAYER.search(name):
            depth = int(found[1]) + 1 if found[1] else leaf.shape[0]
            folder = name[: found.start()]
            depths[folder] = max(depths.get(folder, 0), depth)
    if not depths:
        raise errors.UserError(
            f'optimizer.layer_decay: no parameter is of a layer named layers_0 or layers; there '
            f'are {errors.some(list(trees.flatten_named(params)))}. Use learning_rate_rules.'
        )

    def factor(name: str, leaf: Any) -> float | np.ndarray:
        if found := _LAYER.search(name):
            depth = depths[name[: found.start()]]
            if found[1]:
                return decay ** (depth - int(found[1]))
            powers = depth - np.arange(depth, dtype=np.float32)
            return (decay**powers).reshape(-1, *(1,) * (len(leaf.shape) - 1))
        return decay ** (max(depths.values()) + 1) if _EMBEDDING.search(name) else 1.0

    return trees.map_named(factor, params)
