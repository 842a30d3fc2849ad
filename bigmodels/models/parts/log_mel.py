"""Log-mel features of a waveform, on the device and differentiable."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors

WHISPER_WINDOW, WHISPER_HOP = 400, 160  # samples


def log_mel(
    waveform: jax.Array,
    sample_rate: int,
    *,
    num_mels: int = 80,
    window: int = 400,
    hop: int = 160,
    fft_size: int = 512,
    band: tuple[float, float] | None = None,
    scale: Literal['htk', 'slaney'] = 'htk',
    floor: float = 1e-6,
) -> jax.Array:
    """The logarithm of a waveform's power in mel bands, frame by frame.

    Frame t covers the samples t * hop to t * hop + window, under a periodic Hann window; samples
    behind the last whole frame are left out. The gradient is zero where the power is below the
    floor.

    Args:
      waveform: float [B, T], full scale 1.
      sample_rate: Hz.
      window, hop, fft_size: samples; frames are filled up with zeros to `fft_size`.
      band: Hz, of the first filter's lower and the last one's upper edge; by default all.
      scale: see `mel_filters`.
      floor: least power.

    Returns:
      float32 [B, num_frames(T, window, hop), num_mels].

    Raises:
      UserError: if T is less than a window, a window is longer than the FFT, or the band does not
        lie within the frequencies that there are.
    """
    length = waveform.shape[-1]
    if window > min(length, fft_size):
        raise errors.UserError(
            f'A window of {window} samples must fit into the FFT of {fft_size} and into the '
            f'waveform of {length}.'
        )
    filters = mel_filters(num_mels, fft_size, sample_rate, band, scale)
    starts = hop * np.arange(num_frames(length, window, hop))
    frames = waveform.astype(jnp.float32)[:, starts[:, None] + np.arange(window)]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(frames * hann.astype(np.float32), fft_size)
    power = spectrum.real**2 + spectrum.imag**2  # abs has no gradient at 0
    mels = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(mels, floor))


def whisper_features(waveform: jax.Array, sample_rate: int, num_mels: int) -> jax.Array:
    """The features of Whisper (Radford et al. 2022, section 2.2; its released code, audio.py).

    Windows of 400 samples are centred on every 160th one, and the sound is mirrored at its ends.
    Decimal logarithms end 8 below the loudest of each recording.

    Args:
      waveform: float [B, T], full scale 1, filled up with the silence that is heard too; T is over
        200.

    Returns:
      float32 [B, T // 160, num_mels].
    """
    window, hop = WHISPER_WINDOW, WHISPER_HOP
    mirrored = jnp.pad(waveform, ((0, 0), (window // 2, window // 2)), mode='reflect')
    features = log_mel(
        mirrored[:, : waveform.shape[1] // hop * hop + window - hop],
        sample_rate,
        num_mels=num_mels,
        window=window,
        hop=hop,
        fft_size=window,
        scale='slaney',
        floor=1e-10,
    )
    features /= np.log(10)
    loudest = features.max((1, 2), keepdims=True)
    return (jnp.maximum(features, loudest - 8) + 4) / 4


def num_frames(length, window: int, hop: int):
    """The number of whole frames in `length` samples, a number or an array of them."""
    return (length - window) // hop + 1


def mel_filters(
    num_mels: int,
    fft_size: int,
    sample_rate: int,
    band: tuple[float, float] | None = None,
    scale: Literal['htk', 'slaney'] = 'htk',
) -> np.ndarray:
    """Triangular filters, equally spaced on a mel scale: float32 [fft_size // 2 + 1, num_mels].

    A filter rises from its left neighbour's centre to its own and falls to the right one's.
    'htk': 2595 log10(1 + f / 700) (Young et al., The HTK Book, section 5.4), height 1. 'slaney':
    linear below 1 kHz, then 27 steps for a factor of 6.4 (Slaney, Auditory Toolbox, Interval
    Research 1998-010, mfcc), and every filter of area 1 over Hz.

    Raises:
      UserError: if the band does not lie within 0 and half the sample rate, or a filter has no
        frequency of the FFT in it.
    """
    low, high = band or (0.0, sample_rate / 2)
    if not 0 <= low < high <= sample_rate / 2:
        raise errors.UserError(
            f'The band {low:g} to {high:g} Hz must lie within 0 and {sample_rate / 2:g} Hz, half '
            'the sample rate.'
        )
    to_mel, to_hertz = _SCALES[scale]
    edges = to_hertz(np.linspace(to_mel(low), to_mel(high), num_mels + 2))
    frequencies = np.fft.rfftfreq(fft_size, 1 / sample_rate)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    filters = np.maximum(0, np.minimum(rising, falling))
    empty = np.flatnonzero(filters.max(0) == 0)
    if len(empty):
        raise errors.UserError(
            f'{num_mels} mel filters are too many for an FFT of {fft_size} samples at '
            f'{sample_rate:,} Hz: filter {empty[0]} has no frequency in it. Use fewer, or a larger '
            'fft_size.'
        )
    if scale == 'slaney':
        filters *= 2 / (right - left)
    return filters.astype(np.float32)


def _htk_mel(hertz):
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _htk_hertz(mel):
    return 700 * (10 ** (mel / 2595) - 1)


_LINEAR = 200 / 3  # Hz per mel below 1 kHz
_STEP = np.log(6.4) / 27  # of the logarithm of the frequency per mel above


def _slaney_mel(hertz):
    hertz = np.asarray(hertz, np.float64)
    above = 1000 / _LINEAR + np.log(np.maximum(hertz, 1000) / 1000) / _STEP
    return np.where(hertz < 1000, hertz / _LINEAR, above)


def _slaney_hertz(mel):
    linear = 1000 / _LINEAR
    above = 1000 * np.exp(_STEP * (np.maximum(mel, linear) - linear))
    return np.where(mel < linear, mel * _LINEAR, above)


_SCALES = {'htk': (_htk_mel, _htk_hertz), 'slaney': (_slaney_mel, _slaney_hertz)}
