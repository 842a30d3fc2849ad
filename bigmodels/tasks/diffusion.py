"""Images made from noise, of the class asked for."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, metrics
from bigmodels.data import images
from bigmodels.tasks.base import Defaults, Numbered, array_of, checked_labels, checked_seeds

GOLDEN_RATIO = np.uint32(2_654_435_769)  # its fractional part, of 2**32


@dataclasses.dataclass(frozen=True)
class Diffusion(Defaults):
    """Flow matching (Lipman et al. 2023; Liu et al. 2023): noise is moved to images along lines.

    At time t an image is x_t = (1 - t) noise + t image, and the model learns the velocity
    image - noise from x_t, t and the class. Samples follow the velocity from noise at 0 to 1.

    Fields:
      model: maps images [B, ...], times [B] and labels [B] to velocities [B, ...]; the label
        `num_classes` is that of no class.
      image_shape: of the images, [H, W] or [H, W, C].
      input_key, label_key: of the source's records.
      mean, std: images are normalised to (x - mean) / std.
      label_dropout: the share of training examples whose class is not told.
      guidance: how far samples follow the class: v(no class) + guidance * (v(class) - v(no class)),
        so 1 is as trained (Ho and Salimans 2022, with w = guidance - 1).
      sampling_steps: of Heun's method, each two evaluations.
    """

    model: nn.Module
    image_shape: Sequence[int]
    input_key: str = 'image'
    label_key: str = 'label'
    mean: float = 127.5
    std: float = 127.5
    label_dropout: float = 0.1
    guidance: float = 2.0
    sampling_steps: int = 16

    target_keys: ClassVar = ('input_key', 'label_key')
    answer_fields: ClassVar = ('guidance', 'sampling_steps')

    def __post_init__(self):
        if not 0 <= self.label_dropout <= 1:
            raise errors.UserError(
                f'config.task.label_dropout = {self.label_dropout} must be from 0 to 1.'
            )
        if self.guidance != 1 and not self.label_dropout:
            raise errors.UserError(
                f'config.task.guidance = {self.guidance} needs task.label_dropout: images of no '
                'class, which the model learns by it.'
            )
        if self.sampling_steps < 1:
            raise errors.UserError(
                f'config.task.sampling_steps = {self.sampling_steps} must be at least 1.'
            )
        if len(self.image_shape) not in (2, 3):
            raise errors.UserError(
                f'config.task.image_shape = {tuple(self.image_shape)} must be [H, W] or [H, W, C].'
            )

    @property
    def record_fields(self) -> dict[str, str]:
        """A class, and a number that tells its noise; see `data.inputs`."""
        return {self.label_key: 'value', 'seed': 'value'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record, or several stacked -> {'targets' int32, and what it has of 'inputs' float32
        of `image_shape` and 'seeds' uint32}.

        Raises:
          UserError: for a record without a label, one out of range, or an image of another shape.
        """
        labels = array_of(raw, self.label_key, 'task.label_key')
        key = f'task.label_key = {self.label_key!r}'
        example = {'targets': checked_labels(labels, self.model.num_classes, key)}
        if self.input_key in raw:
            image, shape = array_of(raw, self.input_key), tuple(self.image_shape)
            if image.shape[labels.ndim :] != shape:
                raise errors.UserError(
                    f'The image is {list(image.shape)}, config.task.image_shape {list(shape)}.'
                )
            example['inputs'] = images.normalized(image, self.mean, self.std)
        if 'seed' in raw:
            example['seeds'] = checked_seeds(raw['seed'])
        return example

    def postprocess(self, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """A sample -> {'image': uint8 [H, W] or [H, W, 3]}."""
        pixels = np.clip(np.round(prediction * self.std + self.mean), 0, 255).astype(np.uint8)
        return {'image': pixels[..., 0] if pixels.shape[2:] == (1,) else pixels}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record; its index is its seed."""
        return Numbered(source, self)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        return {
            'inputs': jax.ShapeDtypeStruct(tuple(self.image_shape), 'float32'),
            'targets': jax.ShapeDtypeStruct((), 'int32'),
            'seeds': jax.ShapeDtypeStruct((), 'uint32'),
            'weights': jax.ShapeDtypeStruct((), 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        inputs = batch['inputs']
        return self.model.init(rng, inputs, jnp.zeros(len(inputs)), batch['targets'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The mean squared error of velocities.

        In training times are spread evenly over a batch from a random start (Kingma et al. 2021,
        appendix I.1). In evaluation an example's seed tells its noise and its time, which are
        spread evenly over a set: multiples of the golden ratio, without their whole part.
        """
        inputs, labels = batch['inputs'], batch['targets']
        count = len(inputs)
        if train:
            time_key, noise_key, label_key = jax.random.split(rng, 3)
            times = (jax.random.uniform(time_key) + jnp.arange(count) / count) % 1
            noise = jax.random.normal(noise_key, inputs.shape)
            dropped = jax.random.bernoulli(label_key, self.label_dropout, (count,))
            labels = jnp.where(dropped, self.model.num_classes, labels)
        else:
            times = (batch['seeds'] * GOLDEN_RATIO).astype(jnp.float32) / 2.0**32
            noise = self._noise(batch['seeds'])
        share = times.reshape(-1, *[1] * (inputs.ndim - 1))
        found, model_state = self.model.apply(
            {'params': params, **model_state},
            (1 - share) * noise + share * inputs,
            times,
            labels,
            train=train,
            mutable=list(model_state) if train else [],
        )
        error = jnp.square(found - (inputs - noise)).reshape(count, -1).mean(1)
        pairs = {'loss': metrics.pair(error, batch['weights'])}
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """A sample [B, ...] for each of 'targets' [B] and its own of 'seeds' [B]."""
        noise = self._noise(batch['seeds'])
        return self.sample(params, model_state, noise, batch['targets'])

    def _noise(self, seeds: jax.Array) -> jax.Array:
        """Of each of uint32 [B] its own: [B, ...]."""

        def noise_of(seed):
            return jax.random.normal(jax.random.fold_in(jax.random.key(0), seed), self.image_shape)

        return jax.vmap(noise_of)(seeds)

    def sample(self, params, model_state, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Normalised images [B, ...] from noise [B, ...], of classes int [B], by Heun's method."""
        variables = {'params': params, **model_state}
        nothing = jnp.full_like(labels, self.model.num_classes)

        def velocity(x, time):
            times = jnp.full(2 * len(x), time)
            both = self.model.apply(
                variables, jnp.concatenate([x, x]), times, jnp.concatenate([labels, nothing])
            )
            of_class, of_none = jnp.split(both, 2)
            return of_none + self.guidance * (of_class - of_none)

        def step(i, x):
            now, then = i / self.sampling_steps, (i + 1) / self.sampling_steps
            first = velocity(x, now)
            second = velocity(x + first / self.sampling_steps, then)
            return x + (first + second) / (2 * self.sampling_steps)

        return jax.lax.fori_loop(0, self.sampling_steps, step, noise)

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        size = ' x '.join(map(str, self.image_shape))
        return {'model': f'{type(self.model).__name__}, {self.model.num_classes} classes of {size}'}
