"""Errors that a user can mend, told in one paragraph and without a traceback."""

import contextlib
import difflib
import errno
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

# What a full disk answers, one that may not be written, and one with quotas.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake in what a user gave us. Says what came, what was allowed and what to do."""


class Stopped(SystemExit):
    """A run that ended because it was asked to. Says what was saved; `code` is the exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(status)
        self.message = message

    def __str__(self) -> str:
        return self.message


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not among `allowed`; names the nearest one that is."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    return UserError(f'Unknown {kind} {name!r}.{hint} Allowed: {", ".join(allowed) or "none"}.')


@contextlib.contextmanager
def told_of(where: str) -> Iterator[None]:
    """A UserError within begins with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{where}: {error}') from error


@contextlib.contextmanager
def unwritten(where: object) -> Iterator[None]:
    """An OSError of what is written within is a UserError that names `where`."""
    try:
        yield
    except BrokenPipeError:  # its reader has seen enough
        raise
    except OSError as error:
        raise UserError(f'{where} cannot be written: {error.strerror or error}.') from error


def some(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def exit_on_user_error(command: Callable[[], None]) -> None:
    """Runs `command`; a UserError is printed as one paragraph and ends with exit status 2.

    An interrupt from the keyboard ends with status 130, a run that was asked to stop with its own,
    and output whose reader, such as `head`, has seen enough with 141.
    """
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        print('interrupted: the same command resumes a run', file=sys.stderr)
        raise SystemExit(130) from None  # what shells report for SIGINT
    except BrokenPipeError:
        if not _output_is_unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left of it
        raise SystemExit(141) from None  # what shells report for SIGPIPE


def _output_is_unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are always told
    return bool(poll.poll(0))
