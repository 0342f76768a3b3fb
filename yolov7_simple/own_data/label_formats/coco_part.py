"""One COCO file: its records joined, its images found, and what is not as it should be repaired or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ...datasets.annotation_checks import MAX_NUMBER, is_flag, is_text, is_whole, shorten
from ...datasets.headers import BAR
from ...runtime.errors import InputError, examples
from ..files import Files
from ..findings import NUM_NAMED, Findings
from ..labels import Box, LabelledImage
from ..names import name_variants, normalize, split_of_folders
from .coco_records import (
    CocoFile,
    RawAnnotation,
    RawImage,
    Shape,
    box_numbers,
    box_of_segmentation,
    flag_of,
    has_plain_size,
    id_of,
    is_area,
    is_plain,
    is_plain_box,
    read_categories,
    read_ids,
    size_of,
)

MAX_MISSING = 0.2  # share of the images of a file that may be absent
MAX_ROUNDING = 1.0  # pixels by which a box may leave its image


class CocoPart(NamedTuple):
    """What one file holds.

    Args:
        coco: The file.
        images: Those that are there, each once.
        names: Of its categories, in its order.
        img_dir: Folder that all its file names start from, with a slash or empty; None: it cannot be used as it is.
    """

    coco: CocoFile
    images: list[LabelledImage]
    names: tuple[str, ...]
    img_dir: str | None


def read_part(files: Files, coco: CocoFile, split: str | None, findings: Findings) -> CocoPart:
    """Read one file.

    Raises:
        InputError: A record cannot be right, the message names it; or too many images are not there.
    """
    num_repairs = findings.repairs.total()
    for repair in coco.repairs:
        findings.repair(repair, coco.file)
    records = coco.records('images', RawImage)
    if not records:
        raise InputError(f'{coco.path}: has no images')
    annotations = coco.records('annotations', RawAnnotation)
    num_boxes = Counter(id_of(annotation.category_id) for annotation in annotations)
    names = read_categories(coco, num_boxes, findings)
    paths, img_dir = find_images(files, coco, records, split, findings)
    entries = join_images(coco, records, paths, findings)
    boxes = read_boxes(coco, annotations, entries, paths, names, findings)
    odd = [i for i, record in enumerate(records) if not has_plain_size(record)]
    if odd:
        where = f'{coco.file}: {records[odd[0]].file_name}'
        findings.repair('images whose width or height is absent or no whole number', where, len(odd))
    sizes = {path: size_of(records[i]) for i, path in reversed(list(enumerate(paths))) if path}
    images = [LabelledImage(path, boxes[path], f'{coco.path}: {path}', sizes[path]) for path in boxes]
    check_numbers(coco, images)
    is_right = findings.repairs.total() == num_repairs and len(images) == len(records)
    return CocoPart(coco, images, tuple(names.values()), img_dir if is_right else None)


def find_images(
    files: Files, coco: CocoFile, records: Sequence[RawImage], split: str | None, findings: Findings
) -> tuple[list[str | None], str | None]:
    """Find the image of each record.

    Returns:
        Paths, None where there is no such file; and the folder that all file names start from, None if there is none.

    Raises:
        InputError: A record names no file, one name fits several files, or too many files are not there.
    """
    paths: list[str | None] = []
    img_dirs = set()
    for i, record in enumerate(records):
        name = record.file_name
        if not is_text(name):
            raise InputError(f'{coco.name("images", i, record)}: file_name must be a text, got {shorten(name)}')
        path = files.find_image(name, coco.file, split)
        paths.append(path)
        if path is not None:
            is_exact = f'/{path}'.endswith(f'/{name}')
            img_dirs.add(path[: -len(name)] if is_exact else None)
            if not is_exact:
                findings.repair('file names that are written in another way than the file is', f'{coco.file}: {name}')
    if split in {split_of_folders(path) for path in paths if path is not None}:
        # Where some lie in the folder of their split, one of the same name in the folder of another is not theirs.
        paths = [None if path and split_of_folders(path) not in (None, split) else path for path in paths]
    missing = [record.file_name for record, path in zip(records, paths) if path is None]
    if missing:
        bases = {normalize(PurePosixPath(name).name) for name in set(files.names) - set(files.images)}
        foreign = [name for name in missing if normalize(next(name_variants(name), ('',))[-1]) in bases]
        if foreign:
            raise InputError(f'{coco.path}: {foreign[0]} is there, but is no kind of image that can be read')
        if len(missing) > MAX_MISSING * len(records):
            share = 'all' if len(missing) == len(records) else f'{len(missing)} of'
            raise InputError(
                f'{coco.path}: {share} its {len(records)} images are missing in {files.root}, such as '
                f'{examples(missing, NUM_NAMED)}'
            )
        findings.leave_out(f'of the {len(records)} images of {coco.file}, which are not there', missing)
    return paths, img_dirs.pop() if len(img_dirs) == 1 else None


def join_images(
    coco: CocoFile, records: Sequence[RawImage], paths: Sequence[str | None], findings: Findings
) -> dict[int | str, int]:
    """Join what is said several times of one image.

    Returns:
        Id -> number of its record.

    Raises:
        InputError: Two images have one id, or two names stand for one file, or two sizes.
    """
    entries: dict[int | str, int] = {}
    firsts: dict[str, int] = {}
    for i, (own, record, path) in enumerate(zip(read_ids(coco, 'images', records, findings), records, paths)):
        twin = entries.setdefault(own, i)
        if twin != i and (path is None or paths[twin] != path):
            raise InputError(
                f'{coco.path}: two images have the id {own}: {records[twin].file_name} and {record.file_name}'
            )
        first = i if path is None else firsts.setdefault(path, i)
        if first != i:
            names = records[first].file_name, record.file_name
            if len({tuple(map(normalize, next(name_variants(name)))) for name in names}) > 1:
                raise InputError(
                    f'{coco.path}: {names[0]} and {names[1]} are both found as {path} alone: write their folders as '
                    'they are'
                )
            if size_of(records[first]) != size_of(record):
                raise InputError(f'{coco.path}: {names[0]} is listed twice, with different sizes')
            findings.repair('images that are listed more than once', f'{coco.file}: {names[0]}')
    return entries


def read_boxes(
    coco: CocoFile,
    annotations: Sequence[RawAnnotation],
    entries: dict[int | str, int],
    paths: Sequence[str | None],
    names: dict[int | str, str],
    findings: Findings,
) -> dict[str, list[Box]]:
    """Read the boxes, in the pixels that the file states.

    Args:
        coco: The file.
        annotations: Its annotations.
        entries: Id of an image -> number of its record.
        paths: Path of each record's image, None: it is not there.
        names: Id of a category -> its name.
        findings: Told what was repaired.

    Returns:
        Image -> its boxes, perhaps none.

    Raises:
        InputError: An annotation is of no image or category, or its box or flags cannot be read.
    """
    ids = {annotation.id for annotation in annotations if is_whole(annotation.id) and annotation.id > 0}
    if len(ids) < len(annotations):
        what = 'annotations whose ids are 0, absent, repeated or no numbers; all are numbered from 1'
        findings.repair(what, coco.file, len(annotations) - len(ids))
    boxes: dict[str, list[Box]] = {path: [] for path in paths if path is not None}
    may_repeat = len(ids) < len(annotations) or len(boxes) < len(paths)
    seen: dict[tuple[str, Box], tuple] = {}
    reader = BoxReader(coco, annotations, findings)
    name_of_bar = PurePosixPath(coco.file).name
    for i, annotation in enumerate(tqdm(annotations, desc=name_of_bar, **BAR)):
        image_id, category_id = id_of(annotation.image_id), id_of(annotation.category_id)
        entry, name = entries.get(image_id), names.get(category_id)
        if entry is None:
            raise InputError(f'{reader.name(i)}: there is no image with the id {shorten(annotation.image_id)}')
        if name is None:
            raise InputError(f'{reader.name(i)}: there is no category with the id {shorten(annotation.category_id)}')
        if type(annotation.category_id) is not int or type(annotation.image_id) is not type(image_id):
            findings.repair('annotations that name their image or category by another kind of id', reader.place(i))
        path, box = paths[entry], reader.read(i, name)
        if path is None or box is None:
            continue
        if may_repeat:
            twin = seen.setdefault((path, box), (entry, annotation.id, i))
            is_same = twin[0] != entry or (twin[1] == annotation.id and annotation.id is not None)
            if twin[2] != i and is_same:
                findings.repair('boxes that are listed more than once', reader.place(i))
                continue
        boxes[path].append(box)
    return boxes


class BoxReader:
    """Reads the boxes of a file one by one, and repairs them.

    Args:
        coco: The file.
        annotations: Its annotations.
        findings: Told what was repaired.
    """

    def __init__(self, coco: CocoFile, annotations: Sequence[RawAnnotation], findings: Findings) -> None:
        self.coco = coco
        self.annotations = annotations
        self.findings = findings

    def name(self, i: int) -> str:
        """Name an annotation for an error."""
        return self.coco.name('annotations', i, self.annotations[i])

    def place(self, i: int) -> str:
        """Name an annotation among the findings."""
        return f'{self.coco.file}, annotations[{i}]'

    @cached_property
    def shapes(self) -> list[Shape]:
        """Polygons and masks of all annotations: read only where a box is missing, they are most of a file."""
        return self.coco.records('annotations', Shape)

    def read(self, i: int, name: str) -> Box | None:
        """The box of an annotation, of a class of this name; None: it has no extent, and is left out.

        Raises:
            InputError: There is no box, or it or a flag cannot be read.
        """
        annotation = self.annotations[i]
        box = annotation.bbox if is_plain_box(annotation.bbox) else self.repair_box(i, annotation.bbox)
        if box is None:
            return None
        is_crowd = bool(annotation.iscrowd) if is_plain(annotation) else self.repair_flags(i, annotation)
        x, y, w, h = box
        return Box(name, x, y, x + w, y + h, is_crowd)

    def repair_box(self, i: int, bbox: Any) -> list[float] | None:
        """The four numbers of a box that is not as it should be; None: it has no extent."""
        numbers = box_numbers(bbox)
        if numbers is None:
            wanted = f'four finite numbers (x, y, width, height) up to {MAX_NUMBER:g}'
            raise InputError(f'{self.name(i)}: bbox must be {wanted}, got {shorten(bbox)}')
        if numbers and min(numbers[2:]) < 0:
            raise InputError(f'{self.name(i)}: bbox {shorten(bbox)} has a negative side')
        if numbers and min(numbers[2:]) > 0:
            self.findings.repair('boxes that are written as texts', self.place(i))
            return numbers
        around = box_of_segmentation(self.shapes[i].segmentation)
        if around is not None:
            self.findings.repair('boxes that are taken from their polygons or masks', self.place(i))
            return around
        if not numbers:
            raise InputError(
                f'{self.name(i)}: has no bbox, and no segmentation to take it from: give it a box, or take it out'
            )
        self.findings.repair('boxes without width or height, which are left out', self.place(i))
        return None

    def repair_flags(self, i: int, annotation: RawAnnotation) -> bool:
        """Whether an annotation, in which area or a flag is not as it should be, is a crowd region."""
        flags = {name: flag_of(getattr(annotation, name)) for name in ('iscrowd', 'ignore')}
        for name, flag in flags.items():
            if flag is None:
                raise InputError(f'{self.name(i)}: {name} must be 0 or 1, got {shorten(getattr(annotation, name))}')
        for what, is_right in (
            ('annotations whose area is absent, not above 0, or no number', is_area(annotation.area)),
            ('annotations whose iscrowd is absent, or no number', is_flag(annotation.iscrowd)),
            ('annotations marked ignore, which are taken as crowd regions', not flags['ignore'] or flags['iscrowd']),
            ('annotations whose ignore is no number', is_flag(annotation.ignore)),
        ):
            if not is_right:
                self.findings.repair(what, self.place(i))
        return any(flags.values())


def check_numbers(coco: CocoFile, images: Sequence[LabelledImage]) -> None:
    """See whether the boxes can be what they should be: corner, width and height in pixels.

    Raises:
        InputError: They are fractions of the image, or two corners.
    """
    boxes = np.array([box[1:5] for one in images for box in one.boxes]).reshape(-1, 4)
    if not len(boxes):
        return
    if boxes.max() <= 1:
        raise InputError(f'{coco.path}: no bbox reaches beyond 1: they must be in pixels, not in fractions')
    limits = np.array([one.size or (np.inf, np.inf) for one in images]).repeat([len(one.boxes) for one in images], 0)
    limits = limits + MAX_ROUNDING
    start, end = boxes[:, :2], boxes[:, 2:]
    second = end - start  # the last two numbers of each bbox
    if (end > limits).any(1).mean() > 0.5 and ((second > start) & (second <= limits)).all():
        raise InputError(
            f'{coco.path}: bbox must be x, y, width, height, but most leave their images so, and none if they are read '
            'as x1, y1, x2, y2'
        )
