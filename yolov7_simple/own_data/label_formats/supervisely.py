"""Supervisely: ``meta.json`` with the classes, and a JSON file an image in folders called ``ann``."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_in
from .collector import Collector
from .documents import json_files, member, points_of, quote, read_document, to_number
from .shapes import XYXY, box_around

SUPERVISELY_WITHOUT_AREA = {'point': 'points', 'line': 'lines', 'graph': 'skeletons'}


def read_supervisely(files: Files, findings: Findings) -> Labels | None:
    """Read Supervisely's figures as the boxes around them, and tags called train, val or test as splits.

    Raises:
        InputError: A file or an object in it cannot be read.
    """
    collector = Collector('Supervisely', files, findings)
    metas = [file for file in json_files(files, 'classes', 'title') if PurePosixPath(file).name == 'meta.json']
    labels = [
        file
        for file in files.names
        if file.lower().endswith('.json') and PurePosixPath(file).parent.name.lower() == 'ann'
    ] if metas else []  # fmt: skip
    classes: list[str] = []
    for file in metas:
        for i, one in enumerate(member(read_document(files, file), 'classes', list, file), 1):
            title = member(one, 'title', str, f'{file}, class {i}')
            classes += [title] if title not in classes else []
    pairs = collector.pair({file: [] for file in labels})
    for file in labels:
        content = read_document(files, file)
        size = member(content, 'size', dict, file)
        boxes = []
        for i, one in enumerate(member(content, 'objects', list, file), 1):
            where = f'{file}, object {i}'
            corners = box_of_figure(one, where, collector)
            boxes.append(corners and collector.box(where, one.get('classTitle'), corners))
        tags = [one.get('name') for one in content.get('tags') or [] if isinstance(one, dict)]
        split = next(filter(None, (split_in(tag) for tag in tags if isinstance(tag, str))), None)
        stated = tuple(to_number(size.get(key), key, file) for key in ('width', 'height'))
        collector.add(pairs[file], boxes, file, stated, split)
    return collector.labels(metas[0] if metas else '', classes)


def box_of_figure(figure: Any, where: str, collector: Collector) -> XYXY | None:
    """The box around a figure; None: it has no area.

    Raises:
        InputError: It is of a kind that is not known, or cannot be read.
    """
    kind = member(figure, 'geometryType', str, where)
    if kind in SUPERVISELY_WITHOUT_AREA:
        collector.leave_out(SUPERVISELY_WITHOUT_AREA[kind], where)
        return None
    if kind in ('rectangle', 'polygon'):
        points = points_of(member(figure, 'points', dict, where).get('exterior'), where, 2)
        return box_around(points)
    if kind == 'bitmap':
        bitmap = member(figure, 'bitmap', dict, where)
        ((x, y),) = points_of([bitmap.get('origin')], where)
        try:
            data = zlib.decompress(base64.b64decode(member(bitmap, 'data', str, where)))
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except (OSError, ValueError, zlib.error) as error:
            raise InputError(f'{where}: its bitmap cannot be decoded: {error}') from error
        return x, y, x + width, y + height
    raise InputError(f'{where}: a figure of the unknown kind {quote(kind)}')
