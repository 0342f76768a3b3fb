"""Large annotation files in COCO's form: read piece by piece, without what is not needed, such as polygons."""

from __future__ import annotations

import codecs
import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Annotated, Any, TypedDict

import msgspec
from mmengine.fileio import get_local_path
from tqdm import tqdm

from .annotation_checks import MAX_NUMBER, AnnotationError, find_problem, read_json
from .headers import BAR

PIECE = 1 << 24  # bytes that are read at once
TAIL = 1 << 16  # of a piece, where an annotation most probably ends
MAX_TRIES = 4
START = re.compile(rb'"annotations"\s*:\s*\[')
EMPTY = re.compile(rb'\s*\]')
BETWEEN = re.compile(rb'\}\s*,\s*(?=\{)')  # two annotations, or two parts of one
LAST = re.compile(rb'\}\s*\]')
MARK = b'[0]'  # stands for the annotations in the rest of the file

Whole = Annotated[int, msgspec.Meta(gt=-(2**63), le=2**63 - 1)]
Number = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)] | bool
Sides = Annotated[list[Number], msgspec.Meta(min_length=4, max_length=4)]
ImageRecord = TypedDict('ImageRecord', dict.fromkeys(('id', 'file_name', 'width', 'height'), Any), total=False)
Category = TypedDict('Category', dict.fromkeys(('id', 'name'), Any), total=False)


class Required(TypedDict):
    """What each annotation must have."""

    id: Whole
    image_id: Whole | str
    category_id: Whole
    bbox: Sides


class Annotation(Required, total=False):
    """An annotation that is right by itself, as :data:`~.annotation_checks.FIELDS` has it."""

    area: Number
    iscrowd: Flag
    ignore: Flag


class RawLists(msgspec.Struct):
    """The three lists of a file, not decoded yet."""

    images: msgspec.Raw
    annotations: msgspec.Raw
    categories: msgspec.Raw


@contextmanager
def paused_gc() -> Iterator[None]:
    """Look for no cycles among records by the hundred thousand: there are none, and it takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_lists(path: str, record: type) -> tuple[RawLists, list]:
    """Read a file without having more than a few pieces of it in memory; a terminal shows how far it is.

    Args:
        path: Of the file.
        record: Type of what is needed of an annotation.

    Returns:
        The lists of images and categories, and the annotations.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not COCO in UTF-8, its annotations are of another type, or it cannot be cut into pieces.
    """
    decoder = msgspec.json.Decoder(list[record])
    utf8 = codecs.getincrementaldecoder('utf-8')()
    bar = tqdm(total=os.path.getsize(path), unit='B', unit_scale=True, desc=os.path.basename(path), **BAR)
    with open(path, 'rb') as file, bar:

        def read() -> bytes:
            piece = file.read(PIECE)
            utf8.decode(piece, final=not piece)
            bar.update(len(piece))
            return piece

        text = read()
        while (start := START.search(text)) is None:
            piece = read()
            if not piece:
                raise ValueError('it has no list of annotations')
            text += piece
        head, text = text[: start.end()], text[start.end() :]
        annotations: list = []
        end = EMPTY.match(text)
        while end is None:
            found = decode_piece(decoder, text)
            if found:
                records, mark = found
                annotations += records
                text = text[mark.end() :]
                end = mark if mark.re is LAST else None
            else:
                piece = read()
                if not piece or len(text) > MAX_TRIES * PIECE:
                    raise ValueError('its annotations cannot be cut into pieces')
                text += piece
        rest = [text if annotations else text[end.end() :], *iter(read, b'')]
    lists = msgspec.json.decode(b''.join([head[:-1], MARK, *rest]), type=RawLists)
    if bytes(lists.annotations) != MARK:
        raise ValueError('it has several lists of annotations')
    return lists, annotations


def decode_piece(decoder: msgspec.json.Decoder, text: bytes) -> tuple[list, re.Match] | None:
    """Decode the annotations that a text begins with, as many as are whole.

    Returns:
        The annotations, and the mark behind the last, :data:`BETWEEN` or :data:`LAST`; None: none is whole.
    """
    between = [*BETWEEN.finditer(text, max(0, len(text) - TAIL))] or [*BETWEEN.finditer(text)]
    for mark in chain(between[: -MAX_TRIES - 1 : -1], islice(LAST.finditer(text), MAX_TRIES)):
        try:
            return decoder.decode(b'[%b}]' % text[: mark.start()]), mark
        except msgspec.DecodeError:
            continue  # it was the end of a part of an annotation, or of what is behind them
    return None


def read_annotations(path: str, evaluated: bool, backend_args: dict | None = None) -> dict[str, list[dict]]:
    """Read the images, annotations and categories of a file, each with the fields that detection needs.

    Args:
        path: Of the file.
        evaluated: As of :func:`find_problem`.
        backend_args: Of mmengine's file backend.

    Raises:
        AnnotationError: It cannot be used; the message names the record.
    """
    try:
        with get_local_path(path, backend_args=backend_args) as local_path:
            lists, annotations = read_lists(local_path, Annotation)
        content = {
            'images': msgspec.json.decode(lists.images, type=list[ImageRecord]),
            'annotations': annotations,
            'categories': msgspec.json.decode(lists.categories, type=list[Category]),
        }
    # What is not as it should be is read once more, slowly, to name it.
    except (OSError, ValueError, RecursionError):
        content = None
    if content is None or not is_sound(content, evaluated):
        content = read_json(path, backend_args)
        problem = find_problem(content, evaluated)
        if problem:
            raise AnnotationError(f'{path}: {problem}')
    return content


def is_sound(content: dict[str, list[dict]], evaluated: bool) -> bool:
    """Whether :func:`find_problem` has nothing to find in records that are right one by one."""
    annotations = content['annotations']
    ids = {annotation['id'] for annotation in annotations}
    needed = ('area', 'iscrowd') if evaluated else ()
    return (
        find_problem({**content, 'annotations': []}, evaluated=True) is None
        and (evaluated or bool(annotations))
        and len(ids) == len(annotations)
        and not (evaluated and 0 in ids)
        and {annotation['image_id'] for annotation in annotations} <= {image['id'] for image in content['images']}
        and {annotation['category_id'] for annotation in annotations} <= {one['id'] for one in content['categories']}
        and all(name in annotation for annotation in annotations for name in needed)
    )
