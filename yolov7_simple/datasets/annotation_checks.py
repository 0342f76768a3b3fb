"""Tables of what an annotation file in COCO's form must be like, and a check of where its images lie."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmengine.fileio import get_text

from ..runtime.errors import DamagedImageError, UserError, examples
from ..runtime.images import MAX_RATIO
from .headers import MAX_PIXELS
from .loading import read_file
from .remote import is_remote

MAX_NUMBER = 1e15  # whole numbers up to here are exact in float64


class AnnotationError(UserError):
    """An annotation file that cannot be used; the message names the file, the record and the reason."""


def shorten(value: Any) -> str:
    """Show a value of a file in a message."""
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}...'


def is_number(value: Any) -> bool:
    """Whether it is finite, and small enough to be computed with."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of 64 bits."""
    return type(value) is int and abs(value) < 2**63


def is_text(value: Any) -> bool:
    """Whether it is a text with something in it. JSON may hold surrogates, which UTF-8 cannot encode."""
    return isinstance(value, str) and bool(value.strip()) and '\0' not in value and not has_surrogates(value)


def has_surrogates(text: str) -> bool:
    """Whether it holds halves of UTF-16 surrogate pairs."""
    return not text.isascii() and any('\ud800' <= character <= '\udfff' for character in text)


def is_path(value: Any) -> bool:
    """Whether it can be the path of a file on this machine."""
    return is_text(value) and '://' not in value


def is_key(value: Any) -> bool:
    """Whether it can be the id of an image."""
    return is_whole(value) or is_text(value)


def is_side(value: Any) -> bool:
    """Whether it can be the width or height of an image; 640.0 is allowed."""
    return is_number(value) and value >= 1 and value == int(value)


def is_box(value: Any) -> bool:
    """Whether it is four numbers, of any value."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def is_flag(value: Any) -> bool:
    """Whether it is 0, 1, false or true."""
    return type(value) in (int, bool) and value in (0, 1)


class Field(NamedTuple):
    """What one field of a record must be.

    wanted: The test in words. needed: 'always', 'to evaluate' (COCO's metric reads it) or 'no' (it may be absent).
    """

    name: str
    test: Callable[[Any], bool]
    wanted: str
    needed: str = 'always'


FIELDS = {
    'images': (
        Field('id', is_key, 'a whole number of 64 bits or a text'),
        Field('file_name', is_path, 'the path of a file, without ://'),
        Field('width', is_side, 'a whole number of pixels'),
        Field('height', is_side, 'a whole number of pixels'),
    ),
    'categories': (
        Field('id', is_whole, 'a whole number of 64 bits'),
        Field('name', is_text, 'a text'),
    ),
    'annotations': (
        Field('id', is_whole, 'a whole number of 64 bits'),
        Field('image_id', is_key, 'a whole number of 64 bits or a text'),
        Field('category_id', is_whole, 'a whole number of 64 bits'),
        Field('bbox', is_box, f'four finite numbers (x, y, width, height) up to {MAX_NUMBER:g}'),
        Field('area', is_number, f'a finite number up to {MAX_NUMBER:g}', 'to evaluate'),
        Field('iscrowd', is_flag, '0 or 1', 'to evaluate'),
        Field('ignore', is_flag, '0 or 1', 'no'),
    ),
}
# Fields whose values must be unique.
UNIQUE = (('images', 'id'), ('categories', 'id'), ('categories', 'name'), ('annotations', 'id'))
# Fields of annotations that refer to the ids of other records.
POINTERS = (('image_id', 'images'), ('category_id', 'categories'))


def read_json(path: str, backend_args: dict | None = None) -> Any:
    """Read a JSON file.

    Raises:
        AnnotationError: There is none, or it is not JSON.
    """
    if not is_remote(path, backend_args) and not os.path.isfile(path):
        raise AnnotationError(
            f'No annotation file at {os.path.abspath(path)}: set data_root and ann_file of the dataset in the '
            'config; on the command line, --cfg-options data_root=DIR tells which keys of the config that is'
        )
    try:
        return json.loads(get_text(path, backend_args=backend_args))
    except UserError:  # a server that is down
        raise
    except OSError as error:
        raise AnnotationError(f'{path}: cannot be read: {error.strerror or error}') from error
    # ValueError: not UTF-8, not JSON, or a number of thousands of digits. RecursionError: too deeply nested lists.
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f'{path}: not a JSON file that can be read: {error}') from error


def find_problem(content: Any, evaluated: bool) -> str | None:
    """Describe the first problem in the content of a file, naming the record; None if there is none.

    Args:
        content: Parsed JSON.
        evaluated: Whether it is for COCO's metric and not for training. It then may have no boxes, but needs all
            fields that the metric reads, and no annotation with the id 0.
    """
    for key in FIELDS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            return f'not a COCO file: it has no list of {key}'
        if not content[key] and not (evaluated and key == 'annotations'):
            return f'has no {key}'
    for key, fields in FIELDS.items():
        for i, record in enumerate(content[key]):
            if not isinstance(record, dict):
                return f'{key}[{i}] must be a record, got {shorten(record)}'
            for name, test, wanted, needed in fields:
                if name in record:
                    if not test(record[name]):
                        return f'{name_record(content, key, i)}: {name} must be {wanted}, got {shorten(record[name])}'
                elif needed == 'always':
                    return f'{name_record(content, key, i)} has no {name}'
                elif needed == 'to evaluate' and evaluated:
                    return f"{name_record(content, key, i)} has no {name}, which COCO's metric needs"
    for key, name in UNIQUE:
        doubled = [value for value, count in Counter(record[name] for record in content[key]).items() if count > 1]
        if doubled:
            return f'{len(doubled)} {name}s of {key} are used more than once: {examples(doubled)}'
    if evaluated and any(annotation['id'] == 0 for annotation in content['annotations']):
        return (
            "an annotation has the id 0, which COCO's metric takes for 'not matched': count their ids from 1; "
            'tools/train.py --data does so in a copy'
        )
    for name, key in POINTERS:
        ids = {record['id'] for record in content[key]}
        for i, annotation in enumerate(content['annotations']):
            if annotation[name] not in ids:
                return f'{name_record(content, "annotations", i)}: {name} {annotation[name]!r} is not among {key}'
    if len({type(image['id']) for image in content['images']}) > 1:
        return 'some ids of images are numbers and some are texts, which cannot be sorted'
    for i, image in enumerate(content['images']):
        width, height = image['width'], image['height']
        if width * height > MAX_PIXELS or max(width, height) > MAX_RATIO * min(width, height):
            return (
                f'{name_record(content, "images", i)}: {width} x {height} pixels; at most {MAX_PIXELS} in all, and one '
                f'side {MAX_RATIO} times the other, can be used: cut it into tiles'
            )
    return None


def name_record(content: dict, key: str, i: int) -> str:
    """Name a record."""
    return f'{key}[{i}] (id {shorten(content[key][i].get("id"))})'


def find_missing(
    images: Sequence[dict], folder: str, data_root: str | None, allow_outside: bool, backend_args: dict | None = None
) -> list[str]:
    """Find missing images by listing each folder once, without opening a file; in a remote one, by reading one.

    Args:
        images: Records with a ``file_name``.
        folder: Folder that the names are relative to. In a remote one none is listed.
        data_root: Another folder that images may lie in, or None.
        allow_outside: Whether images may lie anywhere.
        backend_args: Of mmengine's file backend.

    Returns:
        The missing paths.

    Raises:
        AnnotationError: A path, or the target of a link, is outside of the two folders or not a file, or no remote
            image can be read. The message does not name the annotation file.
    """
    elsewhere = is_remote(folder, backend_args)
    roots = [os.path.realpath(root) for root in (folder, data_root) if root is not None]

    def check_inside(i: int, path: str) -> None:
        if not allow_outside and not any(os.path.join(path, '').startswith(os.path.join(root, '')) for root in roots):
            raise AnnotationError(
                f'images[{i}] (id {shorten(images[i]["id"])}): {images[i]["file_name"]!r} is {path}, outside of '
                f'{" and ".join(roots)}: move it there, or set allow_outside=True of the dataset if you trust the file'
            )

    missing = []
    listings: dict[str, dict[str, os.DirEntry]] = {}
    for i, image in enumerate(images):
        name = image['file_name']
        if elsewhere:
            if os.path.isabs(name) or '..' in name.split('/'):
                check_inside(i, name)
            continue
        path = os.path.join(folder, name)
        parent, base = os.path.split(path)
        if parent not in listings:
            check_inside(i, os.path.realpath(parent))
            listings[parent] = list_folder(parent)
        entry = listings[parent].get(base)
        if entry is None and not os.path.lexists(path):  # some file systems ignore case
            missing.append(path)
        elif entry is None or not entry.is_file(follow_symlinks=False):
            check_inside(i, os.path.realpath(path))
            if not os.path.exists(path):
                missing.append(path)
            elif not os.path.isfile(path):
                raise AnnotationError(f'images[{i}] (id {shorten(image["id"])}): {path} is not a file')
    if elsewhere:
        probe_images([os.path.join(folder, images[i]['file_name']) for i in (0, len(images) // 2, -1)], backend_args)
    return missing


def probe_images(paths: Sequence[str], backend_args: dict | None) -> None:
    """Read one of a few remote images, before a run starts on a server that is down or has another folder.

    Raises:
        AnnotationError: None can be read.
    """
    problems = {}
    for path in paths:
        try:
            read_file(path, backend_args)
            return
        except DamagedImageError as error:
            problems[path] = str(error)
    raise AnnotationError(
        f'of its images {len(problems)} were tried and none can be read: {"; ".join(problems.values())}. Look at the '
        'server or database, and at data_root, data_prefix and backend_args of the dataset'
    )


def list_folder(path: str) -> dict[str, os.DirEntry]:
    """Entries of a folder by name; none if it cannot be read."""
    try:
        with os.scandir(path or '.') as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}
