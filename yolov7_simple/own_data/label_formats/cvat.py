"""CVAT for images 1.1: one XML file for many images, with the labels of the task and their shapes."""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_in, split_of_file, with_suffix
from .collector import Collector
from .documents import has_tag, quote, read_xml, to_number
from .shapes import XYXY, box_around, box_of_ellipse, box_of_rotated

CVAT_WITHOUT_AREA = {'points': 'points', 'polyline': 'lines', 'skeleton': 'skeletons', 'tag': 'tags of images'}


def read_cvat(files: Files, findings: Findings) -> Labels | None:
    """Read CVAT's shapes as the boxes around them, the classes in the order of the task, and its subsets as splits.

    Raises:
        InputError: A file or a shape in it cannot be read, or it has no classes, or is of a video.
    """
    collector = Collector('CVAT', files, findings)
    classes: list[str] = []
    sources = [file for file in with_suffix(files.names, {'.xml'}) if has_tag(files, file, 'annotations')]
    for file in sources:
        root = read_xml(files, file)
        if root.tag != 'annotations' or not {'track', 'image'} & {child.tag for child in root}:
            findings.leave_out('XML files that are not of CVAT', [file])
            continue
        if root.find('track') is not None:
            raise InputError(f'{files.path(file)}: is CVAT for video; export the task as "CVAT for images" or "COCO"')
        own = [one.findtext('name') or '' for one in root.findall('.//labels/label') if one.find('parent') is None]
        if not own:
            raise InputError(
                f'{files.path(file)}: has no <meta> with the labels of the task, whose order is that of the classes: '
                'export the task again as "CVAT for images 1.1"'
            )
        classes += [name for name in own if name not in classes]
        subset = root.findtext('meta/task/subset') or ''
        for image in root.iter('image'):
            read_image_element(image, file, subset, collector)
    return collector.labels(sources[0] if sources else '', classes)


def read_image_element(image: Element, file: str, subset: str, collector: Collector) -> None:
    """Read one image of a file, which is of some subset where it does not say so itself.

    Raises:
        InputError: It has no name, or a shape cannot be read.
    """
    name = image.get('name')
    place = f'{file}, image {name or image.get("id")}'
    if not name:
        raise InputError(f'{place}: has no name')
    split = split_in(image.get('subset') or subset) or split_of_file(file)
    size = tuple(to_number(image.get(key) or 0, key, place) for key in ('width', 'height'))
    boxes = []
    for i, shape in enumerate(image, 1):
        where = f'{place}, shape {i}'
        if shape.tag in CVAT_WITHOUT_AREA:
            collector.leave_out(CVAT_WITHOUT_AREA[shape.tag], where)
        else:
            boxes.append(collector.box(where, shape.get('label'), box_of_element(shape, where)))
            if float(shape.get('rotation') or 0):
                collector.findings.repair('rotated shapes replaced by the boxes around them', where)
    found = collector.files.find_image(name, file, split)
    collector.add(found, boxes, place, size, split)


def box_of_element(shape: Element, where: str) -> XYXY:
    """The box around a shape.

    Raises:
        InputError: It is of a kind that is not known, or a number of it cannot be read.
    """

    def values(*keys: str) -> tuple[float, ...]:
        return tuple(to_number(shape.get(key), key, where) for key in keys)

    radians = math.radians(to_number(shape.get('rotation') or 0, 'rotation', where))
    match shape.tag:
        case 'box':
            box = values('xtl', 'ytl', 'xbr', 'ybr')
            return box_of_rotated(box, radians) if radians else box
        case 'polygon':
            pairs = [pair.split(',') for pair in (shape.get('points') or '').split(';') if pair.strip()]
            if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
                raise InputError(f'{where}: points of a polygon cannot be read: {quote(shape.get("points"))}')
            return box_around([(to_number(x, 'x', where), to_number(y, 'y', where)) for x, y in pairs])
        case 'ellipse':
            return box_of_ellipse(*values('cx', 'cy', 'rx', 'ry'), radians)
        case 'mask':
            left, top, width, height = values('left', 'top', 'width', 'height')
            return left, top, left + width, top + height
        case 'cuboid':
            xs, ys = ([key for key in shape.attrib if key[0] == axis and key[1:2] in 'tb'] for axis in 'xy')
            return box_around(list(zip(values(*sorted(xs)), values(*sorted(ys)))))
    raise InputError(f'{where}: a shape of the unknown kind {shape.tag}')
