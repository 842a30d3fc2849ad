"""What a run may reveal of one unit, an example or a client, and the noise that keeps it to that.

A step adds Gaussian noise to a sum of clipped contributions of units that were drawn independently:
the Poisson-subsampled Gaussian mechanism (Abadi et al. 2016; Mironov et al. 2019). Its cost is
counted by Renyi differential privacy, as dp-accounting has it, for neighbours one of which has a
unit that the other has not. The number of units, the larger one's, is taken as public.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from bigmodels import errors

# The share of delta that is kept for batches in which more was drawn than fits.
OVERFLOW = 0.01
MOST = 100.0  # an epsilon that protects nobody


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.privacy: the whole run is (epsilon, delta)-differentially private.

    Noise and sampling are pseudorandom and follow from config.seed: the guarantee holds against
    those who do not know it. Noise is added in floats, whose spacing is not accounted for
    (Mironov 2012).

    Fields:
      epsilon: of the whole run; None for no privacy.
      delta: likewise; it should be well under 1 / the number of units.
      clip: the norm to which the contribution of a unit is clipped.
      examples: the number of training examples, each of which is a unit; with config.federated
        units are clients, and this is 0.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    clip: float = 1.0
    examples: int = 0

    def __post_init__(self):
        if self.epsilon is None:
            return
        if not 0 < self.epsilon <= MOST:
            raise errors.UserError(
                f'config.privacy.epsilon = {self.epsilon} must be over 0 and at most {MOST:g}; '
                f'None trains without privacy.'
            )
        if not 0 < self.delta < 1:
            raise errors.UserError(
                f'config.privacy.delta = {self.delta} must be over 0 and under 1: well under 1 / '
                f'the number of units.'
            )
        if not 0 < self.clip < math.inf:
            raise errors.UserError(f'config.privacy.clip = {self.clip} must be over 0, and finite.')

    @property
    def on(self) -> bool:
        """Whether the run is private."""
        return self.epsilon is not None


NONE = Settings()


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run spends, step by step.

    Fields:
      units: the number of examples, or of clients.
      slots: how many of them a batch has room for.
      steps: of the run.
    """

    settings: Settings
    units: int
    slots: int
    steps: int

    def __post_init__(self):
        if self.settings.examples not in (0, self.units):
            raise errors.UserError(
                f'With config.federated the units of privacy are its {self.units} clients: set '
                f'config.privacy.examples = {self.settings.examples} to 0.'
            )
        if self.units < 1:
            raise errors.UserError(
                f'config.privacy.examples = {self.settings.examples} must be the number of '
                f'training examples, which a run checks.'
            )
        if self.expected < 1:
            raise errors.UserError(
                f'A batch with room for {self.slots} has {self.expected:.2g} of {self.units:,} '
                f'units on average, so that hardly one ever holds more: make it larger.'
            )

    @functools.cached_property
    def rate(self) -> float:
        """The probability with which each unit enters a batch, independently of all others.

        It is the largest for which all batches of the run hold what was drawn, but for a
        probability p with (1 + exp(epsilon)) p <= OVERFLOW * delta: what a run whose full batches
        leave units out reveals is that of one with larger batches, and so much more of delta (both
        distributions of a neighbouring pair differ by p in total variation).
        """
        if self.units <= self.slots:
            return 1.0
        allowed = OVERFLOW * self.settings.delta / (1 + math.exp(self.settings.epsilon))
        # P(Binomial(n, q) > k) is the incomplete beta function of (k + 1, n - k) at q.
        rate = scipy.special.betaincinv(
            self.slots + 1, self.units - self.slots, allowed / self.steps
        )
        return float(rate) * (1 - 1e-9)

    @property
    def expected(self) -> float:
        """The units in a batch on average, by which its sum is divided."""
        return self.rate * self.units

    @functools.cached_property
    def noise_multiplier(self) -> float:
        """The standard deviation of the noise of a sum, as a multiple of the clipping norm.

        The least that keeps the run to its epsilon, rounded up to a ten-thousandth.
        """
        accounting, rdp = _accounting()
        least = accounting.calibrate_dp_mechanism(
            rdp.RdpAccountant,
            lambda noise: accounting.SelfComposedDpEvent(self._event(noise), self.steps),
            self.settings.epsilon,
            self._delta,
            tol=1e-5,
        )
        return math.ceil(least * 1e4) / 1e4

    @property
    def _delta(self) -> float:
        """What is left of delta for the mechanism."""
        return (1 - OVERFLOW) * self.settings.delta

    def _event(self, noise_multiplier: float):
        accounting, _ = _accounting()
        gaussian = accounting.GaussianDpEvent(noise_multiplier)
        return accounting.PoissonSampledDpEvent(self.rate, gaussian)

    @functools.cached_property
    def _costs(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each order: what a step costs, and what turns the sum of it into an epsilon.

        (Canonne et al. 2020, proposition 12)
        """
        accountant = _accounting()[1].RdpAccountant()
        accountant.compose(self._event(self.noise_multiplier))
        orders, costs = np.asarray(accountant.orders), np.asarray(accountant.rdp)
        known = (orders > 1.01) & np.isfinite(costs)
        orders, costs = orders[known], costs[known]
        return costs, np.log1p(-1 / orders) - np.log(self._delta * orders) / (orders - 1)

    def spent(self, step: jax.Array | int) -> jax.Array:
        """The epsilon, at the delta of the run, of its first `step` steps: a float32 scalar."""
        costs, constants = self._costs
        epsilon = jnp.maximum((step * costs + constants).min(), 0)
        return jnp.where(jnp.asarray(step) > 0, epsilon, 0).astype(jnp.float32)

    def describe(self, unit: str) -> str:
        """The guarantee in words, and what it is not of."""
        settings = self.settings
        return (
            f'private: epsilon {settings.epsilon:g} and delta {settings.delta:g} for the whole run '
            f'and one {unit} of {self.units:,}, each in a batch with probability {self.rate:.4g}, '
            f'{self.expected:.1f} on average in {self.slots:,} places; noise '
            f'{self.noise_multiplier:g} times the clipping norm {settings.clip:g}'
        )


def _accounting():
    try:
        import dp_accounting  # takes long to import
        from dp_accounting import rdp
    except ImportError as error:
        raise errors.UserError(
            "config.privacy needs dp-accounting: pip install 'bigmodels[privacy]'."
        ) from error
    return dp_accounting, rdp
