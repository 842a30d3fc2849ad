"""Sound on the host, as pure functions: from a file's bytes to samples at one rate, and back.

Samples are float32 [T] from -1 to 1, of one channel. PCM WAV files are read by Python itself, FLAC,
MP3 and Ogg by soundfile, which `pip install -e '.[speech]'` brings.
"""

import functools
import io
import math
import warnings
import wave
from typing import NamedTuple

import numpy as np

from bigmodels import errors

SUFFIXES = ('.wav', '.flac', '.mp3', '.ogg', '.opus')  # of the files that `decode` reads
MOST_VALUES = 2**31  # of a file, 8 GB: more is taken for a damaged header
MAX_RATE = 1_000_000  # Hz: more is taken for a damaged header
_OGG = b'OggS'  # how each page begins
_PAGE_HEADER = 27  # bytes, the last of them the number of the segments' sizes that follow
_PCM = bytes.fromhex('0100000000001000800000aa00389b71')  # in a header that is extensible
# The low-pass filter of `resample`: what is below 84 % of the lower Nyquist frequency passes, and
# what is above all of it falls by 90 dB.
_ZERO_CROSSINGS = 32  # of the sinc on each side
_BETA = 9.0  # of the Kaiser window
_ROLLOFF = 0.92  # of the lower Nyquist frequency: where the filter is at half


class Sound(NamedTuple):
    """Samples and their rate in Hz."""

    samples: np.ndarray
    rate: int


def encode_wav(sound: Sound) -> bytes:
    """A WAV file of 16 bits per sample; what is beyond full scale is cut off."""
    values = np.clip(np.rint(sound.samples * 2.0**15), -(2**15), 2**15 - 1).astype('<i2')
    buffer = io.BytesIO()
    with wave.open(buffer, 'wb') as file:
        file.setparams((1, 2, sound.rate, len(values), 'NONE', ''))
        file.writeframes(values.tobytes())
    return buffer.getvalue()


def decode(data: bytes, where: str, most: int = MOST_VALUES) -> tuple[np.ndarray, int]:
    """The samples of a file of sound, channels averaged, and their rate.

    Args:
      data: of a FLAC, MP3 or Ogg file, or of a PCM WAV file of 8, 16, 24 or 32 bits.
      where: file and record, for errors.
      most: values of all channels; sound of more is refused, before it is held in memory.

    Returns:
      float32 [T], full scale 1; and the rate in Hz.

    Raises:
      UserError: if it is no such file, is longer, or is cut short, which only some MP3 files cannot
        be told to be: those whose header says nothing of their length.
    """
    compressed = _is_compressed(data)
    samples, rate = _decompressed(data, where, most) if compressed else _of_wav(data, where)
    if not len(samples):
        raise errors.UserError(f'{where} holds no sample.')
    if not 1 <= rate <= MAX_RATE:
        raise errors.UserError(f'{where} says that it has {rate:,} samples a second.')
    return samples.mean(1), rate


def _is_compressed(data: bytes) -> bool:
    """Whether it begins as FLAC, Ogg, or MP3 do: with a tag, or a frame of layer III."""
    frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2
    return frame or data.startswith((b'fLaC', _OGG, b'ID3'))


def _decompressed(data: bytes, where: str, most: int) -> tuple[np.ndarray, int]:
    """float32 [T, channels] and the rate of a file that libsndfile reads."""
    try:
        import soundfile  # only those who have such files need it
    except ImportError as error:
        raise errors.UserError(
            f"{where} is no WAV file: pip install -e '.[speech]' brings what reads FLAC, MP3 and "
            'Ogg.'
        ) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            count, rate = file.frames, file.samplerate
            if count * file.channels > most:  # a few bytes may stand for many of them
                raise errors.UserError(
                    f'{where} is too long, or does not say how long it is: at most {most:,} '
                    'samples of all channels are taken.'
                )
            samples = file.read(dtype='float32', always_2d=True)
    except soundfile.LibsndfileError as error:
        raise errors.UserError(f'{where} cannot be decoded: {error.error_string}') from error
    _check_whole(len(samples), count, where)
    if data.startswith(_OGG) and not _has_last_page(data):  # what is left counts as the whole
        raise errors.UserError(
            f'{where} is cut short: the page that ends an Ogg file is not there.'
        )
    return samples, rate


def _has_last_page(data: bytes) -> bool:
    """Whether an Ogg file has all pages up to one that is said to be the last (RFC 3533, 6)."""
    place, flags = 0, 0
    while data.startswith(_OGG, place) and place + _PAGE_HEADER <= len(data):
        flags, segments = data[place + 5], data[place + _PAGE_HEADER - 1]
        sizes = data[place + _PAGE_HEADER : place + _PAGE_HEADER + segments]
        place += _PAGE_HEADER + segments + sum(sizes)
    return bool(flags & 4) and place <= len(data) and not data.startswith(_OGG, place)


def _check_whole(found: int, told: int, where: str) -> None:
    if found != told:
        raise errors.UserError(
            f'{where} is cut short: it has {found:,} of the {told:,} samples that its header says.'
        )


def _of_wav(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """float32 [T, channels] and the rate of a PCM WAV file, whose own length limits it."""
    try:
        with wave.open(io.BytesIO(_with_plain_header(data))) as file:
            channels, width, rate, count, *_ = file.getparams()
            if width > 4:
                raise wave.Error(f'{8 * width} bits per sample')
            frames = file.readframes(count)
    except (wave.Error, EOFError, RuntimeError) as error:
        raise errors.UserError(
            f'{where} is not a PCM WAV file: {str(error) or "it ends within its header"}. '
            'Convert it, for example to 16 bits per sample.'
        ) from error
    _check_whole(len(frames) // (channels * width), count, where)
    return pcm_to_float(frames, width).reshape(-1, channels), rate


def _with_plain_header(data: bytes) -> bytes:
    """A WAV file whose extensible header says PCM with PCM's own tag.

    Python 3.11 knows no other; ffmpeg and sox write it from 24 bits and more than two channels on.
    """
    start = 12
    while start + 8 <= len(data):
        name, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], 'little')
        start += 8
        if name == b'fmt ':
            if data[start : start + 2] == b'\xfe\xff' and data[start + 24 : start + 40] == _PCM:
                return data[:start] + b'\1\0' + data[start + 2 :]
            break
        start += size + size % 2
    return data


def read(data: bytes, where: str, sample_rate: int, origin: str) -> np.ndarray:
    """`decode` at a sample rate in Hz; a warning says once of an `origin` what is resampled."""
    return resampled(*decode(data, where), sample_rate, origin)


def resampled(samples: np.ndarray, rate: int, wanted: int, origin: str) -> np.ndarray:
    """`resample`, of which a warning tells once for each `origin` and rate."""
    if rate != wanted:
        # Python shows a warning of the same text from the same place once.
        warnings.warn(
            f'{origin} has sound of {rate:,} Hz: it is resampled to {wanted:,} Hz.', stacklevel=1
        )
    return resample(samples, rate, wanted)


def check_rate(sample_rate: int) -> None:
    """Raises UserError for a sample rate that is none."""
    if not 1 <= sample_rate <= MAX_RATE:
        raise errors.UserError(f'sample_rate = {sample_rate} must be from 1 to {MAX_RATE:,} Hz.')


def pcm_to_float(frames: bytes, width: int) -> np.ndarray:
    """Little-endian PCM of `width` bytes per sample, unsigned only if it is 1, as float32."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # the three bytes become the upper ones of four
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        frames, width = padded.tobytes(), 4
    samples = np.frombuffer(frames, f'<i{width}')
    return (samples / np.float64(2 ** (8 * width - 1))).astype(np.float32)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples at another rate, band-limited to the lower of the two Nyquist frequencies.

    By a sinc under a Kaiser window, for each of the phases that the ratio of the rates has (Smith,
    Digital Audio Resampling Home Page, CCRMA 2002). Where the samples end, zeros follow.

    Returns:
      float32 [ceil(T * wanted / rate)]; sample n is at the time n / wanted.
    """
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    kernel = _kernel(up, down)
    taps = kernel.shape[1]
    places = np.arange(math.ceil(len(samples) * up / down)) * down
    first, phase = places // up + taps // 2 + 1, places % up
    padded = np.pad(samples, taps)
    resampled = np.zeros(len(places), np.float32)
    for tap in range(taps):
        resampled += kernel[phase, tap] * padded[first + tap]
    return resampled


@functools.cache
def _kernel(up: int, down: int) -> np.ndarray:
    """The weights float32 [up, taps] of the samples around each phase of the output.

    Output phase p lies p / up samples after the sample of tap taps // 2 - 1.
    """
    cutoff = _ROLLOFF * min(1.0, up / down)  # in units of the input's Nyquist frequency
    reach = _ZERO_CROSSINGS / cutoff  # input samples
    half = math.ceil(reach)
    distance = np.arange(1 - half, half + 1) - np.arange(up)[:, None] / up
    inside = np.sqrt(np.maximum(0, 1 - (distance / reach) ** 2))
    window = np.i0(_BETA * inside) / np.i0(_BETA) * (np.abs(distance) < reach)
    return (cutoff * np.sinc(cutoff * distance) * window).astype(np.float32)
