"""VGG Image Annotator 1 and 2: a JSON or CSV file for many images, with regions and attributes of the user's choice."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_of_file, with_suffix
from .collector import ONLY_CLASS, Collector
from .documents import json_files, member, points_of, quote, read_document, read_text, to_number
from .shapes import XYXY, box_around, box_of_ellipse

VIA_WITHOUT_AREA = {'point': 'points', 'polyline': 'lines'}


class Region(NamedTuple):
    """A shape and its attributes, as VIA writes them, and where they stand."""

    where: str
    shape: dict
    attributes: dict


def read_via(files: Files, findings: Findings) -> Labels | None:
    """Read VIA's regions as the boxes around them; their one attribute is the class.

    Raises:
        InputError: A file or a region cannot be read, or several attributes could be the class.
    """
    collector = Collector('VIA', files, findings)
    images: list[tuple[str, str, list[Region]]] = []  # file, image, regions
    for file in json_files(files, 'regions', 'filename'):
        images += [(file, *one) for one in read_via_json(read_document(files, file), file)]
    for file in with_suffix(files.names, {'.csv'}):
        images += [(file, *one) for one in read_via_csv(files, file)]
    attribute = class_attribute([region for *_, regions in images for region in regions], findings)
    for file, name, regions in images:
        split = split_of_file(file)
        boxes = []
        for region in regions:
            corners = box_of_region(region, collector)
            if corners:
                label = region.attributes.get(attribute) if attribute else ONLY_CLASS
                boxes.append(collector.box(region.where, label, corners))
        collector.add(files.find_image(name, file, split), boxes, f'{file}, image {name}', split=split)
    return collector.labels(images[0][0] if images else '')


def read_via_json(content: Any, file: str) -> Iterator[tuple[str, list[Region]]]:
    """Images and their regions in a project or an export.

    Raises:
        InputError: A record cannot be read.
    """
    if not isinstance(content, dict):
        return
    images = content.get('_via_img_metadata', content)
    if images is content and not any(map(is_image, content.values())):
        return
    for key, image in member({'images': images}, 'images', dict, file).items():
        if not is_image(image):
            raise InputError(f'{file}: {quote(key)} is not an image with a filename and regions, as VIA has them')
        place = f'{file}, image {key}'
        name = member(image, 'filename', str, place)
        regions = image.get('regions') or []
        regions = (
            list(regions.values())
            if isinstance(regions, dict)
            else member({'regions': regions}, 'regions', list, place)
        )
        yield (
            name,
            [
                Region(
                    where := f'{place}, region {i}',
                    member(region, 'shape_attributes', dict, where),
                    member(region, 'region_attributes', dict, where),
                )
                for i, region in enumerate(regions, 1)
            ],
        )


def is_image(value: Any) -> bool:
    """Whether a value has what VIA writes for an image."""
    return isinstance(value, dict) and 'filename' in value and 'regions' in value


def read_via_csv(files: Files, file: str) -> Iterator[tuple[str, list[Region]]]:
    """Images and their regions in a CSV file of VIA; none, if it is another's.

    Raises:
        InputError: A row cannot be read.
    """
    text = files.path(file).read_bytes()[:1000]
    if b'region_shape_attributes' not in text:
        return
    images: dict[str, list[Region]] = {}
    reader = csv.DictReader(io.StringIO(read_text(files, file)))
    for row in reader:
        where = f'{file}, line {reader.line_num}'
        name = row.get('filename') or row.get('#filename')
        try:
            shape, attributes = (
                json.loads(row[key] or '{}') for key in ('region_shape_attributes', 'region_attributes')
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f'{where}: the attributes of its region cannot be read: {error}') from error
        regions = images.setdefault(member({'filename': name}, 'filename', str, where), [])
        if shape:
            member({'shape': shape, 'attributes': attributes}, 'attributes', dict, where)
            regions.append(Region(where, shape, attributes))
    yield from images.items()


def class_attribute(regions: list[Region], findings: Findings) -> str | None:
    """The one attribute that regions have; None: they have none, and are of one class.

    Raises:
        InputError: They have several, or some have none.
    """
    names = sorted({key for one in regions for key, value in one.attributes.items() if value not in ('', None, {})})
    if len(names) > 1:
        raise InputError(
            f'{regions[0].where}: several attributes could name the class: {", ".join(names)}. Keep one of them'
        )
    if regions and not names:
        findings.remark(f'Regions of VIA have no attribute: all are of one class, called {ONLY_CLASS}')
    return names[0] if names else None


def box_of_region(region: Region, collector: Collector) -> XYXY | None:
    """The box around a region; None: it has no area.

    Raises:
        InputError: It is of a kind that is not known, or a number of it cannot be read.
    """
    shape, where = region.shape, region.where

    def values(*keys: str) -> list[float]:
        return [to_number(shape.get(key), key, where) for key in keys]

    kind = shape.get('name')
    if kind in VIA_WITHOUT_AREA:
        collector.leave_out(VIA_WITHOUT_AREA[kind], where)
        return None
    match kind:
        case 'rect':
            x, y, width, height = values('x', 'y', 'width', 'height')
            return x, y, x + width, y + height
        case 'circle':
            x, y, radius = values('cx', 'cy', 'r')
            return box_of_ellipse(x, y, radius, radius)
        case 'ellipse':
            return box_of_ellipse(*values('cx', 'cy', 'rx', 'ry'), to_number(shape.get('theta') or 0, 'theta', where))
        case 'polygon' | 'polygone':
            xs, ys = (member(shape, f'all_points_{axis}', list, where) for axis in 'xy')
            if len(xs) != len(ys):
                raise InputError(f'{where}: has {len(xs)} x and {len(ys)} y of its points')
            return box_around(points_of([list(pair) for pair in zip(xs, ys)], where, 2))
    raise InputError(f'{where}: a region of the unknown kind {quote(kind)}')
