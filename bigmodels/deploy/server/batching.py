"""Examples of many requests together: one thread owns the device, and requests wait for it."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bigmodels.predict import shapes_of

Compute = Callable[[Sequence[Mapping[str, np.ndarray]], int], list]


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    """An example, and the future of what `compute` gives of it."""

    compute: Compute
    example: Mapping[str, np.ndarray]
    future: concurrent.futures.Future
    since: float

    @property
    def kind(self) -> tuple:
        """What examples have in common that are computed together."""
        return self.compute, shapes_of(self.example)


class Batcher:
    """Computes examples of equal shapes together, the longest waiting first.

    Programs have two sizes, 1 and `size`, so that a lone request is not computed many times over.

    Args:
      size: the most examples at once.
      wait: seconds that an example waits at most for others.
      observe: is told how many examples each batch has.
    """

    def __init__(self, size: int, wait: float, observe: Callable[[int], None]):
        self.size, self._wait, self._observe = size, wait, observe
        self._arrived: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name='device', daemon=True)
        self._thread.start()

    async def answers(
        self, compute: Compute, examples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Any]:
        """What `compute(examples of equal shapes, size)` gives of each; those of a request that is
        cancelled are left out.
        """
        futures = [self._submit(compute, example) for example in examples]
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            for future in futures:
                future.cancel()

    def warm(self, compute: Compute, example: Mapping[str, np.ndarray]) -> None:
        """Compiles the programs of both sizes for examples like this one, and waits for them."""
        for size in {1, self.size}:
            # In a closure of its own: not together with anything else.
            self._submit(lambda rows, _, size=size: compute(rows, size), example).result()

    def close(self, timeout: float) -> None:
        """Ends the thread behind what it is computing, waiting so many seconds for it."""
        self._arrived.put(None)
        self._thread.join(timeout)

    def _submit(self, compute: Compute, example) -> concurrent.futures.Future:
        future = concurrent.futures.Future()
        self._arrived.put(_Waiting(compute, example, future, time.monotonic()))
        return future

    def _serve(self) -> None:
        waiting: dict[tuple, collections.deque[_Waiting]] = collections.defaultdict(
            collections.deque
        )
        while (kind := self._gather(waiting)) is not None:
            group = waiting[kind]
            alike = [group.popleft() for _ in range(min(self.size, len(group)))]
            if not group:
                del waiting[kind]
            alike = [item for item in alike if item.future.set_running_or_notify_cancel()]
            if alike:
                self._compute(alike)

    def _gather(self, waiting: dict[tuple, collections.deque[_Waiting]]) -> tuple | None:
        """Adds what has come to `waiting`, by kind, until that which waits longest has company or
        has waited enough; returns its kind, or None when there is nothing more to do.
        """
        if not waiting and not self._take(waiting, None):
            return None
        kind, group = min(waiting.items(), key=lambda pair: pair[1][0].since)
        while len(group) < self.size:
            try:
                if not self._take(waiting, group[0].since + self._wait - time.monotonic()):
                    return None
            except queue.Empty:
                break
        return kind

    def _take(self, waiting: dict, seconds: float | None) -> bool:
        """Adds an item, waiting so long for it; False if the thread is to end."""
        item = self._arrived.get(seconds is None or seconds > 0, seconds)
        if item is not None:
            waiting[item.kind].append(item)
        return item is not None

    def _compute(self, alike: Sequence[_Waiting]) -> None:
        self._observe(len(alike))
        size = self.size if len(alike) > 1 else 1
        try:
            answers = alike[0].compute([item.example for item in alike], size)
        except Exception as error:  # each request raises it
            for item in alike:
                item.future.set_exception(error)
        else:
            for item, answer in zip(alike, answers, strict=True):
                item.future.set_result(answer)
