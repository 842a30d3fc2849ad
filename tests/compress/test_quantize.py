"""Rounding of weights against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.compress.quantize import FORMATS, Format, quantize
from bigmodels.models.parts.kernels import Kernel, widened

rng = np.random.default_rng(0)
# Rows of very different sizes, one of them zero.
ROWS = (rng.normal(size=(6, 24)) * np.logspace(-30, 3, 6)[:, None]).astype(np.float32)
ROWS[2] = 0


def restored(kernel):
    """values * scales in float64."""
    values, scales = np.float64(kernel.values), np.float64(kernel.scales)
    groups = values.reshape(len(values), scales.shape[1], -1)
    return (groups * scales[..., None]).reshape(values.shape)


@pytest.mark.parametrize('group_size', [None, 8, 1])
@pytest.mark.parametrize('name', FORMATS)
def test_errors_are_bounded(name, group_size):
    kernel = quantize(jnp.asarray(ROWS), Format(name, group_size))
    dtype, top = FORMATS[name]
    assert kernel.values.dtype == dtype
    assert kernel.scales.shape == (6, 24 // (group_size or 24))
    largest = np.abs(np.float64(ROWS).reshape(*kernel.scales.shape, -1)).max(-1)
    np.testing.assert_allclose(kernel.scales, np.where(largest, largest, 1) / top, rtol=1e-6)
    scales = np.repeat(np.float64(kernel.scales), group_size or 24, axis=1)
    # fp8 has three bits of mantissa, and steps of 2^-9 at least.
    of_fp8 = np.maximum(np.abs(ROWS) / 16, scales / 1024)
    bound = of_fp8 if name == 'fp8' else scales / 2
    error = np.abs(restored(kernel) - ROWS)
    assert (error <= bound * (1 + 1e-4)).all()
    assert error.max() > 0 or group_size == 1  # a group of one is exact
    assert (restored(kernel)[2] == 0).all()


@pytest.mark.parametrize('name', FORMATS)
def test_the_largest_stays_and_signs_are_alike(name):
    kernel = quantize(jnp.asarray(ROWS), Format(name))
    mirrored = quantize(jnp.asarray(-ROWS), Format(name))
    np.testing.assert_array_equal(np.float32(mirrored.values), -np.float32(kernel.values))
    rows, columns = np.arange(6), np.abs(ROWS).argmax(1)
    np.testing.assert_allclose(
        restored(kernel)[rows, columns], ROWS[rows, columns], rtol=1e-6, atol=0
    )


def test_smaller_groups_are_nearer():
    errors_ = [
        np.abs(restored(quantize(jnp.asarray(ROWS[3:]), Format('int4', size))) - ROWS[3:]).mean()
        for size in (24, 8, 2)
    ]
    assert errors_ == sorted(errors_, reverse=True)


def test_widened_is_the_matrix():
    kernel = quantize(jnp.asarray(ROWS), Format('int8', 8))
    np.testing.assert_allclose(widened(kernel), restored(kernel).T, rtol=1e-6)
    assert kernel.shape == (24, 6)
    np.testing.assert_array_equal(widened(Kernel(jnp.asarray(ROWS))), ROWS.T)


def test_mistakes():
    with pytest.raises(errors.UserError, match=r"format 'int3'.*int8, int4, fp8"):
        Format('int3')
    with pytest.raises(errors.UserError, match='group_size = 0'):
        Format('int8', 0)
    with pytest.raises(errors.UserError, match='24 inputs has no whole number of groups of 7'):
        quantize(jnp.asarray(ROWS), Format('int8', 7))
