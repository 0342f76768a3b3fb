"""The records of a COCO file: read without what is not needed, and each brought to what its field should be.

What can mean but one thing is repaired and counted; what could mean several is refused, with the record named.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
from pycocotools import mask

from ...datasets.annotation_checks import MAX_NUMBER, is_flag, is_number, is_side, is_text, is_whole, shorten
from ...datasets.annotation_reading import PIECE, RawLists, read_lists
from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..names import split_in

LISTS = ('images', 'annotations', 'categories')
WHOLE_NUMBER = re.compile(r'(0|-?[1-9]\d{0,17})(\.0+)?')


class RawImage(msgspec.Struct):
    """What is read of an image."""

    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class RawAnnotation(msgspec.Struct):
    """What is read of an annotation."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = None
    ignore: Any = 0


class Shape(msgspec.Struct):
    """What is read of an annotation where boxes are missing."""

    segmentation: Any = None


class RawCategory(msgspec.Struct):
    """What is read of a category."""

    id: Any = None
    name: Any = None
    supercategory: Any = None


class CocoFile(NamedTuple):
    """A JSON file with the three lists of COCO.

    Args:
        file: Path below the folder.
        path: Absolute path, for messages.
        lists: List -> its JSON, or its values where only Python's own reader took them.
        annotations: Those of a large file, which are read already.
        repairs: What had to be done to read it.
    """

    file: str
    path: str
    lists: dict[str, msgspec.Raw | list]
    annotations: list[RawAnnotation] | None = None
    repairs: tuple[str, ...] = ()

    def records(self, key: str, record: type) -> list:
        """Read one list.

        Raises:
            InputError: One of it is no record.
        """
        if key == 'annotations' and self.annotations is not None:
            return self.annotations if record is RawAnnotation else read_lists(self.path, record)[1]
        values = self.lists[key]
        read = msgspec.convert if isinstance(values, list) else msgspec.json.decode
        try:
            return read(values, type=list[record])
        except msgspec.ValidationError as error:
            raise InputError(f'{self.path}: {key}: {error}') from error

    def name(self, key: str, i: int, record: RawImage | RawAnnotation | RawCategory) -> str:
        """Name a record."""
        return f'{self.path}: {key}[{i}] (id {shorten(record.id)})'


def open_coco(files: Files, file: str) -> CocoFile | None:
    """Open a JSON file; None: it is not COCO's.

    Raises:
        InputError: It cannot be read, or not as UTF-8, though it has the name of an annotation file or its lists.
    """
    path, repairs = str(files.path(file)), ()
    try:
        if os.path.getsize(path) > PIECE:
            with suppress(ValueError, RecursionError):
                raw, annotations = read_lists(path, RawAnnotation)
                lists = {key: getattr(raw, key) for key in LISTS}
                return CocoFile(file, path, lists, annotations) if are_lists(lists) else None
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror or error}') from error
    encoding = json.detect_encoding(content[:4])
    if encoding != 'utf-8':
        try:
            content = content.decode(encoding).encode()
        except UnicodeError:
            return None
        is_marked = encoding == 'utf-8-sig'
        repairs = ('files with a byte-order mark' if is_marked else f'files in {encoding.upper()}',)
    # Of formats with a file an image there are thousands, so that no more is read of most files.
    if any(content.find(f'"{key}"'.encode()) < 0 for key in LISTS) and not split_in(PurePosixPath(file).stem):
        return None
    try:
        content.decode()
    except UnicodeError:
        raise InputError(f'{path}: is not in UTF-8: save it in UTF-8') from None
    try:
        raw = msgspec.json.decode(content, type=RawLists)
        lists = {key: getattr(raw, key) for key in LISTS}
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError):
        # Python's reader also takes NaN and halves of characters, which are named where they stand.
        try:
            lists = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f'{path}: not a JSON file that can be read: {error}') from error
    return CocoFile(file, path, lists, None, repairs) if are_lists(lists) else None


def are_lists(lists: Any) -> bool:
    """Whether the three lists of COCO are lists."""
    return isinstance(lists, dict) and all(
        isinstance(lists.get(key), list) or (isinstance(lists.get(key), msgspec.Raw) and bytes(lists[key])[:1] == b'[')
        for key in LISTS
    )


def id_of(value: Any) -> int | str | None:
    """An id as it is compared with others: 7, 7.0 and '7' are the same; None: it is none."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str):
        match = WHOLE_NUMBER.fullmatch(value.strip())
        return int(match[1]) if match else value.strip() or None
    return None


def number_of(value: Any) -> float | None:
    """A number, also one that is written as a text; None: it is none, or not finite."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) else None


def size_of(record: RawImage) -> tuple[float, float] | None:
    """Width and height that an image states; None: it states none."""
    width, height = number_of(record.width), number_of(record.height)
    return (width, height) if width and height and min(width, height) >= 1 else None


def has_plain_size(record: RawImage) -> bool:
    """Whether width and height are as they should be."""
    return is_side(record.width) and is_side(record.height)


def flag_of(value: Any) -> bool | None:
    """A yes or no, also as a text or a float; None: it is neither. null says no."""
    if value is None:
        return False
    number = number_of(int(value) if isinstance(value, bool) else value)
    return bool(number) if number in (0, 1) else None


def box_numbers(bbox: Any) -> list[float] | None:
    """The four numbers of a box, also as texts or as one text; an empty list: there is none; None: something else."""
    if bbox is None or bbox == [] or bbox == '':
        return []
    values = re.split(r'[\s,;]+', bbox.strip('[]() ')) if isinstance(bbox, str) else bbox
    if not isinstance(values, list) or len(values) != 4:
        return None
    numbers = [number_of(value) for value in values]
    return None if None in numbers else numbers


def is_plain_box(bbox: Any) -> bool:
    """Whether it is four numbers with sides above zero, which nothing has to be done to."""
    if type(bbox) is not list or len(bbox) != 4:
        return False
    x, y, w, h = bbox
    kinds = (int, float)
    return (
        type(x) in kinds
        and type(y) in kinds
        and type(w) in kinds
        and type(h) in kinds
        and -MAX_NUMBER <= x <= MAX_NUMBER
        and -MAX_NUMBER <= y <= MAX_NUMBER
        and 0 < w <= MAX_NUMBER
        and 0 < h <= MAX_NUMBER
    )


def box_of_segmentation(shape: Any) -> list[float] | None:
    """The box around polygons, one or several, or around a mask as run lengths: x, y, width, height.

    Returns:
        None: there is no shape, or one that cannot be read.
    """
    if isinstance(shape, dict):
        try:
            height, width = map(int, shape['size'])
            runs = shape if isinstance(shape['counts'], str) else mask.frPyObjects(shape, height, width)
            box = mask.toBbox(runs).tolist()
        except (KeyError, TypeError, ValueError):
            return None
        return box if box[2] > 0 and box[3] > 0 else None
    if not isinstance(shape, list) or not shape:
        return None
    polygons = shape if all(isinstance(polygon, list) for polygon in shape) else [shape]
    numbers = [[number_of(value) for value in polygon] for polygon in polygons if polygon]
    if not numbers or any(len(values) < 4 or len(values) % 2 or None in values for values in numbers):
        return None
    xs = [x for values in numbers for x in values[::2]]
    ys = [y for values in numbers for y in values[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def read_ids(
    coco: CocoFile, key: str, records: Sequence[RawImage | RawCategory], findings: Findings
) -> list[int | str]:
    """The ids of images or categories, as :func:`id_of` has them.

    Raises:
        InputError: One has none.
    """
    ids = [id_of(record.id) for record in records]
    if None in ids:
        i = ids.index(None)
        raise InputError(f'{coco.name(key, i, records[i])}: id must be a number or a text')
    if len(set(map(type, ids))) > 1:
        findings.repair(f'lists of {key} whose ids are numbers and texts', coco.file)
    for record, own in zip(records, ids):
        plain = is_whole(record.id) or (key == 'images' and record.id == own and is_text(own))
        if not plain:
            findings.repair(f'ids of {key} that are no whole numbers', f'{coco.file}, id {record.id!r}')
    return ids


def read_categories(
    coco: CocoFile, num_boxes: dict[int | str | None, int], findings: Findings
) -> dict[int | str, str | None]:
    """The names of the categories.

    Args:
        coco: The file.
        num_boxes: Category -> annotations of it.
        findings: Told what was repaired.

    Returns:
        Category -> its name, in the order of the file.

    Raises:
        InputError: A category has no id or name, one id stands for two names, or one name for two ids that have boxes.
    """
    records = coco.records('categories', RawCategory)
    names: dict[int | str, str] = {}
    for i, (own, record) in enumerate(zip(read_ids(coco, 'categories', records, findings), records)):
        name = str(record.name) if type(record.name) in (int, float) else record.name
        if not is_text(name):
            raise InputError(f'{coco.name("categories", i, record)}: name must be a text, got {shorten(record.name)}')
        name = name.strip()
        if name != record.name:
            findings.repair('names of categories that are numbers, or have blanks around them', f'{coco.file}: {name}')
        if own in names:
            if names[own] != name:
                raise InputError(f'{coco.path}: two categories have the id {own}: {names[own]} and {name}')
            findings.repair('categories that are listed twice', f'{coco.file}: {name}')
        names[own] = name
    for name in dict.fromkeys(names.values()):
        ids = [own for own, other in names.items() if other == name]
        used = [own for own in ids if num_boxes.get(own)]
        if len(used) > 1:
            raise InputError(
                f'{coco.path}: two categories are called {name}, with the ids {used[0]} and {used[1]}, and both have '
                'boxes: give them different names, or the boxes one id'
            )
        for own in ids if len(ids) > 1 else ():
            if own != (used or ids)[0]:
                del names[own]
                findings.repair('categories of the same name as another, without boxes', f'{coco.file}: {name}')
    dummies = [
        own
        for own, record in zip(map(id_of, (record.id for record in records)), records)
        if own in names
        and record.supercategory == 'none'
        and not num_boxes.get(own)
        and len(names) > 1
        and all(other.supercategory == record.name for other in records if other is not record)
    ]
    for own in dummies:
        findings.repair(
            "categories that only head the others, as in Roboflow's files", f'{coco.file}: {names.pop(own)}'
        )
    return names


def is_area(value: Any) -> bool:
    """Whether it is a number above 0: COCO's metric takes nothing else."""
    return is_number(value) and value > 0


def is_plain(record: RawAnnotation) -> bool:
    """Whether nothing has to be done to area and flags."""
    return is_area(record.area) and is_flag(record.iscrowd) and is_flag(record.ignore) and not record.ignore
