"""Mu-law codes against the formula in float64, and back."""

import numpy as np

from bigmodels.models.parts import mu_law


def test_codes_are_those_of_the_formula_and_finest_near_silence():
    samples = np.random.default_rng(0).uniform(-1.1, 1.1, 2000)
    for levels in (256, 16):
        mu = levels - 1
        clipped = np.clip(samples, -1, 1)
        companded = np.sign(clipped) * np.log(1 + mu * np.abs(clipped)) / np.log(1 + mu)
        wanted = (companded + 1) / 2 * mu  # the nearest whole number
        codes = np.asarray(mu_law.encode(np.float32(samples), levels))
        assert np.abs(codes - wanted).max() < 0.5 + 1e-3
        assert (codes.min(), codes.max()) == (0, mu)
        values = np.asarray(mu_law.decode(np.arange(levels), levels))
        assert (values[0], values[-1]) == (-1, 1)
        np.testing.assert_array_equal(mu_law.encode(values, levels), np.arange(levels))
        steps = np.diff(values)
        assert steps.argmin() == (levels - 1) // 2
        assert (np.diff(steps[levels // 2 :]) > 0).all()
        assert mu_law.encode(np.float32(0), levels) == mu_law.silence(levels)
