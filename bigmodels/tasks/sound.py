"""What tasks of sound share: from recordings of different lengths to features of a batch."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import config, errors
from bigmodels.augmentation.sound import SoundAugmentation
from bigmodels.models.parts import log_mel, pooling
from bigmodels.tasks.base import Defaults, Examples, array_of


@dataclasses.dataclass(frozen=True)
class Waveforms:
    """Recordings of different lengths as vectors of one length.

    Fields:
      sample_rate: Hz, which records must have.
      max_seconds: the length that all recordings of a batch are filled up to with zeros.
    """

    sample_rate: int
    max_seconds: float

    def __post_init__(self):
        if self.most < 1:
            raise errors.UserError(
                f'task.sound: max_seconds = {self.max_seconds} at {self.sample_rate} Hz has no '
                'sample.'
            )

    @property
    def least(self) -> int:
        """Samples that a recording has at least."""
        return 1

    @property
    def most(self) -> int:
        """Samples that all recordings are filled up to."""
        return round(self.max_seconds * self.sample_rate)

    def filled_up(self, raw: Mapping[str, Any], key: str, cut: bool) -> dict[str, np.ndarray]:
        """A record's {'inputs': float32 [most], zero from 'lengths' on}.

        Args:
          cut: longer recordings end at `most`, which a warning says, instead of being an error.

        Raises:
          UserError: naming the record, for one of another sample rate, shorter than `least`, or
            too long.
        """
        samples = array_of(raw, key, 'task.input_key', np.float32)
        where = name_of(raw)
        rate = raw.get('sample_rate', self.sample_rate)
        if rate != self.sample_rate:
            raise errors.UserError(
                f'{where} has {rate:,} Hz, task.sound.sample_rate is {self.sample_rate:,}: set '
                'the sample_rate of its source to the same.'
            )
        if samples.ndim != 1 or len(samples) < self.least:
            raise errors.UserError(
                f'{where} has the shape {samples.shape}: a recording is a vector of at least '
                f'{self.least} samples.'
            )
        if not np.isfinite(samples).all():
            raise errors.UserError(f'{where} has samples that are not finite.')
        if len(samples) > self.most:
            if not cut:
                raise errors.UserError(
                    f'{where} has {len(samples) / self.sample_rate:.2f} s, more than '
                    f'task.sound.max_seconds = {self.max_seconds}: set that higher, or cut it up.'
                )
            warnings.warn(
                f'Recordings of over {self.max_seconds} s are cut there: task.sound.max_seconds.',
                stacklevel=1,
            )
        padded = np.zeros(self.most, np.float32)
        length = min(len(samples), self.most)
        padded[:length] = samples[:length]
        return {'inputs': padded, 'lengths': np.int32(length)}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of what `filled_up` gives, and of an example's weight."""
        return {
            'inputs': jax.ShapeDtypeStruct((self.most,), 'float32'),
            'lengths': jax.ShapeDtypeStruct((), 'int32'),
            'weights': jax.ShapeDtypeStruct((), 'float32'),
        }


@dataclasses.dataclass(frozen=True)
class FrontEnd(Waveforms):
    """Recordings to normalised log-mel features, on the device and differentiable.

    Fields:
      num_mels, floor: see `log_mel.log_mel`.
      window_seconds, hop_seconds: of a frame, and from one to the next; the least recording is one
        window.
    """

    num_mels: int = 40
    window_seconds: float = 0.025
    hop_seconds: float = 0.01
    floor: float = 1e-6

    def __post_init__(self):
        if not 0 < self.hop <= self.window <= self.most:
            raise errors.UserError(
                f'task.sound: a hop of {self.hop}, a window of {self.window} and max_seconds of '
                f'{self.most} samples must be at least 1 and ascend.'
            )

    @property
    def window(self) -> int:
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop(self) -> int:
        return round(self.hop_seconds * self.sample_rate)

    @property
    def least(self) -> int:
        """Samples that a recording has at least: one window."""
        return self.window

    def num_frames(self, lengths):
        """The frames of so many samples, an int or an array of them."""
        return log_mel.num_frames(lengths, self.window, self.hop)

    def features(self, waveforms: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [B, T] and int [B] samples -> float32 [B, L, num_mels] and int [B] frames."""
        features = log_mel.log_mel(
            waveforms,
            self.sample_rate,
            num_mels=self.num_mels,
            window=self.window,
            hop=self.hop,
            fft_size=1 << (self.window - 1).bit_length(),
            floor=self.floor,
        )
        # The first frame is always there; at another speed a recording may be shorter.
        frames = jnp.maximum(self.num_frames(lengths), 1)
        return normalize(features, frames), frames


def normalize(features: jax.Array, lengths: jax.Array) -> jax.Array:
    """Each sequence of [B, L, M] with mean 0 and variance 1 per band over its frames, 0 behind."""
    real = pooling.within(lengths, features.shape[1])[..., None]
    features -= features.mean(1, keepdims=True, where=real)
    features *= jax.lax.rsqrt(jnp.square(features).mean(1, keepdims=True, where=real) + 1e-4)
    return jnp.where(real, features, 0)


def name_of(raw: Mapping[str, Any]) -> str:
    """What to call a record in an error."""
    return str(raw.get('path', 'A recording'))


class SoundTask(Defaults):
    """What tasks of sound have in common.

    Their fields `sound` and `augment` are sections of `sections`. Their model is called with
    features [B, L, M] and their lengths [B], but where a task says otherwise.
    """

    unit = 'recordings'
    sections: ClassVar = {'sound': FrontEnd, 'augment': SoundAugmentation}

    @functools.cached_property
    def front_end(self) -> Waveforms:
        return config.build(self.sections['sound'], self.sound, 'task.sound')

    @functools.cached_property
    def augmentation(self) -> SoundAugmentation:
        return config.build(SoundAugmentation, self.augment or {}, 'task.augment')

    @property
    def sample_rate(self) -> int:
        """Hz of the recordings that `preprocess` takes."""
        return self.front_end.sample_rate

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.input_key: 'audio'}

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record, which in evaluation nothing changes the speed of."""
        task = self if train else dataclasses.replace(self, augment=None)
        return Examples(source, task, stacked=False)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, *self.front_end.features(batch['inputs'], batch['lengths']))

    def augmented_features(self, batch, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Augmented features [B, L, M] of a batch, and their lengths [B]."""
        waveform_rng, feature_rng = jax.random.split(rng)
        waveforms, lengths = self.augmentation.of_waveforms(
            waveform_rng, batch['inputs'], batch['lengths'], self.front_end.sample_rate
        )
        features, frames = self.front_end.features(waveforms, lengths)
        return self.augmentation.of_features(feature_rng, features, frames), frames

    def logits(self, params, model_state, batch, rng=None, train: bool = False):
        """What the model says of a batch, its frames' lengths [B], and its state.

        The batch is augmented in training, by `rng`.
        """
        if train:
            features, frames = self.augmented_features(batch, rng)
        else:
            features, frames = self.front_end.features(batch['inputs'], batch['lengths'])
        logits, model_state = self.model.apply(
            {'params': params, **model_state},
            features,
            frames,
            train=train,
            rngs={'dropout': rng} if train else {},
            mutable=list(model_state) if train else [],
        )
        return logits, frames, model_state
