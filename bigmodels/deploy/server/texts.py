"""Tokens that come one by one -> the text that is certain by then."""

import codecs
from collections.abc import Sequence


class Assembler:
    """The text of tokens up to the first of the stop strings, which is left out.

    Held back is what may yet change: bytes that are no whole character, and a text that a stop
    string may begin with. So the parts are those of the whole, however they are cut.

    Args:
      spelling: the bytes of each token, see `tokenizers.Tokenizer.token_bytes`.

    Fields:
      is_stopped: whether a stop string has come; what follows it is no text any more.
    """

    def __init__(self, spelling: Sequence[bytes], stops: Sequence[str]):
        self._spelling, self._stops = spelling, stops
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
        self._held = ''
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        return self._released(self._decoder.decode(self._spelling[token]), final=False)

    def end(self) -> str:
        """What was held back, as no more tokens come."""
        return self._released(self._decoder.decode(b'', final=True), final=True)

    def _released(self, text: str, final: bool) -> str:
        if self.is_stopped:
            return ''
        text = self._held + text
        found = [text.index(stop) for stop in self._stops if stop in text]
        if found:
            self.is_stopped, self._held = True, ''
            return text[: min(found)]
        keep = 0 if final else max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first ones of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
