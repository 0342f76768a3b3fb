"""The screen of a run: its own lines above one line of progress; all else goes into the log file."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from mmengine.hooks import Hook
from mmengine.logging import MMLogger, logger
from mmengine.runner import Runner
from tqdm import tqdm

MAX_ALIKE = 3  # warnings from one place that are shown in full
MAX_TABLE = 28  # lines of a table of results that still fits
FIRST_LINE = 30.0  # seconds until progress is told where there is no terminal
PACKAGE = Path(__file__).parents[1]
# Warnings for the host's developers; a user can do nothing about them.
FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)
CLEAR_LINE = '\r\033[K'


class ProgressLine(tqdm):
    """tqdm without its thread, since workers are forked."""

    monitor_interval = 0


class Screen:
    """Lines of text, above one line of progress.

    On a terminal the line of progress is overwritten. Elsewhere it is printed after 30 seconds, and then whenever the
    run has become twice as old, so that a run of weeks prints twenty. Until :meth:`release` warnings are held back, as
    the making of a run warns of each tensor on its own.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self.shows_tables = False
        self._stream = stream
        self._process = os.getpid()
        self._line: ProgressLine | None = None
        self._painted, self._begin, self._due = 0.0, time.monotonic(), FIRST_LINE
        # Texts of the warnings from each place (file and line), and how many of them were told.
        self._warnings: dict[tuple[str, int], list[str]] = {}
        self._told: dict[tuple[str, int], int] = {}
        self._seen: set[str] = set()
        self._is_held = True

    def say(self, text: str) -> None:
        """Print lines."""
        with suppress(OSError):  # nobody reads any more, which must not end a training
            if os.getpid() != self._process:  # a worker
                text, line = (CLEAR_LINE + text if self._stream.isatty() else text), None
            else:
                line = self._line
            if line:
                line.clear()
            self._stream.write(f'{text}\n')
            self._stream.flush()
            if line:
                line.refresh()

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far the run is.

        Args:
            text: In words.
            done: Steps done.
            total: Steps of the whole.
        """
        now = time.monotonic()
        if not self._stream.isatty():
            if now - self._begin >= self._due:
                self._due = 2 * (now - self._begin)
                self.say(text)
        elif now - self._painted > 0.1:
            self._painted = now
            with suppress(OSError):
                self._line = self._line or ProgressLine(
                    file=self._stream, bar_format='{bar:10} {desc}', dynamic_ncols=True, leave=False, total=total
                )
                self._line.n, self._line.total = done, total
                self._line.set_description_str(text)

    def warn(self, place: tuple[str, int], text: str) -> None:
        """Print a warning, once; of many from one place only the first few.

        Args:
            place: File and line of the code that warns.
            text: The warning.
        """
        if text in self._seen:
            return
        self._seen.add(text)
        alike = self._warnings.setdefault(place, [])
        alike.append(text)
        if not self._is_held and len(alike) <= MAX_ALIKE:
            self._told[place] = len(alike)
            self.say(text)

    def release(self) -> None:
        """Print the warnings that were held back; of many from one place the first, and how many there are."""
        self._is_held = False
        for place, alike in self._warnings.items():
            told = self._told.get(place, 0)
            new, self._told[place] = alike[told:], len(alike)
            if told and new:
                self.say(f'{alike[0]} (and since then {len(new)} more like it, in the log)')
            elif len(new) > MAX_ALIKE:
                self.say(f'{alike[0]} (and {len(new) - 1} more like it, in the log)')
            elif new:
                self.say('\n'.join(new))

    def close(self) -> None:
        """Remove the line of progress, and print what is left to say."""
        if self._line:
            with suppress(OSError):
                self._line.close()
            self._line = None
        self.release()


class ScreenHandler(logging.Handler):
    """Shows what this package logs, and warnings and errors of the host."""

    def __init__(self, screen: Screen, level: int) -> None:
        super().__init__(level)
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, or do not."""
        text = record.getMessage()
        # mmengine's print_log stands between a logger and the code that really calls it.
        between = (__file__, logging.__file__, logger.__file__)
        stack = traceback.walk_stack(None)
        file, line = next((f.f_code.co_filename, n) for f, n in stack if f.f_code.co_filename not in between)
        if record.levelno >= logging.WARNING:
            if 'will be deprecated' not in text:
                self.screen.warn((file, line), f'{record.levelname.lower()}: {text}')
        elif Path(file).is_relative_to(PACKAGE):
            self.screen.say(text)
        elif self.screen.shows_tables and text.startswith('\n+--'):
            num_lines = text.count('\n')
            self.screen.say(text[1:] if num_lines <= MAX_TABLE else f'A table of {num_lines} lines is in the log.')


@contextmanager
def short_screen(make_hook: Callable[[Screen], Hook]) -> Iterator[None]:
    """Let runners show little: what ``make_hook`` shows, what this package logs, and warnings.

    All that mmengine, mmdet and others log or print goes into the log file of the run.

    Args:
        make_hook: Makes a hook from a :class:`Screen`; each runner gets one.
    """
    stdout = sys.stdout
    screen = Screen(stdout)
    if hasattr(stdout, 'reconfigure'):
        stdout.reconfigure(errors='backslashreplace')  # names of classes that the terminal cannot show
    build_logger, register_hooks, show_warning = Runner.build_logger, Runner.register_hooks, warnings.showwarning

    def build_quiet_logger(runner: Runner, *args, **kwargs) -> MMLogger:
        log = build_logger(runner, *args, **kwargs)
        for i, handler in enumerate(log.handlers):
            if type(handler) is logging.StreamHandler:
                log.handlers[i] = ScreenHandler(screen, handler.level)
            elif isinstance(handler, logging.FileHandler):
                # In lines, which keep their order among those of the logger.
                prints = open(handler.baseFilename, 'a', buffering=1, encoding='utf-8')  # noqa: SIM115
                sys.stdout = stack.enter_context(prints)
        return log

    def register_hooks_and_ours(runner: Runner, *args, **kwargs) -> None:
        register_hooks(runner, *args, **kwargs)
        runner.register_hook(make_hook(screen))

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if sys.stdout is not stdout:  # but the log file
            print(warnings.formatwarning(message, category, filename, lineno, line=''), end='')
        if not issubclass(category, FOR_DEVELOPERS):
            screen.warn((filename, lineno), f'{category.__name__}: {message} ({filename}:{lineno})')

    with ExitStack() as stack:
        for owner, name, value in (
            (sys, 'stdout', stdout),
            (Runner, 'build_logger', build_logger),
            (Runner, 'register_hooks', register_hooks),
            (warnings, 'showwarning', show_warning),
        ):
            stack.callback(setattr, owner, name, value)
        stack.callback(screen.close)
        Runner.build_logger, Runner.register_hooks = build_quiet_logger, register_hooks_and_ours
        warnings.showwarning = show
        try:
            yield
        except KeyboardInterrupt:
            screen.close()
            screen.say('Interrupted. A training goes on with --resume, from its last checkpoint.')
            sys.exit(130)
