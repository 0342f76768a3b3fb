"""The folder of results: pictures, videos, labels and crops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .drawing import draw_detections
from .errors import InputError, OutputError
from .files import MAX_NAME_BYTES, make_folder, replacing
from .images import WRITABLE_SUFFIXES, write_image
from .names import FreeNames, as_text
from .onnx_detector import Detections
from .tracking import NO_TRACK, draw_tracks

ROOM = MAX_NAME_BYTES - len('_123456.partial.mp4')  # bytes of a name to which an ending is added


class Target(NamedTuple):
    """Where the results of one source go: a picture, a video, and the names of labels and crops without endings."""

    picture: Path
    video: Path
    label: str


class ResultFiles:
    """Write the results of images and videos into one folder.

    Args:
        folder: Folder for ``pictures/``, ``videos/``, ``labels/`` and ``crops/``; ``detections.json`` has its place
            beside them.
        score_thr: Lowest score of a detection that is drawn, or written as a label or crop.
        with_pictures: Whether to write pictures and videos.
        with_labels: Whether to write a text file for each image in YOLO's form: class, and centre, width and height as
            fractions of the image.
        with_scores: Whether these files have the score as the sixth column.
        with_crops: Whether to write what is inside each box as a JPEG file, in a folder of its class.

    Attributes:
        json (Path): Place of ``detections.json``.

    Raises:
        InputError: A folder cannot be made, or there is a folder in place of a file, or a file in place of a folder.
    """

    def __init__(
        self,
        folder: Path,
        score_thr: float = 0.3,
        with_pictures: bool = True,
        with_labels: bool = False,
        with_scores: bool = False,
        with_crops: bool = False,
    ) -> None:
        self.folder, self.score_thr = folder, score_thr
        self.with_pictures, self.with_labels, self.with_crops = with_pictures, with_labels or with_scores, with_crops
        self.with_scores = with_scores
        self.json = folder / 'detections.json'
        make_folder(folder)
        if self.json.is_dir():
            raise InputError(f'{self.json}: is a folder, where a file is to be written')
        wanted = {'pictures': with_pictures, 'videos': with_pictures, 'labels': self.with_labels, 'crops': with_crops}
        for name in wanted:
            if wanted[name] and (folder / name).exists():
                make_folder(folder / name)
        self._pictures, self._videos, self._labels = FreeNames(), FreeNames(), FreeNames()
        self._crop_folders: list[str] = []

    def name_classes(self, classes: Sequence[str]) -> None:
        """Set the names of the classes, in the order of the labels."""
        self.classes = classes
        names = FreeNames()
        self._crop_folders = [
            names.give(re.sub(r'[/\\:]', '_', as_text(name)).strip('. ') or 'class') for name in classes
        ]

    def stop(self) -> None:
        """Write no more pictures, labels and crops."""
        self.with_pictures = self.with_labels = self.with_crops = False

    def target(self, name: str) -> Target:
        """Choose the places of the results of one source; not those of any other, whatever their names."""
        stem, suffix = Path(name).stem, Path(name).suffix
        if suffix.lower() not in WRITABLE_SUFFIXES:
            stem, suffix = name, '.png'
        video = name.removesuffix('.mp4')
        return Target(
            self.folder / 'pictures' / self._pictures.give(stem, suffix=suffix),
            self.folder / 'videos' / self._videos.give(video, suffix='.mp4', room=ROOM),
            self._labels.give(Path(name).stem, name, room=ROOM),
        )

    def write(
        self, target: Target, image: NDArray[np.uint8], found: Detections, number: int | None = None, tracks=None
    ) -> NDArray[np.uint8] | None:
        """Write what belongs to an image, (H, W, 3), BGR, or to a frame of a video; for threads.

        Args:
            target: Places of its results.
            image: The image.
            found: What was found.
            number: Number of the frame; None: not of a video.
            tracks: (N,), numbers of tracks, or None. All detections that belong to one are drawn.

        Returns:
            The picture of a frame, which the caller appends to the video; None if there is to be none.

        Raises:
            OutputError: Something cannot be written.
            InputError: A folder cannot be made.
        """
        shown = found.scores >= self.score_thr
        if tracks is not None:
            shown |= tracks != NO_TRACK
            tracks = tracks[shown]
        found = Detections(*(values[shown] for values in found))
        end = '' if number is None else f'/{number:06d}'
        if self.with_labels:
            self._write_label(self.folder / 'labels' / f'{target.label}{end}.txt', image.shape[:2], found)
        if self.with_crops:
            self._write_crops(target.label, end, image, found)
        if not self.with_pictures:
            return None
        drawn = (
            draw_detections(image, *found, self.classes)
            if tracks is None
            else draw_tracks(image, found, tracks, self.classes)
        )
        if number is None:
            make_folder(target.picture.parent)
            write_image(target.picture, drawn)
        return drawn

    def _write_label(self, path: Path, size: tuple[int, int], found: Detections) -> None:
        make_folder(path.parent)
        height, width = size
        boxes = (found.boxes / (width, height, width, height)).clip(0, 1)
        rows = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        if self.with_scores:
            rows = np.concatenate([rows, found.scores[:, None]], 1)
        text = ''.join(
            f'{label} {" ".join(f"{value:.6f}" for value in row)}\n'
            for label, row in zip(found.labels.tolist(), rows.tolist())
        )
        try:
            with replacing(path) as temporary:
                temporary.write_text(text)
        except OSError as error:
            raise OutputError(path, error) from error

    def _write_crops(self, name: str, end: str, image: NDArray[np.uint8], found: Detections) -> None:
        height, width = image.shape[:2]
        corners = np.concatenate([np.floor(found.boxes[:, :2]), np.ceil(found.boxes[:, 2:])], 1)
        corners = corners.clip(0, (width, height, width, height)).astype(int).tolist()
        for i, ((x1, y1, x2, y2), label) in enumerate(zip(corners, found.labels.tolist())):
            if x2 > x1 and y2 > y1:
                path = self.folder / 'crops' / self._crop_folders[label] / f'{name}{end}_{i}.jpg'
                make_folder(path.parent)
                write_image(path, image[y1:y2, x1:x2])
