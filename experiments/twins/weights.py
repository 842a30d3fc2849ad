"""Our parameters in PyTorch modules whose parts have the same names."""

import numpy as np
import torch

from bigmodels import trees

# The last part of our name -> PyTorch's; others are the same.
NAMES = {
    'kernel': 'weight',
    'scale': 'weight',
    'embedding': 'weight',
    'mean': 'running_mean',
    'variance': 'running_var',
}


def load(module: torch.nn.Module, *ours) -> None:
    """Copies trees of arrays into a module, every one of whose own must be among them.

    Raises:
      RuntimeError: if a name or a shape differs.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if 'num_batches' in name}
    for tree in ours:
        for name, leaf in trees.flatten_named(tree).items():
            *path, last = name.split('/')
            state['.'.join([*path, NAMES.get(last, last)])] = _tensor(np.asarray(leaf), last)
    module.load_state_dict(state)


def _tensor(array: np.ndarray, kind: str) -> torch.Tensor:
    """Kernels are [inputs, outputs] or [height, width, inputs, outputs] here, transposed there."""
    if kind == 'kernel':
        array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
    return torch.tensor(array)
