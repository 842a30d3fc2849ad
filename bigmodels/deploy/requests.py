"""What is asked of an `engine.Engine`, and what it answers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from bigmodels import errors
from bigmodels.deploy.sampling import Sampling

MOST_ALTERNATIVES = 20  # tokens that are told beside each one


class Matcher(Protocol):
    """What the tokens of one request have matched so far."""

    is_complete: bool  # nothing may follow

    def allowed(self) -> np.ndarray:
        """Which tokens may follow: bool [V]; none if nothing that the tokens spell goes on with it,
        which at first is not so.
        """

    def advance(self, token: int) -> None:
        """Takes in a token that may follow."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a request is answered.

    Fields:
      max_new_tokens: at least 1.
      sampling: see `Sampling`.
      stops: the answer ends, with it, when its latest tokens are one of these sequences.
      seed: from 0 to 2^32 - 1: with the prompt and `sampling` it decides every draw.
      matcher: makes the `Matcher` that restricts the tokens, see `constraints`; None for no such.
      alternatives: how many of the most probable tokens are told with each, MOST_ALTERNATIVES at
        most.
      adapter: which one of the engine's, from 0; see `weights.packed_together`.
    """

    max_new_tokens: int = 128
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    stops: Sequence[Sequence[int]] = ()
    seed: int = 0
    matcher: Callable[[], Matcher] | None = None
    alternatives: int = 0
    adapter: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise errors.UserError(f'max_new_tokens = {self.max_new_tokens} must be at least 1.')
        if not 0 <= self.seed < 2**32:
            raise errors.UserError(f'seed = {self.seed} must be from 0 to 2^32 - 1.')
        if not 0 <= self.alternatives <= MOST_ALTERNATIVES:
            raise errors.UserError(
                f'alternatives = {self.alternatives} must be from 0 to {MOST_ALTERNATIVES}.'
            )
        if self.adapter < 0:
            raise errors.UserError(f'adapter = {self.adapter} must be 0 or more.')
        if not all(self.stops):
            raise errors.UserError('A stop sequence is empty: it would end every answer at once.')


@dataclasses.dataclass(eq=False)
class Request:
    """A prompt, and what has followed it so far.

    Fields:
      tokens: of the prompt.
      new_tokens: those after it.
      is_cancelled: whether nobody waits for more.
    """

    tokens: tuple[int, ...]
    settings: Settings
    new_tokens: list[int] = dataclasses.field(default_factory=list)
    is_cancelled: bool = False


class Event(NamedTuple):
    """One more token of a request, or its end, or both.

    Fields:
      token: None where there is only an end.
      log_prob: of the token, see `sampling.choose`.
      finish: None while it goes on; 'stop' for a stop sequence or a complete match; 'length' for
        `max_new_tokens`; 'unmatched' where no token goes on with what the matcher wants; 'failed'
        if the engine did, see `runner`.
      alternatives: the most probable tokens in this one's place, best first, each with its log
        probability: as many as the settings ask for.
    """

    request: Request
    token: int | None = None
    log_prob: float | None = None
    finish: Literal['stop', 'length', 'cancelled', 'unmatched', 'failed'] | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
