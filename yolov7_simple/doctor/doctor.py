"""What a user should know of a folder or of the sets of a config before training: checked, and told in lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TextIO

from mmengine.config import Config

from ..own_data.folder import OwnData
from ..runtime.errors import InputError, UserError, examples
from . import checks
from .checks import Problem
from .image_sets import ImageSet, InputSize, build_set, class_rows, input_size, own_sets
from .pixels import Pixels, read_all_pixels

MAX_SUMMARY = 12  # lines
MAX_CLASSES = 20  # that fit on a screen

Check = Callable[[Sequence[ImageSet]], Iterator[Problem]]


class Examination(NamedTuple):
    """What was found.

    Args:
        remarks: What was said of a folder when it was read, a line each.
        sets: Those that could be read.
        sizes: What the configs make of an image.
        pixels: Of each set, what was read of its images.
        problems: Errors first.
        unread: Sets that could not be read, and why.
    """

    remarks: list[str]
    sets: list[ImageSet]
    sizes: list[InputSize]
    pixels: dict[str, list[Pixels]]
    problems: list[Problem]
    unread: dict[str, str]

    @property
    def status(self) -> int:
        """0: nothing was found, 1: warnings, 2: it cannot be trained on, or a check failed."""
        return max((2 if problem.is_error else 1 for problem in self.problems), default=0)

    def lines(self) -> list[str]:
        """All of it for a screen."""
        found = list(self.remarks)
        for one in self.sets:
            crowds = f', {one.num_crowds} crowd regions' if one.num_crowds else ''
            empty = (one.num_per_image == 0).sum()
            found += [
                f'=== {one.name}: {one.source}',
                f'  {len(one.paths)} images, {empty} without a box; {len(one.boxes)} boxes{crowds}',
                *(f'  {count} {what}' for what, count in one.repairs.items()),
            ]
        found += [f'=== {name}: cannot be read' for name in self.unread]
        if self.sets:
            found += table_lines(self.sets)
        unusable = sum(bool(own.problem) for pixels in self.pixels.values() for own in pixels)
        total = sum(len(one.paths) for one in self.sets)
        found.append(f'  {unusable} of {total} images are missing, damaged, or of another size than annotated')
        return [*found, *map(str, self.problems)]

    def content(self) -> dict:
        """The same for JSON, with all cases of each problem."""
        return {
            'status': self.status,
            'remarks': self.remarks,
            'sets': [
                {
                    'name': one.name,
                    'annotations': one.source,
                    'images': len(one.paths),
                    'images_without_box': int((one.num_per_image == 0).sum()),
                    'boxes': len(one.boxes),
                    'crowd_regions': one.num_crowds,
                    'classes': dict(zip(one.classes, one.num_per_class.tolist())),
                    'repairs': dict(one.repairs),
                }
                for one in self.sets
            ],
            'problems': [
                {'check': one.check, 'level': one.level, 'count': one.count, 'line': str(one), 'items': list(one.items)}
                for one in self.problems
            ],
        }


def refusal(error: UserError) -> Examination:
    """What is found where nothing can be read."""
    problem = Problem('annotations', 0, str(error), (), '', is_error=True)
    return Examination([], [], [], {}, [problem], {})


def examine(
    remarks: list[str], configs: Mapping[str, dict], sized_by: Sequence[Config], workers: int, stream: TextIO
) -> Examination:
    """Read the sets and all of their images, and check all.

    Args:
        remarks: What was said of a folder when it was read.
        configs: Of the datasets, by the names of their splits.
        sized_by: Configs whose sizes of image the boxes are checked against.
        workers: Processes that read images.
        stream: Where progress is shown.
    """
    sets, unread = [], {}
    for name, config in configs.items():
        try:
            sets.append(build_set(name, config))
        except UserError as error:
            unread[name] = str(error)
    problems = [Problem('annotations', 0, f'{name}: {why}', (), '', is_error=True) for name, why in unread.items()]
    pixels = {one.name: read_all_pixels(one, workers, stream) for one in sets}
    sizes, unsized = input_sizes(sized_by)
    problems += [*unsized, *run_checks({**box_checks(sizes), **pixel_checks(pixels)}, sets)]
    return Examination(remarks, sets, sizes, pixels, sorted(problems, key=lambda problem: not problem.is_error), unread)


def input_sizes(configs: Sequence[Config]) -> tuple[list[InputSize], list[Problem]]:
    """The sizes of the configs, and a problem for each whose size is not known: its tiny boxes are not, either."""
    sizes, problems = [], []
    for cfg in configs:
        try:
            sizes.append(input_size(cfg))
        except InputError as error:
            problems.append(failed('tiny boxes', str(error)))
    return sizes, problems


def box_checks(sizes: Sequence[InputSize]) -> dict[str, Check]:
    """The checks that need no pixels."""
    return {
        'same file': checks.check_files,
        'boxes twice': checks.check_twice,
        'missing classes': checks.check_classes,
        'tiny boxes': partial(checks.check_tiny, sizes=sizes),
        'aspect ratios': checks.check_aspects,
        'boxes at the border': checks.check_borders,
        'images without a box': checks.check_empty,
    }


def pixel_checks(pixels: Mapping[str, Sequence[Pixels]]) -> dict[str, Check]:
    """The checks of what was read of all images of all sets."""
    return {
        'images': partial(checks.check_readable, pixels=pixels),
        'same image': partial(checks.check_content, pixels=pixels),
        'nearly the same image': partial(checks.check_near, pixels=pixels),
        'one colour': partial(checks.check_colors, pixels=pixels),
    }


def run_checks(named: Mapping[str, Check], sets: Sequence[ImageSet]) -> list[Problem]:
    """Run checks. One that fails is an error, as nobody knows what it would have found."""
    problems = []
    for name, check in named.items():
        try:
            problems += check(sets)
        except Exception as error:  # any
            reason = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
            problems.append(failed(name, reason))
    return problems


def failed(check: str, reason: str) -> Problem:
    """The problem that a check could not be made."""
    return Problem(check, 0, f'check {check!r} failed: {reason}', (), '', is_error=True)


def table_lines(sets: Sequence[ImageSet]) -> list[str]:
    """Boxes of each class in each set."""
    rows = class_rows(sets)
    more = len(rows) - MAX_CLASSES
    shown = sorted(rows, key=lambda row: -sum(row[1:-1]))[:MAX_CLASSES] if more > 0 else rows
    cells = [['class', *(one.name for one in sets), 'median side'], *shown]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(cells[0]))]
    lines = [
        '  '.join(['', f'{name:{widths[0]}}', *(f'{cell:>{width}}' for cell, width in zip(rest, widths[1:]))])
        for name, *rest in cells
    ]
    return [*lines, f'  and {more} classes with fewer boxes'] if more > 0 else lines


def describe(data: OwnData) -> list[str]:
    """What a folder is, and what was found on reading it."""
    head = f'{data.root}, in the form of {data.form}, {len(data.classes)} classes: {examples(data.classes)}'
    return [head, *(f'  {line}' for line in data.findings.lines())]


def summary(data: OwnData, cfg: Config) -> list[str]:
    """What to know before training starts, in :data:`MAX_SUMMARY` lines or fewer; no pixel is read.

    Args:
        data: Read from a folder.
        cfg: Config that it is trained with.
    """
    head, *findings = describe(data)
    splits = [
        f'  {name}: {split.num_images} images with {split.num_boxes} boxes, {split.ann_file}'
        for name, split in data.splits.items()
    ]
    sizes, problems = input_sizes([cfg])
    problems += run_checks(box_checks(sizes), own_sets(data))
    lines = [head, *splits, *(f'  {problem}' for problem in problems), *findings]
    if len(lines) > MAX_SUMMARY:
        more = len(lines) - MAX_SUMMARY + 1
        lines[MAX_SUMMARY - 1 :] = [f'  and {more} lines more: python tools/check_dataset.py --data {data.root}']
    return lines
