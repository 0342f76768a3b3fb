"""Names of results: possible on every file system, and never the same twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .files import MAX_NAME_BYTES, cut_name


def as_text(name: str) -> str:
    """Name of a file as text: what is not UTF-8 in it becomes %XX."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode('utf-8', 'backslashreplace').replace('\\x', '%')
    return name


class FreeNames:
    """Give each result a name that no other one has, even where ``A`` and ``a`` are the same."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()  # of the names that were wanted, so that many equal ones take no longer

    def give(self, *wanted: str, suffix: str = '', room: int = MAX_NAME_BYTES) -> str:
        """Take the first name of ``wanted`` that is free, else the last one with a number.

        Args:
            *wanted: Names, best first; what is too long is cut.
            suffix: Ending of the name.
            room: Longest name in bytes, with the suffix.
        """
        for stem in wanted:
            name = cut_name(stem, room - len(os.fsencode(suffix))) + suffix
            if name.casefold() not in self._taken:
                break
        while name.casefold() in self._taken:
            self._numbers[wanted[-1].casefold()] += 1
            ending = f'_{self._numbers[wanted[-1].casefold()] + 1}{suffix}'
            name = cut_name(wanted[-1], room - len(os.fsencode(ending))) + ending
        self._taken.add(name.casefold())
        return name


def result_names(paths: Sequence[Path]) -> list[str]:
    """Names for results: the names of the inputs, preceded by their folders where they are not unique."""
    counts, given = Counter(path.name for path in paths), set()
    names = []
    for path in paths:
        name = path.name if counts[path.name] == 1 else '_'.join(path.parts).replace(os.sep, '')
        name, number = as_text(name), 1
        stem, suffix = os.path.splitext(name)
        while name in given:
            number += 1
            name = f'{stem}_{number}{suffix}'
        given.add(name)
        names.append(name)
    return names
