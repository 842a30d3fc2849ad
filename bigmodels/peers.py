"""Which of a run's processes are alive, from the signs of life that they give; see `processes`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sign:
    """A process's latest sign of life.

    Fields:
      index: of the process, as in `jax.process_index()`.
      host, pid: where it is.
      beat: grows by one with each sign.
      ended: None while it runs, '' when it is done, or why it stopped.
    """

    index: int
    host: str
    pid: int
    beat: int = 0
    ended: str | None = None


class Peers:
    """What is known of the other processes; times are seconds of one clock."""

    def __init__(self, index: int, count: int, timeout: float, now: float):
        self._index, self._count, self._timeout = index, count, timeout
        self._signs: dict[int, Sign] = {}
        self._heard = dict.fromkeys(range(count), now)  # when each sign was new
        self._read = now

    def read(self, signs: list[Sign], now: float) -> None:
        """Takes note of every process's sign as it was at `now`."""
        self._read = now
        for sign in signs:
            if sign != self._signs.get(sign.index):
                self._signs[sign.index], self._heard[sign.index] = sign, now

    def trouble(self, now: float) -> str | None:
        """Why this process must end, naming the process that is the reason; None if all is well."""
        if self._index != 0 and now - self._read > self._timeout:
            return self._describe_silence(0)  # which holds what is read
        for other in self._others():
            if why := self._ended(other):
                return why
            if self._ended(other) is None and self._is_silent(other):
                return self._describe_silence(other)
        return None

    def all_done(self) -> bool:
        """Whether every other process came to its regular end."""
        return all(self._ended(other) == '' for other in self._others())

    def all_gone(self) -> bool:
        """Whether every other process came to some end, told or not."""
        return all(
            self._ended(other) is not None or self._is_silent(other) for other in self._others()
        )

    def name(self, index: int) -> str:
        """'process 1 of 2 (host, pid 123)'."""
        sign = self._signs.get(index)
        place = f' ({sign.host}, pid {sign.pid})' if sign else ''
        return f'process {index} of {self._count}{place}'

    def _others(self) -> list[int]:
        return [index for index in range(self._count) if index != self._index]

    def _ended(self, index: int) -> str | None:
        sign = self._signs.get(index)
        return sign.ended if sign else None

    def _is_silent(self, index: int) -> bool:
        # Against the last reading, not against now: nobody is silent because nothing was read.
        return self._read - self._heard[index] > self._timeout

    def _describe_silence(self, index: int) -> str:
        return f'{self.name(index)} ended or does not answer: no sign for {self._timeout:g} s'
