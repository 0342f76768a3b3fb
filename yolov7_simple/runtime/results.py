"""The detections of many images in COCO's form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray

from .errors import InputError
from .tracking import NO_TRACK


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
            except OSError as error:
                raise InputError(f'{annotation_file}: cannot be read: {error.strerror or error}') from error
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f'{annotation_file}: not a COCO annotation file: {error!r}') from error
            missing = [name for name in classes if name not in ids]
            if missing:
                raise InputError(f'{annotation_file}: has no category {missing[0]!r}; it has {list(ids)}')
            self.category_ids = [ids[name] for name in classes]
        self.categories = [{'id': id_, 'name': name} for id_, name in zip(self.category_ids, classes)]
        self.num_images = self.num_annotations = 0
        self.content = {'images': [], 'categories': self.categories, 'annotations': []}
        self._used_ids: set[int] = set()  # of the annotation file

    def file_name(self, path: Path, name: str) -> str:
        """Name of an image in the annotation file, which is the end of its path; without such a file, ``name``.

        Raises:
            InputError: The annotation file lacks it.
        """
        if self.image_ids is None:
            return name
        parts = path.absolute().parts[1:]
        for i in range(len(parts)):
            if (end := '/'.join(parts[i:])) in self.image_ids:
                return end
        raise InputError(f'{path}: is not among the images of the annotation file')

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
            InputError: The annotation file lacks this image, or it is there already.
        """
        image_id = self.num_images + 1
        if self.image_ids is not None:
            if file_name not in self.image_ids:
                raise InputError(f'{file_name}: is not among the images of the annotation file')
            image_id = self.image_ids[file_name]
            if image_id in self._used_ids:
                raise InputError(f'{file_name}: another input was this image of the annotation file already')
            self._used_ids.add(image_id)
        height, width = size
        numbers = [NO_TRACK] * len(scores) if tracks is None else tracks.tolist()
        self._keep(
            {'id': image_id, 'file_name': file_name, 'width': width, 'height': height},
            [
                {
                    'id': self.num_annotations + i,
                    'image_id': image_id,
                    'category_id': self.category_ids[label],
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': 0,
                    'score': score,
                    **({} if track == NO_TRACK else {'track_id': track}),
                }
                for i, ((x1, y1, x2, y2), score, label, track) in enumerate(
                    zip(boxes.tolist(), scores.tolist(), labels.tolist(), numbers), 1
                )
            ],
        )
        self.num_images += 1
        self.num_annotations += len(scores)

    def _keep(self, image: dict, annotations: list[dict]) -> None:
        """Keep the records of an image."""
        self.content['images'].append(image)
        self.content['annotations'] += annotations
