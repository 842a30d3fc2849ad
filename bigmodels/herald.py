"""Speaks for a process that could not: python -m bigmodels.herald COORDINATOR:PORT

When the process that coordinates a run of several dies, JAX aborts the others from C++ within
milliseconds, before any Python of theirs can say why. So each of them keeps this small process,
which reads their last words from a pipe as long as they live. Once the pipe ends, it prints them
if the coordinator cannot be reached; the death is another one otherwise, and it keeps quiet.
"""

import contextlib
import socket
import subprocess
import sys

PATIENCE = 5.0  # seconds to wait for the coordinator's answer


class Herald:
    """Such a process, seen from the one that it speaks for."""

    def __init__(self, coordinator: str):
        self._words = ''
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'bigmodels.herald', coordinator],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # no interrupt from the keyboard ends it
        )

    def tell(self, words: str) -> None:
        """Replaces the last words; '' for none."""
        if words == self._words:
            return
        self._words = words
        with contextlib.suppress(BrokenPipeError):  # a run goes on without its herald
            self._process.stdin.write(words.replace('\n', ' ') + '\n')
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends it without a word."""
        self.tell('')
        self._process.communicate()


def main() -> None:
    """Reads lines until the process that wrote them has ended; an empty last one means quiet."""
    host, _, port = sys.argv[1].rpartition(':')
    words = ''
    for line in sys.stdin:
        words = line.strip()
    if words and not _answers(host.strip('[]'), int(port)):
        print(words, file=sys.stderr, flush=True)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError:
        return False
    return True


if __name__ == '__main__':
    main()
