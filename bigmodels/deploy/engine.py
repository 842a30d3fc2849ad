"""Continuous batching: requests come and go, and share the steps of one model.

The engine holds a cache of keys and values with a row, a slot, for every request at hand. A prompt
is written into a free slot in chunks; then each step continues all slots by a token. What varies
between requests, also how they are sampled, is an array over the slots, and chunks have a few
widths: so there are few programs, those of `slots`, and none is compiled while requests come.
A decoding step reads every weight once for all slots, which makes many nearly as cheap as one
where reading is the cost (experiments/notes_decode.md).

Axes: B slots, W width of a chunk, V vocab.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bigmodels import adapters, errors
from bigmodels.deploy.requests import Event, Matcher, Request, Settings
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.slots import Programs
from bigmodels.models import transformer


@dataclasses.dataclass(eq=False)
class _Slot:
    """A row of the cache, which holds keys and values of `tokens`; they stay for later requests.

    `used` grows with the time of its last request. `request` is None where it is free. `adapter` is
    that by which the keys and values were computed: with another one they are others. Nothing
    follows where `is_unmatched`, as its matcher allows no token.
    """

    row: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    adapter: int = 0
    request: Request | None = None
    matcher: Matcher | None = None
    is_unmatched: bool = False
    used: int = 0


class Engine:
    """Answers requests with a causal Transformer, as one-at-a-time generation would.

    A request's tokens depend on itself alone; greedy ones are those of `generate_tokens`, and those
    drawn with a seed are what it draws in its first row with the key of that seed.

    `submit` and `cancel` may be called by any thread, `step` by one. `runner.Runner` is that one.
    """

    def __init__(
        self,
        model: transformer.Transformer,
        params: Mapping,
        *,
        slots: int = 8,
        length: int | None = None,
        widths: Sequence[int] = (16, 64, 256),
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Compiles everything.

        Args:
          model, params: as of `weights.packed`, or of `weights.packed_together` to choose among
            adapters; params lie where they are to be used.
          slots: B, the most requests at a time.
          length: the most tokens of a prompt and its answer, by default `model.max_length`. Every
            step reads as much of the cache, so that no more than needed is best.
          widths: of the chunks in which prompts are computed, a program each. Between two chunks
            the requests at hand get a token.
          mesh: of the params, where they are split over devices; keys and values are split over
            its axis `tensor`.

        Raises:
          UserError: for sizes that are not positive, a longer context than the model has, or a
            model that does not generate.
        """
        length = model.max_length if length is None else length
        if not 0 < length <= model.max_length:
            raise errors.UserError(
                f'length = {length} must be from 1 to {model.max_length}, the context of the model.'
            )
        if slots < 1 or not widths or min(widths) < 1:
            raise errors.UserError(
                f'slots = {slots} and widths = {tuple(widths)} must be positive, and one width at '
                'least.'
            )
        if not model.causal or model.scan_layers:
            raise errors.UserError(
                'An engine needs a causal Transformer with unrolled layers: use `weights.packed`.'
            )
        self.length = length
        self._slots = [_Slot(row) for row in range(slots)]
        self._inbox: collections.deque[Request] = collections.deque()
        self._waiting: collections.deque[Request] = collections.deque()
        self._filling: _Slot | None = None
        self._has_filled = False
        self._clock = 0
        self.num_computed = 0  # tokens of prompts that were computed, and not found in a slot
        self._steps = np.zeros(slots, np.int32)
        self._seeds = np.zeros(slots, np.uint32)
        self._sampling = Sampling(temperature=0).rows(slots)
        self._history = np.zeros((slots, model.vocab_rows), np.int32)
        self._allowed = np.ones((slots, model.vocab_rows), bool)
        self._vocab_size = model.vocab_size
        self._num_adapters = adapters.count(params)
        self._programs = Programs(
            model,
            params,
            slots=slots,
            length=length,
            widths=sorted({min(width, length) for width in widths}),
            mesh=mesh,
        )

    def submit(self, tokens: Sequence[int], settings: Settings) -> Request:
        """Takes a request, to be answered after those before it.

        Raises:
          UserError: for no tokens, tokens that are not in the vocabulary, or too many.
        """
        if len(tokens) + settings.max_new_tokens > self.length:
            raise errors.UserError(
                f'A prompt of {len(tokens)} tokens and {settings.max_new_tokens} new ones exceed '
                f'the context of {self.length}: shorten it or ask for fewer.'
            )
        tokens = tuple(int(token) for token in tokens)
        if not tokens:
            raise errors.UserError('A prompt needs at least one token.')
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise errors.UserError(
                f'A prompt has a token outside of the vocabulary, 0 to {self._vocab_size - 1}.'
            )
        if not settings.adapter < self._num_adapters:
            raise errors.UserError(
                f'adapter = {settings.adapter} must be under {self._num_adapters}, the number of '
                'adapters of the engine.'
            )
        request = Request(tokens, settings)
        self._inbox.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request at the next step, if it has not ended."""
        request.is_cancelled = True

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._inbox) + len(self._waiting)

    @property
    def num_active(self) -> int:
        """Requests with one."""
        return sum(slot.request is not None for slot in self._slots)

    def step(self) -> list[Event]:
        """A chunk of one prompt, or a token for every request whose prompt is done; in turns.

        Returns what has come of it, and the ends of requests that were cancelled or cannot go on;
        nothing where there is nothing to do.
        """
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        events = self._drop()
        may_fill = not (self._has_filled and self._ready())
        self._has_filled = may_fill and self._fill_chunk()
        return events if self._has_filled else events + self._decode_token(self._ready())

    def _ready(self) -> list[_Slot]:
        """Slots whose prompt is done."""
        taken = [s for s in self._slots if s.request is not None and s is not self._filling]
        return [slot for slot in taken if not slot.is_unmatched]

    def _drop(self) -> list[Event]:
        """Ends what was cancelled, and what cannot go on."""
        events = [Event(r, finish='cancelled') for r in self._waiting if r.is_cancelled]
        for event in events:
            self._waiting.remove(event.request)
        for slot in self._slots:
            if slot.request is not None and (slot.request.is_cancelled or slot.is_unmatched):
                finish = 'cancelled' if slot.request.is_cancelled else 'unmatched'
                events.append(Event(slot.request, finish=finish))
                self._release(slot)
        return events

    def _fill_chunk(self) -> bool:
        """Computes a part of the prompt at hand, or of the next one; whether there was any."""
        slot = source = self._filling
        if slot is None:
            slot, source = self._admit()
            if slot is None or len(slot.tokens) == len(_prompt(slot)):
                return False
            self._filling = slot
        prompt, start = _prompt(slot), len(slot.tokens)
        widths = self._programs.widths
        width = next((w for w in widths if w >= len(prompt) - start), max(widths))
        # A chunk ends within the cache, even if it begins with what is there already.
        start = min(start, self.length - width)
        end = min(start + width, len(prompt))
        chunk = np.zeros((1, width), np.int32)
        chunk[0, : end - start] = prompt[start:end]
        self._programs.fill(chunk, start, source.row, slot.row, slot.adapter)
        self.num_computed += end - start
        slot.tokens = list(prompt[:end])
        if end == len(prompt):
            self._filling = None
        return True

    def _admit(self) -> tuple[_Slot, _Slot] | tuple[None, None]:
        """Gives the next request a slot, if there are both: (slot, source of its first tokens).

        They are the longest beginning of its prompt that any slot holds. If a free slot holds no
        more than that, as after the turn before of a conversation, it is taken; else that which was
        used longest ago, into which they are copied.
        """
        free = [slot for slot in self._slots if slot.request is None]
        if not free or not self._waiting:
            return None, None
        request = self._waiting.popleft()
        prompt, adapter = request.tokens[:-1], request.settings.adapter
        shared, _, source = max(
            (
                (_num_shared(s.tokens, prompt) if s.adapter == adapter else 0, s in free, s)
                for s in self._slots
            ),
            key=lambda found: found[:2],
        )
        slot = min(free, key=lambda slot: slot.used)
        if source in free and shared == len(source.tokens) > 0:
            slot = source
        if source is not slot:  # they are copied by a chunk, of one token at least
            shared = max(min(shared, len(prompt) - 1), 0)
        slot.request, slot.tokens, slot.adapter = request, list(prompt[:shared]), adapter
        self._prepare(slot)
        return slot, source

    def _prepare(self, slot: _Slot) -> None:
        """What decoding needs to know of a slot's request."""
        settings = slot.request.settings
        self._seeds[slot.row] = settings.seed
        for name, values in self._sampling.items():
            values[slot.row] = getattr(settings.sampling, name)
        self._history[slot.row] = 0
        self._history[slot.row, list(slot.request.tokens)] = 1
        if settings.matcher is not None:
            slot.matcher = settings.matcher()
            self._allow(slot)

    def _allow(self, slot: _Slot) -> None:
        """Takes over what its matcher allows."""
        allowed = slot.matcher.allowed()
        self._allowed[slot.row] = False
        self._allowed[slot.row, : len(allowed)] = allowed
        slot.is_unmatched = not allowed.any()

    def _decode_arguments(self) -> tuple[Any, ...]:
        """tokens, positions, adapters, seeds, steps and sampling of all slots.

        One that decodes nothing writes garbage behind its tokens, where it is overwritten before it
        is ever seen, because a query sees slots up to its own position only.
        """
        tokens = np.zeros(len(self._slots), np.int32)
        for slot in self._ready():
            tokens[slot.row] = _latest(slot.request)
            self._steps[slot.row] = len(slot.request.new_tokens)
        positions = np.array([len(slot.tokens) for slot in self._slots], np.int32)
        which = np.array([slot.adapter for slot in self._slots], np.int32)
        return tokens, positions, which, self._seeds, self._steps, self._sampling

    def _decode_token(self, ready: Sequence[_Slot]) -> list[Event]:
        if not ready:
            return []
        asked = [slot.request.settings for slot in ready]
        tokens, log_probs = self._programs.decode(
            *self._decode_arguments(),
            history=self._history if any(s.sampling.penalises for s in asked) else None,
            allowed=self._allowed if any(s.matcher for s in asked) else None,
        )
        alternatives = [()] * len(self._slots)
        if any(settings.alternatives for settings in asked):
            alternatives = self._programs.alternatives()
        events = []
        for slot, settings in zip(ready, asked, strict=True):
            request, token = slot.request, tokens[slot.row]
            slot.tokens.append(_latest(request))
            request.new_tokens.append(token)
            self._history[slot.row, token] += 2
            if slot.matcher is not None:
                slot.matcher.advance(token)
            finish = _finish(request, slot.matcher)
            best = tuple(alternatives[slot.row][: settings.alternatives])
            events.append(Event(request, token, log_probs[slot.row], finish, best))
            if finish is not None:
                self._release(slot)
            elif slot.matcher is not None:
                self._allow(slot)
        return events

    def _release(self, slot: _Slot) -> None:
        if slot is self._filling:
            self._filling = None
        self._clock += 1
        slot.request, slot.matcher, slot.used = None, None, self._clock
        slot.is_unmatched = False
        self._allowed[slot.row] = True
        for name, values in Sampling(temperature=0).rows(1).items():
            self._sampling[name][slot.row] = values[0]  # nothing is drawn for it


def _prompt(slot: _Slot) -> tuple[int, ...]:
    """What is computed ahead: the last token is left, as that which decoding begins with."""
    return slot.request.tokens[:-1]


def _latest(request: Request) -> int:
    return request.new_tokens[-1] if request.new_tokens else request.tokens[-1]


def _num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _finish(request: Request, matcher: Matcher | None) -> str | None:
    new, settings = request.new_tokens, request.settings
    if any(new[-len(stop) :] == list(stop) for stop in settings.stops):
        return 'stop'
    if matcher is not None and matcher.is_complete:
        return 'stop'
    return 'length' if len(new) == settings.max_new_tokens else None
