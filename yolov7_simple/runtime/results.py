"""Write the detections of many images: COCO's JSON, and a picture each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray

from .errors import InputError
from .files import make_folder
from .images import WRITABLE_SUFFIXES
from .tracking import NO_TRACK


def picture_path(out_dir: Path, name: str) -> Path:
    """Path of an image's picture: its own name, with .png added if its format cannot be written.

    Raises:
        InputError: The folder cannot be made.
    """
    folder = out_dir / 'pictures'
    make_folder(folder)
    return folder / (name if Path(name).suffix.lower() in WRITABLE_SUFFIXES else f'{name}.png')


class CocoResults:
    """Detections as one COCO file: ``images``, ``categories``, and ``annotations`` with a ``score``.

    ``annotations`` alone is what ``pycocotools.coco.COCO.loadRes`` reads.

    Args:
        classes: Names of the classes, in the order of the labels.
        annotation_file: COCO file whose ids of images (by file name) and categories (by name) are used, so that the
            detections can be evaluated on it; None: ids count from 1.

    Raises:
        InputError: The annotation file is not COCO's, or lacks a class.
    """

    def __init__(self, classes: Sequence[str], annotation_file: Path | None = None) -> None:
        self.category_ids = list(range(1, len(classes) + 1))
        self.image_ids: dict[str, int] | None = None
        if annotation_file is not None:
            try:
                known = json.loads(Path(annotation_file).read_text(encoding='utf-8'))
                ids = {category['name']: category['id'] for category in known['categories']}
                self.image_ids = {image['file_name']: image['id'] for image in known['images']}
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise InputError(f'{annotation_file}: not a COCO annotation file: {error!r}') from error
            missing = [name for name in classes if name not in ids]
            if missing:
                raise InputError(f'{annotation_file}: has no category {missing[0]!r}; it has {list(ids)}')
            self.category_ids = [ids[name] for name in classes]
        self.content = {
            'images': [],
            'categories': [{'id': id_, 'name': name} for id_, name in zip(self.category_ids, classes)],
            'annotations': [],
        }

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        boxes: NDArray,
        scores: NDArray,
        labels: NDArray,
        tracks: NDArray | None = None,
    ) -> None:
        """Add the detections of an image.

        Args:
            file_name: Name of the image, as in the annotation file if there is one.
            size: Height and width in pixels.
            boxes: (N, 4), xyxy in pixels.
            scores: (N,).
            labels: (N,), indices of classes.
            tracks: (N,), numbers of tracks in a video, which become ``track_id``; where there is none, ``NO_TRACK``.

        Raises:
            InputError: The annotation file lacks this image.
        """
        image_id = len(self.content['images']) + 1
        if self.image_ids is not None:
            if file_name not in self.image_ids:
                raise InputError(f'{file_name}: is not among the images of the annotation file')
            image_id = self.image_ids[file_name]
        height, width = size
        self.content['images'].append({'id': image_id, 'file_name': file_name, 'width': width, 'height': height})
        numbers = [NO_TRACK] * len(scores) if tracks is None else tracks.tolist()
        for (x1, y1, x2, y2), score, label, track in zip(boxes.tolist(), scores.tolist(), labels.tolist(), numbers):
            self.content['annotations'].append(
                {
                    'id': len(self.content['annotations']) + 1,
                    'image_id': image_id,
                    'category_id': self.category_ids[label],
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': 0,
                    'score': score,
                    **({} if track == NO_TRACK else {'track_id': track}),
                }
            )
