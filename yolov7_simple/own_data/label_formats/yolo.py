"""YOLO: one text file an image, one line an object: class and box, polygon, oriented box or pose, as fractions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from ...runtime.errors import InputError, examples
from ..files import Files
from ..findings import NUM_NAMED, Findings
from ..labels import Box, LabelledImage, Labels
from ..names import BACKGROUND_WORDS, LABEL_FOLDERS, normalize, parts_of, split_in, with_suffix, words_of
from ..sizes import read_headers
from ..source import read_yaml
from ..splits import add_split, images_of_list, read_lines, splits_of_lists

# Fractions reach beyond 1 where an object is cut by the border; numbers beyond this are pixels.
MAX_FRACTION = 2.0
NAME_FILES = ('classes.txt', 'obj.names', '_darknet.labels', 'predefined_classes.txt')
NUMBER = r'[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?nan|[-+]?inf'
YOLO_LINE = re.compile(rf'-?\d+(?:\.0*)?(?:[\s,;]+(?:{NUMBER})){{4,}}', re.IGNORECASE)


class Line(NamedTuple):
    """One line of a label file: where it stands, class, and the numbers behind it."""

    where: str
    label: int
    numbers: list[float]


def read_yolo(files: Files, findings: Findings) -> Labels | None:
    """Read YOLO's labels, the names of classes, and the splits that ``data.yaml`` or lists declare.

    Raises:
        InputError: A line, the names or the splits cannot be read.
    """
    config = find_config(files)
    candidates = [
        file for file in with_suffix(files.names, {'.txt'}) if PurePosixPath(file).name.lower() not in NAME_FILES
    ]
    texts = {file: text for file in candidates if (text := read_label_lines(files, file)) is not None}
    folders = label_folders(texts)
    labels = [file for file in texts if PurePosixPath(file).parent in folders]
    for file in candidates:
        if file not in texts and PurePosixPath(file).parent in folders and files.image_of_label(file):
            raise InputError(f'{files.path(file)}: is not text in UTF-8, as labels of YOLO are: write it anew')
    pairs: dict[str, str] = {}
    lost = []
    for label in labels:
        image = files.image_of_label(label)
        if image is None:
            lost.append(label)
        elif image in pairs:
            raise InputError(
                f'{files.path(image)}: has two label files, {pairs[image]} and {label}. Move the one that does not '
                'count elsewhere'
            )
        else:
            pairs[image] = label
    if not any(texts[label] for label in pairs.values()):
        return None
    lists = {
        file
        for file in lost
        if split_in(PurePosixPath(file).stem) and not any(YOLO_LINE.fullmatch(line) for _, line in texts[file])
    }
    findings.leave_out('labels without an image', [label for label in lost if label not in lists])
    findings.leave_out('text files that are no labels of YOLO', sorted(set(candidates) - set(labels) - lists))

    splits = splits_of_config(files, config, findings) if config else {}
    splits = splits or splits_of_lists(files, findings, pairs.values())
    names = read_names(files, config, labels)
    lines = [line for label in pairs.values() for line in parse_lines(label, texts[label], names)]
    kind = Kind(config[1] if config else {}, lines, findings)
    # Beside images with labels, those without show background.
    image_folders = {PurePosixPath(image).parent for image in pairs}
    background = [
        image
        for image in files.images
        if image not in pairs
        and (
            PurePosixPath(image).parent in image_folders
            or image in splits
            or set(words_of(str(PurePosixPath(image).parent))) & BACKGROUND_WORDS
        )
    ]
    if background:
        findings.remark(f'{len(background)} images have no label file and are taken as background: '
                        f'{examples(background, NUM_NAMED)}')  # fmt: skip
    images = [*pairs, *background]
    headers = read_headers(files, images)
    by_label: dict[str, list[Line]] = {}
    for line in lines:
        by_label.setdefault(line.where.rpartition(', line ')[0], []).append(line)
    labelled = []
    for image in images:
        label = pairs.get(image, '')
        boxes = [kind.box(line, names, headers[image][:2]) for line in by_label.get(label, [])]
        labelled.append(LabelledImage(image, boxes, label))
    source = config[0] if config else str(PurePosixPath(next(iter(pairs.values()))).parent)
    return Labels('YOLO', labelled, names, splits, source, config is not None)


def read_label_lines(files: Files, file: str) -> list[tuple[int, str]] | None:
    """The lines of a file that are not blank, with their numbers; None: it is no text."""
    try:
        text = files.path(file).read_bytes().decode('utf-8-sig')
    except UnicodeError:
        return None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def label_folders(texts: dict[str, list[tuple[int, str]]]) -> set[PurePosixPath]:
    """The folders whose text files are labels: most of their lines are, or they are called labels and some are."""
    counts: dict[PurePosixPath, list[int]] = {}
    for file, lines in texts.items():
        count = counts.setdefault(PurePosixPath(file).parent, [0, 0])
        count[0] += sum(YOLO_LINE.fullmatch(line) is not None for _, line in lines)
        count[1] += len(lines)
    return {
        folder
        for folder, (good, total) in counts.items()
        if 2 * good > total or (good and set(map(normalize, folder.parts)) & LABEL_FOLDERS) or not total
    }


def parse_lines(file: str, lines: Sequence[tuple[int, str]], names: Sequence[str]) -> Iterator[Line]:
    """Read the lines of a label file.

    Raises:
        InputError: One is no label, has a number that is not finite, or a class that there is not.
    """
    for number, text in lines:
        where = f'{file}, line {number}'
        if not YOLO_LINE.fullmatch(text):
            raise InputError(
                f'{where}: not a label of YOLO, which is a class number and at least four numbers: {text!r}'
            )
        label, *numbers = map(float, re.split(r'[\s,;]+', text))
        if not all(map(math.isfinite, numbers)):
            raise InputError(f'{where}: a number that is not finite: {text!r}')
        if not 0 <= label < len(names):
            raise InputError(f'{where}: class {label:g}, but the classes are 0 to {len(names) - 1}: {examples(names)}')
        yield Line(where, int(label), numbers)


class Kind:
    """What the numbers of a line mean, told line by line where one can, else by all lines of the set.

    Four: a box. Five: a box and its score. Eight, or another even number from six on: the corners of an oriented box or
    of a polygon. A pose has keypoints behind its box, as ``kpt_shape`` of data.yaml says, or as a visibility of 0, 1 or
    2 with each point shows.

    Args:
        config: Of data.yaml, may be empty.
        lines: All lines.
        findings: Told what was repaired.

    Raises:
        InputError: Lines could be read in two ways.
    """

    def __init__(self, config: dict, lines: Sequence[Line], findings: Findings) -> None:
        self.findings = findings
        shape = config.get('kpt_shape')
        self.num_pose = 4 + int(shape[0]) * int(shape[1]) if isinstance(shape, list) and len(shape) == 2 else None
        large = [line for line in lines if max(map(abs, line.numbers[:4])) > MAX_FRACTION]
        self.is_pixels = bool(large) and len(large) > len(lines) / 2
        if large and not self.is_pixels:
            raise InputError(f'{large[0].where}: numbers of a box beyond 1, which are no fractions of the image')
        points = [line for line in lines if len(line.numbers) >= 6 and len(line.numbers) % 2 == 0]
        if self.num_pose is None and points and all(looks_like_pose(line.numbers) for line in points):
            raise InputError(
                f'{points[0].where}: {len(points[0].numbers)} numbers could be a polygon, or a box with keypoints: set '
                'kpt_shape in data.yaml for keypoints'
            )

    def box(self, line: Line, names: Sequence[str], size: tuple[int, int]) -> Box:
        """The box of a line, on an image of this width and height.

        Raises:
            InputError: Numbers that are neither box, polygon nor pose.
        """
        numbers, count = line.numbers, len(line.numbers)
        has_flags = count > 4 and (count - 4) % 3 == 0 and all(number in (0, 1, 2) for number in numbers[6::3])
        if count == 5 and 0 <= numbers[4] <= 1:
            self.findings.repair('boxes whose sixth number is a score, which is not used', line.where)
        is_box = count == 4 or (count == 5 and 0 <= numbers[4] <= 1) or count == self.num_pose or has_flags
        if is_box:
            x, y, w, h = numbers[:4]
            if min(w, h) < 0:
                raise InputError(f'{line.where}: a box with a negative side')
            corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        elif count >= 6 and count % 2 == 0 and self.num_pose is None:
            xs, ys = numbers[::2], numbers[1::2]
            corners = [min(xs), min(ys), max(xs), max(ys)]
        else:
            raise InputError(f'{line.where}: {count} numbers are neither a box, a polygon nor a pose')
        if self.is_pixels:
            self.findings.repair('boxes in pixels and not in fractions', line.where)
            size = (1, 1)
        scale = (*size, *size)
        return Box(names[line.label], *(value * side for value, side in zip(corners, scale)))


def looks_like_pose(numbers: Sequence[float]) -> bool:
    """Whether all points behind the first four numbers lie in the box that these would be."""
    x, y, w, h = numbers[:4]
    rest = numbers[4:]
    return all(abs(a - x) <= w / 2 and abs(b - y) <= h / 2 for a, b in zip(rest[::2], rest[1::2]))


def find_config(files: Files) -> tuple[str, dict] | None:
    """The data.yaml of the folder: the YAML file with names of classes, and its content, all values as texts.

    Raises:
        InputError: It is not YAML, or several files declare different names.
    """
    found: list[tuple[str, dict]] = []
    for file in with_suffix(files.names, {'.yaml', '.yml'}):
        content = read_yaml(files.path(file))
        if isinstance(content, dict) and content.get('names'):
            found.append((file, content))
    if not found:
        return None
    named = [one for one in found if PurePosixPath(one[0]).stem.lower() in ('data', 'dataset')] or found
    for other in named[1:]:
        if other[1] != named[0][1]:
            raise InputError(
                f'{files.root}: {named[0][0]} and {other[0]} both describe the set, and differ. Name one as --data'
            )
    return named[0]


def read_names(files: Files, config: tuple[str, dict] | None, labels: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes, in the order of their numbers.

    Raises:
        InputError: There are none, files of names differ, or names are doubled or empty.
    """
    if config:
        file, names = config[0], config[1]['names']
        if isinstance(names, str):
            target = files_named(files, names)
            names = (
                read_lines(files.path(target)) if target else [name.strip() for name in names.strip('[]').split(',')]
            )
        if isinstance(names, dict):
            if not all(re.fullmatch(r'\d+', str(key)) for key in names):
                raise InputError(
                    f'{files.path(file)}: keys of names must be the numbers of the classes, got {list(names)}'
                )
            numbers = sorted(map(int, names))
            if numbers != list(range(len(numbers))):
                raise InputError(f'{files.path(file)}: names must have each number from 0 on, got {numbers}')
            names = [names[key] for key in sorted(names, key=int)]
    else:
        lists = {
            file: read_lines(files.path(file))
            for file in files.names
            if PurePosixPath(file).name.lower() in NAME_FILES or file.lower().endswith('.names')
        }
        if not lists:
            raise InputError(
                f'{files.root}: has labels of YOLO, but no names of classes: write them into {files.root}/classes.txt, '
                'one a line in the order of their numbers'
            )
        (file, names), *others = lists.items()
        for other, other_names in others:
            if other_names != names:
                raise InputError(f'{files.root}: {file} and {other} have other names of classes, or another order')
    names = tuple(str(name).strip() for name in names)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled or not all(names):
        raise InputError(
            f'{files.path(file)}: names of classes must differ and not be empty, got {examples(doubled) or names}'
        )
    return names


def files_named(files: Files, name: str) -> str | None:
    """The file that a path in data.yaml means: the one with the most folders in common."""
    parts = parts_of(name.replace('\\', '/'))
    found = [file for file in files.names if PurePosixPath(file).name == parts[-1]]
    return max(found, key=lambda file: len(set(parts_of(file)) & set(parts)), default=None) if len(parts) else None


def splits_of_config(files: Files, config: tuple[str, dict], findings: Findings) -> dict[str, str]:
    """The splits that data.yaml declares by folders and lists, alone or several.

    What it declares and is not there is remarked on.

    Raises:
        InputError: An image is in two splits.
    """
    file, content = config
    splits: dict[str, str] = {}
    for key, split in (('train', 'train'), ('val', 'val'), ('valid', 'val'), ('test', 'test')):
        places = content.get(key) or []
        for place in [places] if isinstance(places, str) else places:
            images = images_at(files, place, PurePosixPath(file).parent, findings)
            if images is None:
                findings.remark(f'{file}: {key}: {place} is not there')
            for image in images or ():
                add_split(splits, image, split)
    return splits if any('train' in names.split(',') for names in splits.values()) else {}


def images_at(files: Files, place: str, folder: PurePosixPath, findings: Findings) -> list[str] | None:
    """The images of a folder or a list that data.yaml names; None: it is not there.

    The path may start from the YAML file, from its ``path``, or from another machine's root, so the folder of this one
    that agrees in the most parts from the end is taken.
    """
    wanted = [part for part in re.split(r'[\\/]+', place.strip()) if part not in ('', '.', '..')]
    if not wanted:
        return [image for image in files.images if PurePosixPath(image).is_relative_to(folder)]
    if wanted[-1].lower().endswith('.txt'):
        target = files_named(files, '/'.join(wanted))
        return images_of_list(files, target, findings) if target else None
    known = {parent for image in files.images for parent in PurePosixPath(image).parents}
    for start in range(len(wanted)):
        tail = PurePosixPath(*wanted[start:])
        found = {one for one in known if one.parts[-len(tail.parts) :] == tail.parts}
        if found:
            best = min(found, key=lambda one: (len(one.parts), str(one)))
            return [image for image in files.images if PurePosixPath(image).is_relative_to(best)]
    return None
