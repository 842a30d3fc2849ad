"""Recordings made sample by sample, of the class and the speaker asked for."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import config, errors, losses, metrics
from bigmodels.data import audio
from bigmodels.deploy import sound as deploy
from bigmodels.deploy.sampling import Sampling
from bigmodels.models.parts import mu_law, pooling
from bigmodels.tasks.base import Defaults, Numbered, checked_labels, checked_seeds, field_of
from bigmodels.tasks.sound import Waveforms, name_of


@dataclasses.dataclass(frozen=True)
class SoundGeneration(Defaults):
    """Each sample of a recording from all before it, its class and its speaker (WaveNet).

    Training sees a stretch of each recording, drawn anew every time; evaluation whole recordings.

    Fields:
      model: a `WaveNet`.
      sound: the section of `sound.Waveforms`. Longer recordings are cut at its max_seconds.
      crop_samples: of a stretch. Its first samples only tell what comes before the others, unless
        the recording begins there.
      seconds: of a recording that is made.
      temperature: of its samples, see `Sampling`.
      label_dropout: the share of training examples whose class is not told.
      guidance: how far samples follow the class, see `deploy.sound.generate`.
      input_key, label_key, speaker_key: of the source's records.
    """

    model: nn.Module
    sound: Mapping
    crop_samples: int
    seconds: float
    temperature: float = 1.0
    label_dropout: float = 0.0
    guidance: float = 1.0
    input_key: str = 'audio'
    label_key: str = 'label'
    speaker_key: str = 'speaker'

    unit = 'recordings'
    sections: ClassVar = {'sound': Waveforms}
    answer_fields: ClassVar = ('seconds', 'temperature', 'guidance')
    target_keys: ClassVar = ('input_key', 'label_key', 'speaker_key')

    def __post_init__(self):
        field = self.model.receptive_field
        if not field < self.crop_samples <= self.waveforms.most:
            raise errors.UserError(
                f'config.task.crop_samples = {self.crop_samples} must be over {field}, what the '
                f'model sees, and at most the {self.waveforms.most} of task.sound.max_seconds.'
            )
        if self.num_made < 1:
            raise errors.UserError(f'config.task.seconds = {self.seconds} has no sample.')
        if not 0 <= self.label_dropout <= 1:
            raise errors.UserError(
                f'config.task.label_dropout = {self.label_dropout} must be from 0 to 1.'
            )
        if self.guidance != 1 and not self.label_dropout:
            raise errors.UserError(
                f'config.task.guidance = {self.guidance} needs task.label_dropout: recordings of '
                'no class, which the model learns by it.'
            )
        _ = self.sampling  # making it checks it

    @property
    def waveforms(self) -> Waveforms:
        return config.build(Waveforms, self.sound, 'task.sound')

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature)

    @property
    def num_made(self) -> int:
        """The samples of a recording that is made."""
        return round(self.seconds * self.waveforms.sample_rate)

    @property
    def record_fields(self) -> dict[str, str]:
        """A class, a speaker, and a number that tells what is drawn; see `data.inputs`."""
        return {self.label_key: 'value', self.speaker_key: 'value', 'seed': 'value'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'targets', 'speakers' int32, and what follows from sound and a seed}.

        Those are 'inputs' float32 [T] with 'lengths' int32, and 'seeds' uint32.

        Raises:
          UserError: see `sound.Waveforms.filled_up`; and naming the record, for a class, a speaker
            or a seed that is missing, no integer or out of range.
        """
        example = {}
        with errors.told_of(name_of(raw)):
            for name, key, limit in (
                ('targets', 'label_key', 'num_classes'),
                ('speakers', 'speaker_key', 'num_speakers'),
            ):
                field, most = getattr(self, key), getattr(self.model, limit)
                value = field_of(raw, field, f'task.{key}')
                key = f'task.{key} = {field!r}'
                example[name] = checked_labels(value, most, key, f'model.{limit}')
            if 'seed' in raw:
                example['seeds'] = checked_seeds(raw['seed'])
        if self.input_key in raw:
            example |= self.waveforms.filled_up(raw, self.input_key, cut=True)
        return example

    def postprocess(self, prediction: np.ndarray) -> dict[str, audio.Sound]:
        """Codes [T] -> {'sound'}."""
        samples = mu_law.decode(prediction, self.model.num_levels)
        return {'sound': audio.Sound(np.asarray(samples), self.waveforms.sample_rate)}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record; its index is its seed."""
        return Numbered(source, self, stacked=False)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        scalars = dict.fromkeys(('targets', 'speakers'), jax.ShapeDtypeStruct((), 'int32'))
        seeds = jax.ShapeDtypeStruct((), 'uint32')
        return self.waveforms.shapes() | scalars | {'seeds': seeds}

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        inputs = batch['inputs'][:, :2].astype(jnp.int32)
        return self.model.init(rng, inputs, batch['targets'], batch['speakers'], inputs)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The cross-entropy of samples, in nats."""
        waveforms, lengths, labels = batch['inputs'], batch['lengths'], batch['targets']
        if train:
            stretch_key, label_key = jax.random.split(rng)
            waveforms, starts, counts = self._stretches(stretch_key, waveforms, lengths)
            dropped = jax.random.bernoulli(label_key, self.label_dropout, labels.shape)
            labels = jnp.where(dropped, self.model.num_classes, labels)
        else:
            starts, counts = jnp.zeros_like(lengths), pooling.within(lengths, waveforms.shape[1])
        codes = mu_law.encode(waveforms, self.model.num_levels)
        silence = mu_law.silence(self.model.num_levels)
        before = jnp.pad(codes, ((0, 0), (1, 0)), constant_values=silence)[:, :-1]
        places = starts[:, None] + jnp.arange(codes.shape[1])
        logits = self.model.apply(
            {'params': params},
            before,
            labels,
            batch['speakers'],
            places / lengths[:, None],
            train=train,
        )
        weights = counts * batch['weights'][:, None]
        pair = metrics.pair(losses.softmax_cross_entropy(logits, codes), weights)
        return metrics.mean(pair), ({'loss': pair}, model_state)

    def most_counts(self, weights: jax.Array) -> int:
        """The loss counts samples, in training of stretches."""
        return self.crop_samples

    def _stretches(self, rng, waveforms, lengths) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each recording a stretch [B, crop_samples], its start, and which samples count."""
        size, field = self.crop_samples, self.model.receptive_field
        # From before the first to behind the last, else few would hold the samples at the ends.
        latest = jnp.maximum(lengths - size, 0)
        starts = jax.random.randint(rng, lengths.shape, -field, latest + field + 1)
        starts = jnp.clip(starts, 0, latest)
        cut = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, size))
        whole_past = (starts[:, None] == 0) | (jnp.arange(size) >= field)
        return cut(waveforms, starts), starts, whole_past & pooling.within(lengths - starts, size)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Codes int32 [B, T] of a recording for each of 'targets', 'speakers' and 'seeds' [B]."""
        return deploy.generate(
            self.model,
            params,
            batch['targets'],
            batch['speakers'],
            batch['seeds'],
            self.num_made,
            self.sampling,
            self.guidance,
        )

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds the loss in bits per sample."""
        return {**values, 'bits': values['loss'] / math.log(2)}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        m, rate = self.model, self.waveforms.sample_rate
        return {
            'model': f'{type(m).__name__}, {m.num_layers} layers of {m.embed_dim}, which see '
            f'{m.receptive_field:,} samples ({m.receptive_field / rate:.3f} s)'
        }
