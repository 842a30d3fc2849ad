"""Log-mel features against a float64 reading of their definition, one number at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.models.parts import log_mel as module

RATE = 8000
SETTINGS = {'num_mels': 20, 'window': 200, 'hop': 80, 'fft_size': 256, 'band': (60.0, 3800.0)}


def mel(hertz: float, scale: str) -> float:
    if scale == 'htk':
        return 1127.01048 * math.log(1 + hertz / 700)  # the other form in which it is printed
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000, 6.4)


def hertz(value: float, scale: str) -> float:
    """The inverse, by bisection."""
    low, high = 0.0, 1e5
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mel(middle, scale) < value else (low, middle)
    return low


def reference(waveform, scale, num_mels, window, hop, fft_size, band):
    """[T] -> [frames, mels], the discrete Fourier transform written out."""
    low, high = (mel(limit, scale) for limit in band)
    edges = [hertz(low + (high - low) * i / (num_mels + 1), scale) for i in range(num_mels + 2)]
    n = np.arange(window)
    bins = np.arange(fft_size // 2 + 1)
    transform = np.exp(-2j * np.pi * bins[:, None] * n / fft_size)
    hann = np.sin(np.pi * n / window) ** 2
    rows = []
    for start in range(0, len(waveform) - window + 1, hop):
        power = np.abs(transform @ (hann * waveform[start : start + window])) ** 2
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            height = 2 / (right - left) if scale == 'slaney' else 1.0
            weights = np.interp(bins * RATE / fft_size, [left, centre, right], [0, height, 0])
            row.append(math.log(max(power @ weights, 1e-6)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize('scale', ['htk', 'slaney'])
def test_against_the_definition(scale):
    rng = np.random.default_rng(0)
    time = np.arange(1000) / RATE
    waveform = np.stack([
        0.5 * np.sin(2 * np.pi * 440 * time) + 0.01 * rng.normal(size=1000),
        0.1 * rng.normal(size=1000) * np.exp(-time * 30),
    ])  # fmt: skip
    features = module.log_mel(jnp.asarray(waveform), RATE, scale=scale, **SETTINGS)
    expected = np.stack([reference(row, scale, **SETTINGS) for row in waveform])
    assert features.dtype == jnp.float32
    assert features.shape == (2, module.num_frames(1000, 200, 80), 20) == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-4)


def test_silence_is_the_floor_and_has_a_gradient():
    silence = jnp.zeros((1, 400))
    features = module.log_mel(silence, RATE, **SETTINGS)
    np.testing.assert_allclose(features, math.log(1e-6), rtol=1e-6)
    gradient = jax.grad(lambda x: module.log_mel(x, RATE, **SETTINGS).sum())(silence)
    np.testing.assert_array_equal(gradient, 0)


def test_gradient_is_that_of_the_definition():
    rng = np.random.default_rng(1)
    waveform, direction = rng.normal(size=(2, 440)) * 0.1
    weights = rng.normal(size=(4, 20))
    total = lambda x: (module.log_mel(x[None], RATE, **SETTINGS)[0] * weights).sum()
    slope = jax.grad(total)(jnp.asarray(waveform)) @ direction
    step = 1e-6
    ahead, behind = (
        (reference(waveform + sign * step * direction, 'htk', **SETTINGS) * weights).sum()
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=2e-3)


def test_number_of_frames():
    lengths = np.array([199, 200, 279, 280])
    assert module.num_frames(lengths, 200, 80).tolist() == [0, 1, 1, 2]


def test_mistakes():
    waveform = jnp.zeros((1, 1000))
    for changes, message in (
        ({'window': 300}, 'window of 300 samples must fit into the FFT of 256'),
        ({'window': 1001, 'fft_size': 2048}, 'into the waveform of 1000'),
        ({'band': (0.0, 4001.0)}, 'band 0 to 4001 Hz must lie within 0 and 4000 Hz'),
        ({'num_mels': 160}, '160 mel filters are too many for an FFT of 256 samples'),
    ):
        with pytest.raises(errors.UserError, match=message):
            module.log_mel(waveform, RATE, **(SETTINGS | changes))
