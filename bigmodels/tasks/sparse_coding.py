"""Activations of a network as sums of few features each."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, metrics
from bigmodels.tasks.base import Defaults, Examples, array_of, columns_of

SCALE = 'scale.json'


@dataclasses.dataclass(frozen=True)
class SparseCoding(Defaults):
    """Vectors [B, D] -> themselves, by a model of sparse features.

    Fields:
      model: a `SparseAutoencoder`, or another module with its call.
      input_key: of the source's records.
      sparsity: how much the sum of an example's features counts in the loss; for a model that does
        not limit their number.
      scale: what vectors are divided by, the root of their mean square; `fit` finds it.
    """

    model: nn.Module
    input_key: str = 'activations'
    sparsity: float = 0.0
    scale: float | None = None

    unit = 'vectors'

    def fit(self, source: Sequence) -> Self:
        """With the scale of the training records."""
        vectors = columns_of(source, {'task.input_key': (self.input_key,)})[self.input_key]
        numbers = vectors.dtype.kind in 'fiu' and np.isfinite(vectors).all()
        if vectors.ndim != 2 or not numbers:
            raise errors.UserError(
                f'The field {self.input_key!r} must be a vector of finite numbers in every record: '
                f'all together are of {list(vectors.shape)}.'
            )
        scale = float(np.sqrt(np.square(vectors, dtype=np.float64).mean()))
        return dataclasses.replace(self, scale=scale or 1.0)

    def save(self, directory: Path) -> None:
        """Writes the scale."""
        (directory / SCALE).write_text(json.dumps(self.scale) + '\n')

    def restored(self, directory: Path) -> Self:
        """With the scale that `save` wrote."""
        return dataclasses.replace(self, scale=json.loads((directory / SCALE).read_text()))

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record, or several stacked -> {'inputs' float32 [D]}, as they are.

        Raises:
          UserError: for a record without a vector, or one of values that are not finite.
        """
        inputs = array_of(raw, self.input_key, 'task.input_key', np.float32)
        if not np.isfinite(inputs).all():
            raise errors.UserError(f'The field {self.input_key!r} has a value that is not finite.')
        return {'inputs': inputs}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record."""
        return Examples(source, self)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'])

    def coded(self, params: Any, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Vectors [..., D] -> their features [..., F], and what these make of them [..., D]."""
        flat = vectors.reshape(-1, vectors.shape[-1]) / self.scale
        features, made = self.model.apply({'params': params}, flat)
        shape = vectors.shape[:-1]
        return features.reshape(*shape, -1), (made * self.scale).reshape(vectors.shape)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Mean squared error of scaled vectors, with the penalty; active features of an example."""
        features, made = self.coded(params, batch['inputs'])
        weights = batch['weights']
        error = jnp.square((made - batch['inputs']) / self.scale).mean(-1)
        pairs = {
            'loss': metrics.pair(error + self.sparsity * features.sum(-1), weights),
            'mse': metrics.pair(error, weights),
            'active': metrics.pair((features > 0).sum(-1), weights),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Features [B, F]."""
        return self.coded(params, batch['inputs'])[0]

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """What `scores` are computed from."""
        features, made = self.coded(params, batch['inputs'])
        error = jnp.square(made - batch['inputs']).sum(-1)
        return {'active': features > 0, 'vectors': batch['inputs'], 'error': error}

    score_names = ('explained_variance', 'dead_features')

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The share of the variance that is explained, and of features that are never active."""
        variance = np.square(outcomes['vectors'] - outcomes['vectors'].mean(0)).sum()
        return {
            'explained_variance': float(1 - outcomes['error'].sum() / variance),
            'dead_features': float(1 - outcomes['active'].any(0).mean()),
        }

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        sizes = {name: getattr(self.model, name, None) for name in ('num_features', 'top_k')}
        told = [f'{name} {size}' for name, size in sizes.items() if size]
        return {'model': ', '.join([type(self.model).__name__, *told])}
