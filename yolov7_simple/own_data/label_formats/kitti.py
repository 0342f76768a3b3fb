"""KITTI: a text file an image, fifteen columns an object, from the name of its class to its place in space."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Box, Labels
from ..names import with_suffix
from .collector import Collector
from .documents import number, read_text, shorten

# Class, truncation, occlusion, angle, the box, three sizes, three coordinates, angle, and perhaps a score.
LINE = re.compile(r'[^\s\d]\S*(\s+[-+]?[\d.]+(e[-+]?\d+)?){14,15}', re.IGNORECASE)
IGNORED = 'DontCare'


def read_kitti(files: Files, findings: Findings) -> Labels | None:
    """Read KITTI's labels; regions that nobody labelled, DontCare, are left out and counted.

    Raises:
        InputError: A line beside others of KITTI cannot be read.
    """
    texts: dict[str, list[str]] = {}
    for file in with_suffix(files.names, {'.txt'}):
        data = files.path(file).read_bytes()
        if not data.strip():
            texts[file] = []
            continue
        try:
            texts[file] = read_text(files, file).splitlines()
        except InputError:
            continue
    counts: Counter[PurePosixPath] = Counter()
    for file, lines in texts.items():
        counts[PurePosixPath(file).parent] += sum(
            2 * bool(LINE.fullmatch(one.strip())) - 1 for one in lines if one.strip()
        )
    labels = [file for file in texts if counts[PurePosixPath(file).parent] > 0]
    collector = Collector('KITTI', files, findings)
    pairs = collector.pair({file: [] for file in labels})
    for file in labels:
        boxes = [parse_line(line.strip(), f'{file}, line {i}', collector) for i, line in enumerate(texts[file], 1)]
        collector.add(pairs[file], boxes, file)
    return collector.labels(str(PurePosixPath(next(iter(labels), '')).parent))


def parse_line(line: str, where: str, collector: Collector) -> Box | None:
    """The box of a line; None: it is blank, or of no object.

    Raises:
        InputError: It cannot be read.
    """
    if not line:
        return None
    if not LINE.fullmatch(line):
        raise InputError(f'{where}: not a label of KITTI, which is a class and at least 14 numbers: {shorten(line)}')
    name, *values = line.split()
    if name == IGNORED:
        collector.findings.repair(f'regions called {IGNORED}, left out', where)
        return None
    return collector.box(where, name, tuple(number(value, 'a corner', where) for value in values[3:7]))
