"""Label Studio's own JSON: tasks with results, in percent of the image."""

from __future__ import annotations

import math
import re
from typing import Any

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_of_file
from .collector import Collector
from .documents import json_files, member, points_of, quote, read_document, to_number
from .shapes import XYXY, box_around, box_of_ellipse, box_of_rotated

SHAPES = ('rectangle', 'polygon', 'ellipse')
LABEL_STUDIO_WITHOUT_AREA = {
    'keypointlabels': 'points',
    'keypoint': 'points',
    'vectorlabels': 'lines',
    'vector': 'lines',
}
UPLOAD_HASH = re.compile(r'(?:^|(?<=[\\/]))[0-9a-f]{8}-(?=[^\\/]+$)')  # put before the names of uploaded images


def read_label_studio(files: Files, findings: Findings) -> Labels | None:
    """Read the rectangles, polygons and ellipses of annotated tasks.

    Raises:
        InputError: A file or a result cannot be read, several annotators labelled a task, or it is the JSON-MIN form.
    """
    collector = Collector('Label Studio', files, findings)
    sources = []
    for file in json_files(files, 'original_width'):
        tasks = read_document(files, file)
        if isinstance(tasks, dict) and 'data' in tasks:
            tasks = [tasks]  # a file for one task, as its storage exports them
        if not isinstance(tasks, list):
            continue
        sources.append(file)
        for i, task in enumerate(tasks, 1):
            place = f'{file}, task {task.get("id", i) if isinstance(task, dict) else i}'
            if isinstance(task, dict) and 'data' not in task:
                raise InputError(f'{place}: has no data, as in "JSON-MIN"; export the project as "JSON" or "COCO"')
            read_task(task, file, place, collector)
    return collector.labels(sources[0] if sources else '')


def read_task(task: Any, file: str, place: str, collector: Collector) -> None:
    """Read one task; it is not used if nobody has annotated it.

    Raises:
        InputError: It cannot be read, or several annotated it.
    """
    data = member(task, 'data', dict, place)
    annotations = task.get('annotations', task.get('completions', []))
    annotations = [
        one
        for one in member({'annotations': annotations}, 'annotations', list, place)
        if not member({'annotation': one}, 'annotation', dict, place).get('was_cancelled')
    ]
    annotations = [one for one in annotations if one.get('ground_truth')] or annotations
    if not annotations:
        collector.findings.leave_out('tasks of Label Studio that nobody has annotated', [place])
        return
    if len(annotations) > 1:
        raise InputError(
            f'{place}: has {len(annotations)} annotations. Mark the one that counts as ground truth, or delete '
            'the others'
        )
    results = member(annotations[0], 'result', list, place)
    names = (
        [data['image']]
        if isinstance(data.get('image'), str)
        else [one for one in data.values() if isinstance(one, str)]
    )
    split = split_of_file(file)
    images = [
        collector.files.find_image(text, file, split) for name in names for text in (name, UPLOAD_HASH.sub('', name))
    ]
    image = next(filter(None, images), None)
    sizes, boxes = set(), []
    named = {one.get('id') for one in results if isinstance(one, dict) and str(one.get('type', '')).endswith('labels')}
    for i, result in enumerate(results, 1):
        where = f'{place}, result {i}'
        kind = member({'result': result}, 'result', dict, where).get('type')
        if kind in LABEL_STUDIO_WITHOUT_AREA:
            collector.leave_out(LABEL_STUDIO_WITHOUT_AREA[kind], where)
            continue
        if kind in SHAPES and result.get('id') in named:
            continue  # its labels are in another result, which repeats the shape
        if str(kind).startswith(('brush', 'bitmask', 'mask')):
            raise InputError(f'{where}: masks of a brush are not read; export the project as "COCO with masks"')
        if kind not in (*SHAPES, *(f'{shape}labels' for shape in SHAPES), 'labels'):
            continue  # a choice, a text or a relation
        value = member(result, 'value', dict, where)
        size = tuple(to_number(result.get(f'original_{key}'), f'original_{key}', where) for key in ('width', 'height'))
        sizes.add(size)
        labels = value.get(kind)
        if not isinstance(labels, list) or not labels:
            raise InputError(f'{where}: a {kind} without a label')
        if result.get('image_rotation'):
            raise InputError(f'{where}: was drawn on an image turned in Label Studio; turn it back there')
        corners = box_of_value(value, size, where, collector)
        boxes += [collector.box(where, label, corners) for label in labels]
    if len(sizes) > 1:
        raise InputError(f'{place}: its results are of images of several sizes: {quote(sorted(sizes))}')
    collector.add(image, boxes, place, next(iter(sizes), None), split)


def box_of_value(value: dict, size: tuple[float, float], where: str, collector: Collector) -> XYXY:
    """The box around a shape, in pixels of the image of this width and height.

    Raises:
        InputError: It cannot be read.
    """
    width, height = size

    def values(*keys: str) -> list[float]:
        sides = {'x': width, 'width': width, 'radiusX': width, 'y': height, 'height': height, 'radiusY': height}
        return [to_number(value.get(key), key, where) * sides[key] / 100 for key in keys]

    radians = math.radians(to_number(value.get('rotation') or 0, 'rotation', where))
    if radians:
        collector.findings.repair('rotated shapes replaced by the boxes around them', where)
    if 'points' in value:
        return box_around([(x * width / 100, y * height / 100) for x, y in points_of(value['points'], where, 2)])
    if 'radiusX' in value:
        return box_of_ellipse(*values('x', 'y', 'radiusX', 'radiusY'), radians)
    x, y, w, h = values('x', 'y', 'width', 'height')
    return box_of_rotated((x, y, x + w, y + h), radians, (x, y)) if radians else (x, y, x + w, y + h)
