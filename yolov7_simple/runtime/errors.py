"""The root class of errors that are the user's mistake, and how tools report them."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Sequence

NUM_EXAMPLES = 5


class UserError(ValueError):
    """A mistake in a command line, a config, a file or a checkpoint.

    The message names the mistake and says what to do; tools print it without a traceback.
    """


class InputError(UserError):
    """An input that cannot be used; the message names it and says why."""


class OutputError(UserError):
    """Results that cannot be written; the message names the file and says why.

    Attributes:
        is_full: Whether the disk is full, so that the next file cannot be written either.
    """

    def __init__(self, path: object, error: OSError | str) -> None:
        problem = error if isinstance(error, str) else error.strerror or error
        super().__init__(f'{path}: cannot be written: {problem}')
        self.is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class DamagedImageError(UserError):
    """An image file that is missing, cut short, of absurd dimensions, or not an image.

    Attributes:
        path: Path of the file.
        problem: What is wrong with it, worded to follow the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)  # both arguments, so that workers can pickle the error
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f'{self.path} {self.problem}'


def examples(items: Sequence, count: int = NUM_EXAMPLES) -> str:
    """List the first few items for a message, and say how many more there are."""
    more = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(map(str, items[:count])) + more


def check_share(name: str, value: float) -> float:
    """Return a threshold of scores or IoU.

    Raises:
        InputError: It is not from 0 to 1, or not a number.
    """
    if not 0 <= value <= 1:  # also of nan
        raise InputError(f'{name} {value}: must be from 0 to 1')
    return value


def run_tool(main: Callable[[], int | None]) -> None:
    """Run the ``main`` of a tool and exit with its status; a :class:`UserError` becomes one line and status 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files may not be text; as in stderr
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f'error: {error}')
