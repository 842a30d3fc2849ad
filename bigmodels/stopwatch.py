"""Where time goes, by name."""

import time


class Stopwatch:
    """Time since it was made, in named parts: each ends where the next one begins."""

    def __init__(self):
        self._last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a part, in seconds to the millisecond; a name that returns adds to its first one."""
        now = time.perf_counter()
        self.parts[name] = round(self.parts.get(name, 0.0) + now - self._last, 3)
        self._last = now

    @property
    def seconds(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ', '.join(f'{name} {seconds:.2f}' for name, seconds in self.parts.items())
        return f'{self.seconds:.1f} s: {parts}'
