"""KITTI: a text file an image, fifteen columns an object, from the name of its class to its place in space."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Box, Labels
from ..names import with_suffix
from .collector import Collector
from .documents import quote, read_text, to_number

# Class, truncation, occlusion, angle, the box, three sizes, three coordinates, angle, and perhaps a score.
KITTI_LINE = re.compile(r'[^\s\d]\S*(\s+[-+]?[\d.]+(e[-+]?\d+)?){14,15}', re.IGNORECASE)
IGNORED = 'DontCare'
NUM_JUDGED = 20  # lines by which a folder is known


def read_kitti(files: Files, findings: Findings) -> Labels | None:
    """Read KITTI's labels; regions that nobody labelled, DontCare, are left out and counted.

    Raises:
        InputError: A line beside others of KITTI cannot be read.
    """
    folders: dict[PurePosixPath, list[str]] = {}
    for file in with_suffix(files.names, {'.txt'}):
        folders.setdefault(PurePosixPath(file).parent, []).append(file)
    labels = [file for texts in folders.values() if are_labels(files, texts) for file in texts]
    collector = Collector('KITTI', files, findings)
    pairs = collector.pair({file: [] for file in labels})
    for file in labels:
        lines = read_text(files, file).splitlines() if files.path(file).read_bytes().strip() else []
        boxes = [parse_line(line.strip(), f'{file}, line {i}', collector) for i, line in enumerate(lines, 1)]
        collector.add(pairs[file], boxes, file)
    return collector.labels(str(PurePosixPath(next(iter(labels), '')).parent))


def are_labels(files: Files, texts: list[str]) -> bool:
    """Whether the text files of a folder are KITTI's: most lines of the first that have any are."""
    found: list[bool] = []
    for file in texts:
        lines = files.path(file).read_bytes().decode('utf-8', 'replace').splitlines()
        found += [KITTI_LINE.fullmatch(line.strip()) is not None for line in lines if line.strip()]
        if len(found) >= NUM_JUDGED:
            break
    return 2 * sum(found) > len(found)


def parse_line(line: str, where: str, collector: Collector) -> Box | None:
    """The box of a line; None: it is blank, or of no object.

    Raises:
        InputError: It cannot be read.
    """
    if not line:
        return None
    if not KITTI_LINE.fullmatch(line):
        raise InputError(f'{where}: not a label of KITTI, which is a class and at least 14 numbers: {quote(line)}')
    name, *values = line.split()
    if name == IGNORED:
        collector.findings.repair(f'regions called {IGNORED}, left out', where)
        return None
    return collector.box(where, name, tuple(to_number(value, 'a corner', where) for value in values[3:7]))
