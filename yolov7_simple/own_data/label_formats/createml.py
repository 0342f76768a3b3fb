"""CreateML: one JSON file for many images, boxes by their centres."""

from __future__ import annotations

from ...runtime.errors import InputError
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_of_file
from .collector import Collector
from .documents import json_files, member, read_document, to_number


def read_createml(files: Files, findings: Findings) -> Labels | None:
    """Read CreateML's labels.

    Raises:
        InputError: A file or a record cannot be read.
    """
    collector = Collector('CreateML', files, findings)
    sources = json_files(files, 'annotations', 'coordinates')
    for file in sources:
        content = read_document(files, file)
        if not isinstance(content, list):
            continue
        split = split_of_file(file)
        for i, record in enumerate(content, 1):
            annotations = member(record, 'annotations', list, f'{file}, record {i}')
            name = record.get('image') or record.get('imagefilename')
            if not isinstance(name, str):
                raise InputError(f'{file}, record {i}: image must be a text')
            place = f'{file}, image {name}'
            boxes = []
            for k, one in enumerate(annotations, 1):
                where = f'{place}, annotation {k}'
                coordinates = member(one, 'coordinates', dict, where)
                x, y, w, h = (to_number(coordinates.get(key), key, where) for key in ('x', 'y', 'width', 'height'))
                boxes.append(collector.box(where, one.get('label'), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
            collector.add(files.find_image(name, file, split), boxes, place, split=split)
    return collector.labels(sources[0] if sources else '')
