"""PASCAL VOC: an XML file an image, as labelImg, Roboflow and CVAT write it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Box, Labels
from ..names import with_suffix
from .collector import Collector
from .documents import has_tag, read_xml, to_number
from .shapes import XYXY, box_of_rotated

# An annotation of VOC has at least one of these.
PARTS = {'filename', 'folder', 'path', 'size', 'object'}


class VocAnnotation(NamedTuple):
    """One XML file: names of its image, the surest first, its size or 0, its boxes, how many are difficult."""

    names: list[str]
    size: tuple[float, float]
    boxes: list[Box | None]
    num_difficult: int


def read_voc(files: Files, findings: Findings) -> Labels | None:
    """Read VOC's labels; those called difficult are boxes like the others.

    Raises:
        InputError: A file or an object in it cannot be read.
    """
    collector = Collector('VOC', files, findings)
    annotations: dict[str, VocAnnotation] = {}
    broken: dict[str, InputError] = {}
    others = []
    for file in with_suffix(files.names, {'.xml'}):
        try:
            root = read_xml(files, file)
        except InputError as error:
            broken[file] = error
            continue
        if root.tag.lower() == 'annotation' and PARTS & {child.tag for child in root.iter()}:
            annotations[file] = parse_annotation(root, file, collector)
        else:
            others.append(file)
    for file, error in broken.items():
        if annotations or has_tag(files, file, 'annotation'):
            raise error
    findings.leave_out('XML files that are not of VOC', others)
    difficult = sum(one.num_difficult for one in annotations.values())
    if difficult:
        findings.remark(f'{difficult} boxes are marked difficult, and used like the others')
    pairs = collector.pair({file: one.names for file, one in annotations.items()})
    for file, one in annotations.items():
        collector.add(pairs[file], one.boxes, file, one.size)
    return collector.labels(str(PurePosixPath(next(iter(annotations), '')).parent))


def parse_annotation(root: Element, file: str, collector: Collector) -> VocAnnotation:
    """Read the content of one file.

    Raises:
        InputError: An object has no name or no box, or a size is no number.
    """
    name, folder, path = ((root.findtext(key) or '').strip() for key in ('filename', 'folder', 'path'))
    names = [f'{folder}/{name}' if folder else name] if name else []
    size = tuple(to_number(root.findtext(f'size/{key}') or 0, key, file) for key in ('width', 'height'))
    boxes = []
    for i, one in enumerate(root.iter('object'), 1):
        where = f'{file}, object {i}'
        boxes.append(collector.box(where, one.findtext('name'), parse_box(one, where, collector.findings)))
    difficult = [one for one in root.iter('object') if (one.findtext('difficult') or '0').strip() != '0']
    return VocAnnotation(names + [path] * bool(path), size, boxes, len(difficult))


def parse_box(element: Element, where: str, findings: Findings) -> XYXY:
    """The box of an object, or that around a rotated one, as roLabelImg writes it.

    Raises:
        InputError: There is none, or it is not of numbers.
    """

    def values(box: Element, *keys: str) -> list[float]:
        return [to_number(box.findtext(key), key, where) for key in keys]

    box, rotated = element.find('bndbox'), element.find('robndbox')
    if box is not None:
        return tuple(values(box, 'xmin', 'ymin', 'xmax', 'ymax'))
    if rotated is None:
        raise InputError(f'{where}: has no bndbox')
    cx, cy, w, h, angle = values(rotated, 'cx', 'cy', 'w', 'h', 'angle')
    findings.repair('rotated boxes replaced by the boxes around them', where)
    return box_of_rotated((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), angle)
