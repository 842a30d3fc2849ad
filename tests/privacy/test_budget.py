"""What a run spends, against dp-accounting's own accountants and the binomial distribution."""

import math

import numpy as np
import pytest
import scipy.stats

from bigmodels import privacy
from bigmodels.privacy import budget as budget_lib

dp_accounting = pytest.importorskip('dp_accounting')
from dp_accounting import pld, rdp  # noqa: E402

CASES = [
    (privacy.Settings(3.0, 1e-5), 60_000, 2048, 500),
    (privacy.Settings(8.0, 1e-5), 2_000, 256, 100),
    (privacy.Settings(0.5, 1e-7), 1_000_000, 4096, 2_000),
    (privacy.Settings(2.0, 1e-5), 100, 128, 20),  # whole batches
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_epsilon_is_that_of_the_accountants(case):
    settings, *_, steps = case
    budget = privacy.Budget(*case)
    delta = settings.delta * (1 - budget_lib.OVERFLOW)

    def event(step):
        gaussian = dp_accounting.GaussianDpEvent(budget.noise_multiplier)
        one = dp_accounting.PoissonSampledDpEvent(budget.rate, gaussian)
        return dp_accounting.SelfComposedDpEvent(one, step)

    for step in (1, 2, steps // 3, steps):
        expected = rdp.RdpAccountant().compose(event(step)).get_epsilon(delta)
        np.testing.assert_allclose(budget.spent(step), expected, rtol=1e-5)
    assert budget.spent(0) == 0
    assert 0.995 * settings.epsilon < budget.spent(steps) <= settings.epsilon
    # Another method, by numerical convolution, finds that no more was spent.
    tighter = pld.PLDAccountant().compose(event(steps)).get_epsilon(delta)
    assert 0.5 * settings.epsilon < tighter <= settings.epsilon


@pytest.mark.parametrize('case', CASES[:3], ids=str)
def test_batches_overflow_with_a_probability_that_delta_pays_for(case):
    settings, units, slots, steps = case
    budget = privacy.Budget(*case)

    def cost(rate):
        overflow = steps * scipy.stats.binom.sf(slots, units, rate)
        return (1 + math.exp(settings.epsilon)) * overflow / settings.delta

    assert 0.9 * budget_lib.OVERFLOW < cost(budget.rate) <= budget_lib.OVERFLOW
    assert budget.expected == units * budget.rate < slots
    assert privacy.Budget(*CASES[3]).rate == 1
