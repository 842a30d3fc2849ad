"""Augmentation of sound: pure functions of a random key and a batch, on the device.

Axes: B batch, T samples, L frames, M mel bands. Lengths are int [B]; what lies behind is padding.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bigmodels import errors

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SoundAugmentation:
    """What training does to each recording, anew every time; by default nothing.

    Fields:
      speed: the least and the greatest factor, see `change_speed`.
      shift_seconds: see `shift_in_time`.
      noise_decibels: the least and the greatest ratio of signal to noise, see `add_noise`.
      time_masks, time_share, mel_masks, mel_width: see `mask_spectrogram`.
    """

    speed: tuple[float, float] = (1.0, 1.0)
    shift_seconds: float = 0.0
    noise_decibels: tuple[float, float] | None = None
    time_masks: int = 0
    time_share: float = 0.05
    mel_masks: int = 0
    mel_width: int = 8

    def __post_init__(self):
        for name in ('shift_seconds', 'time_masks', 'mel_masks', 'mel_width'):
            if getattr(self, name) < 0:
                raise errors.UserError(
                    f'config.task.augment.{name} = {getattr(self, name)} must not be negative.'
                )
        slow, fast = self.speed
        if not 0 < slow <= fast:
            raise errors.UserError(
                f'config.task.augment.speed = {self.speed} must be two factors, the lower one '
                f'first.'
            )
        least, greatest = self.noise_decibels or (0, 0)
        if not least <= greatest:
            raise errors.UserError(
                f'config.task.augment.noise_decibels = {self.noise_decibels} must be two ratios, '
                f'the lower one first.'
            )
        if not 0 <= self.time_share <= 1:
            raise errors.UserError(
                f'config.task.augment.time_share = {self.time_share} must be from 0 to 1.'
            )

    def of_waveforms(
        self, rng: Array, waveforms: Array, lengths: Array, sample_rate: int
    ) -> tuple[Array, Array]:
        """float [B, T] and their lengths, with another speed, start and noise."""
        speed_rng, shift_rng, noise_rng = jax.random.split(rng, 3)
        if self.speed != (1.0, 1.0):
            waveforms, lengths = change_speed(speed_rng, waveforms, lengths, *self.speed)
        if self.shift_seconds:
            most = round(self.shift_seconds * sample_rate)
            waveforms, lengths = shift_in_time(shift_rng, waveforms, lengths, most)
        if self.noise_decibels is not None:
            waveforms = add_noise(noise_rng, waveforms, lengths, *self.noise_decibels)
        return waveforms, lengths

    def of_features(self, rng: Array, features: Array, lengths: Array) -> Array:
        """float [B, L, M] with parts masked."""
        return mask_spectrogram(
            rng,
            features,
            lengths,
            time_masks=self.time_masks,
            time_share=self.time_share,
            mel_masks=self.mel_masks,
            mel_width=self.mel_width,
        )


def change_speed(
    rng: Array, waveforms: Array, lengths: Array, slowest: float, fastest: float
) -> tuple[Array, Array]:
    """Each waveform [B, T] played at a random speed, its pitch changed with it (Ko et al. 2015).

    By linear interpolation. None is slowed so much that it would not fit into T.

    Returns:
      The waveforms, zero behind their ends, and their new lengths.
    """
    b, t = waveforms.shape
    factors = jax.random.uniform(rng, (b,), minval=slowest, maxval=fastest)
    factors = jnp.maximum(factors, lengths / t)
    new_lengths = jnp.minimum(jnp.ceil(lengths / factors).astype(lengths.dtype), t)
    places = jnp.arange(t) * factors[:, None]
    before = jnp.floor(places).astype(jnp.int32)
    share = places - before
    last = (lengths - 1)[:, None]
    left, right = (
        jnp.take_along_axis(waveforms, jnp.minimum(index, last), axis=1)
        for index in (before, before + 1)
    )
    played = left * (1 - share) + right * share
    return jnp.where(jnp.arange(t) < new_lengths[:, None], played, 0), new_lengths


def shift_in_time(rng: Array, waveforms: Array, lengths: Array, most: int) -> tuple[Array, Array]:
    """Each waveform [B, T] behind 0 to `most` zeros, as far as T has room; and its new length."""
    b, t = waveforms.shape
    room = jnp.minimum(most, t - lengths)
    shift = jax.random.randint(rng, (b,), 0, room + 1)
    places = jnp.arange(t) - shift[:, None]
    shifted = jnp.take_along_axis(waveforms, jnp.maximum(places, 0), axis=1)
    return jnp.where(places >= 0, shifted, 0), lengths + shift.astype(lengths.dtype)


def add_noise(rng: Array, waveforms: Array, lengths: Array, least: float, greatest: float) -> Array:
    """Each waveform [B, T] with white noise, the signal least to greatest decibels above it."""
    ratio_rng, noise_rng = jax.random.split(rng)
    ratio = jax.random.uniform(ratio_rng, lengths.shape, minval=least, maxval=greatest)
    power = jnp.square(waveforms).sum(1) / lengths
    scale = jnp.sqrt(power * 10 ** (-ratio / 10))
    noise = scale[:, None] * jax.random.normal(noise_rng, waveforms.shape)
    return waveforms + jnp.where(jnp.arange(waveforms.shape[1]) < lengths[:, None], noise, 0)


def mask_spectrogram(
    rng: Array,
    features: Array,
    lengths: Array,
    *,
    time_masks: int,
    time_share: float,
    mel_masks: int,
    mel_width: int,
) -> Array:
    """SpecAugment (Park et al. 2019) without time warping: spans of features [B, L, M] become 0.

    Zero is the mean of normalised features.

    Args:
      time_masks, time_share: so many spans of time, each of a random width up to this share of
        the sequence (Park et al. 2020).
      mel_masks, mel_width: so many spans of mel bands, each of a random width up to this many.
    """
    time_rng, mel_rng = jax.random.split(rng)
    _, num_frames, num_mels = features.shape
    widest = jnp.floor(time_share * lengths).astype(jnp.int32)
    in_time = _in_spans(time_rng, time_masks, widest, lengths, num_frames)
    widest, bands = (jnp.full_like(lengths, n) for n in (min(mel_width, num_mels), num_mels))
    in_bands = _in_spans(mel_rng, mel_masks, widest, bands, num_mels)
    return jnp.where(in_time[:, :, None] | in_bands[:, None], 0, features)


def _in_spans(rng: Array, spans: int, widest: Array, limits: Array, count: int) -> Array:
    """Whether each of `count` places lies in a random span within its limit: bool [B, count]."""
    width_rng, start_rng = jax.random.split(rng)
    shape = (len(limits), spans)
    widths = jax.random.randint(width_rng, shape, 0, widest[:, None] + 1)
    starts = jax.random.randint(start_rng, shape, 0, limits[:, None] - widths + 1)
    places = jnp.arange(count)[:, None, None]
    return ((places >= starts) & (places < starts + widths)).any(-1).T
