"""Tiny models as transformers saves them, as experiments/interop_parity.py keeps them."""

import functools
import json
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import safetensors

from bigmodels.interop import directories, families, weights

CASES = {path.stem: path for path in sorted((pathlib.Path(__file__).parent / 'golden').iterdir())}
DECODERS = [case for case in CASES if not case.startswith(('bert', 'roberta', 'vit'))]
PROMPT = 12  # tokens of it in a decoder's `inputs`, greedy ones behind them


class Golden(NamedTuple):
    """config.json, tensors, and what transformers makes of them.

    inputs are tokens [1, L] or images [B, H, W, C]; targets -100 where there is none; gradients
    (sum, norm) of each tensor by name.
    """

    config: dict
    tensors: dict[str, np.ndarray]
    inputs: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    gradients: np.ndarray

    @property
    def family(self) -> families.Family:
        return families.of_config(self.config)

    def model(self, **changes) -> nn.Module:
        return self.family.model(**self.family.fields(self.config) | changes)

    def params(self, model: nn.Module):
        shapes = self.shapes(model)
        return weights.load(self.family.table, self.tensors, shapes, self.vocab_size)

    @property
    def vocab_size(self) -> int | None:
        return self.config.get('vocab_size')

    def shapes(self, model: nn.Module):
        """Of a model's parameters, on the first device."""
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        init = jax.eval_shape(model.init, jax.random.key(0), self.inputs[:1])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            init['params'],
        )

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
    own = {
        key: tensors.pop(f'golden.{key}') for key in ('inputs', 'targets', 'logits', 'gradients')
    }
    return Golden(config, tensors, **own)
