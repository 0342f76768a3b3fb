"""Datumaro's own JSON: one file a subset, with items and numbered labels."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco_mask

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_of_file
from .collector import Collector
from .documents import json_files, member, points_of, quote, read_document
from .shapes import XYXY, box_around

DATUMARO_WITHOUT_AREA = {
    'points': 'points',
    'polyline': 'lines',
    'label': 'labels of whole images',
    'caption': 'captions',
}


def read_datumaro(files: Files, findings: Findings) -> Labels | None:
    """Read Datumaro's annotations as the boxes around them.

    Raises:
        InputError: A file or an annotation cannot be read, or files have other classes.
    """
    collector = Collector('Datumaro', files, findings)
    sources = json_files(files, 'items', 'categories')
    classes: list[str] | None = None
    for file in sources:
        content = read_document(files, file)
        categories = content.get('categories') if isinstance(content, dict) else None
        if 'items' not in content or not isinstance(categories, dict):
            continue  # of another tool
        labels = member(categories, 'label', dict, file)
        own = [member(one, 'name', str, f'{file}, labels') for one in member(labels, 'labels', list, file)]
        if classes is not None and own != classes:
            raise InputError(f'{files.path(file)}: has other classes than {sources[0]}, or another order')
        classes = own
        split = split_of_file(file)
        for i, item in enumerate(member(content, 'items', list, file), 1):
            read_item(item, f'{file}, item {i}', file, split, own, collector)
    return collector.labels(sources[0] if sources else '', classes)


def read_item(item: Any, place: str, file: str, split: str | None, classes: list[str], collector: Collector) -> None:
    """Read one image.

    Raises:
        InputError: An annotation cannot be read.
    """
    annotations = member(item, 'annotations', list, place)
    media = item.get('image') or item.get('media') or {}
    name = media.get('path') or item.get('id') if isinstance(media, dict) else item.get('id')
    name = member({'path': name}, 'path', str, place)
    size = media.get('size') if isinstance(media, dict) else None
    stated = None if not size else tuple(reversed(points_of([size], place)[0]))
    boxes = []
    for i, one in enumerate(annotations, 1):
        where = f'{place}, annotation {i}'
        kind = member(one, 'type', str, where)
        if kind in DATUMARO_WITHOUT_AREA:
            collector.leave_out(DATUMARO_WITHOUT_AREA[kind], where)
            continue
        corners = box_of_annotation(kind, one, where)
        label = one.get('label_id')
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise InputError(f'{where}: label_id {quote(label)}, but the classes are 0 to {len(classes) - 1}')
        crowd = bool((one.get('attributes') or {}).get('is_crowd'))
        boxes.append(collector.box(where, classes[label], corners, crowd))
    collector.add(collector.files.find_image(name, file, split), boxes, place, stated, split)


def box_of_annotation(kind: str, one: dict, where: str) -> XYXY:
    """The box around an annotation.

    Raises:
        InputError: It is of a kind that is not known, or cannot be read.
    """
    if kind == 'bbox':
        ((x, y), (w, h)) = points_of(pairs(member(one, 'bbox', list, where)), where, 2)
        return x, y, x + w, y + h
    if kind == 'polygon':
        return box_around(points_of(pairs(member(one, 'points', list, where)), where, 3))
    if kind == 'mask':
        rle = member(one, 'rle', dict, where)
        try:
            counts, size = rle['counts'], [int(side) for side in rle['size']]
            rle = coco_mask.frPyObjects({'counts': counts, 'size': size}, *size) if isinstance(counts, list) else {
                'counts': counts.encode(), 'size': size}  # fmt: skip
            x, y, w, h = map(float, coco_mask.toBbox(rle))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f'{where}: its mask cannot be decoded: {error}') from error
        return x, y, x + w, y + h
    raise InputError(f'{where}: an annotation of the unknown kind {quote(kind)}')


def pairs(numbers: list) -> list[list]:
    """x, y, x, y -> pairs; an odd number of them stays, for its reader to refuse."""
    return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
