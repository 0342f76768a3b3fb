"""labelme: a JSON file an image, with rectangles, polygons, circles and masks."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Box, Labels
from ..names import with_suffix
from .collector import Collector
from .documents import json_files, member, points_of, quote, read_document, to_number
from .shapes import XYXY, box_around

# Fewest points of the shapes that have an area; more may be there, such as all four corners of a rectangle.
AREAS = {
    'rectangle': 2,
    'polygon': 2,
    'circle': 2,
    'mask': 2,
    'rotation': 3,
    'quadrilateral': 3,
    'oriented_rectangle': 3,
}
LABELME_WITHOUT_AREA = {'point': 'points', 'points': 'points', 'line': 'lines', 'linestrip': 'lines'}


def read_labelme(files: Files, findings: Findings) -> Labels | None:
    """Read labelme's shapes as the boxes around them, and the images that are embedded where there is no file.

    Shapes of one label and one group are parts of one object, as labelme's own converter has it.

    Raises:
        InputError: A file or a shape in it cannot be read.
    """
    collector = Collector('labelme', files, findings)
    contents: dict[str, dict] = {}
    names = json_files(files, 'shapes')
    for file in names:
        content = read_document(files, file)
        if not isinstance(content, dict) or 'shapes' not in content:
            continue
        image_path = content.get('imagePath') or ''
        if not isinstance(image_path, str):
            raise InputError(f'{file}: imagePath must be a text, got {quote(image_path)}')
        contents[file] = content
    if contents:
        check_others(set(names), collector)
    pairs = collector.pair({file: [one['imagePath']] if one.get('imagePath') else [] for file, one in contents.items()})
    for file, content in contents.items():
        size = tuple(to_number(content.get(key) or 0, key, file) for key in ('imageWidth', 'imageHeight'))
        boxes = list(read_shapes(content, file, collector))
        image = pairs[file] or embedded_image(files, file, content, findings)
        collector.add(image, boxes, file, size)
    return collector.labels(str(PurePosixPath(next(iter(contents), '')).parent))


def check_others(known: set[str], collector: Collector) -> None:
    """Note the JSON files that are not of labelme.

    Raises:
        InputError: One belongs to an image and cannot be read: it may have been one.
    """
    files = collector.files
    others = [file for file in with_suffix(files.names, {'.json'}) if file not in known]
    for file in others:
        if collector.own_image(file, is_named=True):
            read_document(files, file)
    collector.findings.leave_out('JSON files that are not of labelme', others)


def read_shapes(content: dict, file: str, collector: Collector) -> Iterator[Box | None]:
    """The boxes of one file.

    Raises:
        InputError: A shape cannot be read.
    """
    groups: dict[tuple, list[tuple[str, XYXY]]] = {}
    for i, shape in enumerate(member(content, 'shapes', list, file)):
        where = f'{file}, shape {i + 1}'
        corners = box_of_shape(shape, where, collector)
        if corners is not None:
            group = shape.get('group_id')
            key = (str(shape.get('label')), str(group)) if group is not None else i
            groups.setdefault(key, []).append((where, shape.get('label'), corners))
    for parts in groups.values():
        where, name, corners = parts[0]
        if len(parts) > 1:
            collector.findings.repair('objects of several shapes in one group, made one box', where)
            corners = box_around([point for _, _, (x1, y1, x2, y2) in parts for point in ((x1, y1), (x2, y2))])
        yield collector.box(where, name, corners)


def box_of_shape(shape: Any, where: str, collector: Collector) -> XYXY | None:
    """The box around a shape; None: it has no area.

    Raises:
        InputError: It is of a kind that is not known, or its points cannot be read.
    """
    member({'shape': shape}, 'shape', dict, where)
    kind = shape.get('shape_type') or 'polygon'  # labelme before 3.5 had but these
    if kind in LABELME_WITHOUT_AREA:
        collector.leave_out(LABELME_WITHOUT_AREA[kind], where)
        return None
    if kind not in AREAS:
        raise InputError(f'{where}: a shape of the unknown kind {quote(kind)}; read are {", ".join(AREAS)}')
    points = points_of(shape.get('points'), where, AREAS[kind])
    if kind == 'circle':
        (x, y), edge = points[:2]
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    return box_around(points)


def embedded_image(files: Files, file: str, content: dict, findings: Findings) -> str | None:
    """Write the image that a file carries beside the copies of the run; None: it carries none.

    Raises:
        InputError: It cannot be decoded.
    """
    if not content.get('imageData'):
        return None
    try:
        data = base64.b64decode(content['imageData'])
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f'{files.path(file)}: its imageData cannot be decoded: {error}') from error
    findings.repair('images taken out of their labels, as there is no file', file)
    suffix = '.png' if data.startswith(b'\x89PNG') else '.jpg'
    return files.make_image(str(PurePosixPath(file).with_suffix(suffix)), data)
