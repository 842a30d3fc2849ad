"""One run at a time in a directory: an advisory lock that the operating system releases.

The lock is `flock(2)` on the file, not the file itself: it is gone with the process that held it,
however that ended, so the file may lie there for ever and never is stale.
"""

import fcntl
import json
import os
import pathlib
import socket
import time
from typing import IO

from bigmodels import errors

NAME = '.lock'


class Lock:
    """An exclusive lock on a directory, from construction to `release` or the process's end.

    The file says who holds it: host, pid, and when it was taken.

    Raises:
      UserError: if another process, or another thread of this one, holds it.
    """

    def __init__(self, directory: pathlib.Path):
        path = directory / NAME
        self._file = _locked(path)
        for _ in range(9):  # where files have other numbers by name and open, that is no reason
            if _is_at(path, self._file):
                break
            self._file.close()  # another start has moved the directory aside
            directory.mkdir(exist_ok=True)
            self._file = _locked(path)
        self._file.truncate(0)
        holder = {
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
        }
        self._file.write(json.dumps(holder) + '\n')
        self._file.flush()

    def release(self) -> None:
        """Lets others in."""
        self._file.truncate(0)
        self._file.close()


def _locked(path: pathlib.Path) -> IO[str]:
    """The file, open and locked."""
    file = path.open('a+')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise errors.UserError(
            f'A run is under way in {path.parent}: {_holder(path)}. Wait until it ends or stop it, '
            f'or start another run with --workdir=...'
        ) from None
    except OSError as error:  # some network file systems have no locks
        print(f'WARNING: {path.parent} cannot be locked ({error.strerror}): start no second run '
              f'in it while this one is under way.')  # fmt: skip
    return file


def _is_at(path: pathlib.Path, file: IO[str]) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(path: pathlib.Path) -> str:
    """Who holds a lock, as far as its file says."""
    try:
        holder = json.loads(path.read_text())
        return f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'
    except (OSError, ValueError, KeyError):  # it is only just being taken
        return 'by a process that has not yet said who it is'
