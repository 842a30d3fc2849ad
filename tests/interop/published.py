"""Tiny models as transformers saves them, as experiments/interop_parity.py keeps them."""

import functools
import json
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import safetensors

from bigmodels.interop import decoders, directories, families, weights

CASES = {path.stem: path for path in sorted((pathlib.Path(__file__).parent / 'golden').iterdir())}
COLLECTIONS = ('batch_stats',)  # that models have beside their parameters
PROMPT = 12  # tokens of it in a decoder's `inputs`, greedy ones behind them


class Golden(NamedTuple):
    """config.json, tensors, and what transformers makes of them.

    inputs are what the model is called with, such as tokens [1, L] or images [B, H, W, C]; targets
    -100 where there is none; gradients (sum, norm) of each tensor of parameters by name; said is
    what Whisper's own generation makes of the inputs.
    """

    config: dict
    tensors: dict[str, np.ndarray]
    inputs: tuple[np.ndarray, ...]
    targets: np.ndarray
    logits: np.ndarray
    gradients: np.ndarray
    said: np.ndarray | None = None

    @property
    def family(self) -> families.Family:
        return families.of_config(self.config)

    def model(self, **changes) -> nn.Module:
        return self.family.model(**self.family.fields(self.config) | changes)

    def params(self, model: nn.Module):
        params, further = self.variables(model)
        assert not further
        return params

    def variables(self, model: nn.Module) -> tuple[dict, dict]:
        """A model's parameters, and its further collections."""
        vocab_size = getattr(model, 'vocab_size', None)
        loaded = weights.load(self.family.table, self.tensors, self.shapes(model), vocab_size)
        further = {name: loaded.pop(name) for name in COLLECTIONS if name in loaded}
        return loaded, further

    def shapes(self, model: nn.Module):
        """Of a model's parameters and, by their names, further collections, on the first device."""
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        init = jax.eval_shape(model.init, jax.random.key(0), *(x[:1] for x in self.inputs))
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), init
        )
        return {**shapes.pop('params'), **shapes}

    def save(self, directory: pathlib.Path, **changes) -> pathlib.Path:
        """As a directory of a published model, with other entries of its config.json."""
        directory.mkdir(exist_ok=True)
        directories.write_tensors(directory, self.tensors.items())
        directories.write_json(directory / directories.CONFIG, self.config | changes)
        return directory


@functools.cache
def golden(name: str) -> Golden:
    """One of CASES."""
    with safetensors.safe_open(CASES[name], 'numpy') as file:
        config = json.loads(file.metadata()['config'])
    tensors = directories.mapped(CASES[name])
    names = [name for name in tensors if name.startswith('golden.')]
    own = {name.removeprefix('golden.'): tensors.pop(name) for name in names}
    inputs = tuple(own.pop(name) for name in sorted(own) if name.startswith('inputs'))
    return Golden(config, tensors, inputs, **own)


DECODERS = [case for case in CASES if golden(case).family in decoders.DECODERS]
