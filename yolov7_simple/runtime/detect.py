"""Images and videos -> detections of any detector, as pictures and one COCO file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .drawing import draw_detections
from .files import VIDEO_SUFFIXES, write_json
from .images import MAX_MEGAPIXELS, read_image, write_image
from .onnx_detector import Detections
from .results import CocoResults, picture_path
from .tracking import NO_TRACK, VideoTracker, draw_tracks
from .videos import frame_count, frame_rate, read_video, video_writer


class Detector(Protocol):
    """Interface of a detector: an ONNX file, or a model in torch.

    Attributes:
        classes: Names of the classes, in the order of the labels.
        score_threshold: Lowest score of a detection.
        iou_threshold: Largest IoU of two detections of a class.
    """

    classes: Sequence[str]
    score_threshold: float
    iou_threshold: float

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detect in BGR images, (H, W, 3) each."""


class DetectionRun:
    """Detect in one file after another, and write all results into one folder.

    Args:
        detector: Detector to run.
        out_dir: Folder for ``pictures/``, ``videos/`` and ``detections.json``.
        score_thr: Lowest score of a detection that is drawn; the COCO file has all.
        annotation_file: See :class:`CocoResults`.
        with_pictures: Whether to write pictures and videos.
        batch_size: Frames of a video in a batch.
        max_megapixels: Largest image that is accepted; None: no limit.
        with_tracks: Whether to follow the objects of a video, see :class:`VideoTracker`. All detections that belong to
            a track are drawn.

    Attributes:
        results (CocoResults): The detections so far.

    Raises:
        InputError: The annotation file cannot be used, or the package for tracks is missing.
    """

    def __init__(
        self,
        detector: Detector,
        out_dir: Path,
        score_thr: float = 0.3,
        annotation_file: Path | None = None,
        with_pictures: bool = True,
        batch_size: int = 1,
        max_megapixels: float | None = MAX_MEGAPIXELS,
        with_tracks: bool = False,
    ) -> None:
        self.detector = detector
        self.out_dir = out_dir
        self.score_thr = score_thr
        self.with_pictures = with_pictures
        self.batch_size = batch_size
        self.max_megapixels = max_megapixels
        self.with_tracks = with_tracks
        self.results = CocoResults(detector.classes, annotation_file)

    def detect_file(self, path: Path, name: str) -> Iterator[tuple[int, int | None]]:
        """Detect in an image or a video.

        Args:
            path: Path of the file, whose suffix tells which of the two it is.
            name: Name for the results.

        Yields:
            For a video, after each batch: the frames done, and how many the file says it has.

        Raises:
            InputError: The file cannot be used, or its results cannot be written.
        """
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield from self._detect_video(path, name)
            return
        image = read_image(path, self.max_megapixels)
        found = self.detector([image])[0]
        self.results.add(name, image.shape[:2], *found)
        if self.with_pictures:
            write_image(picture_path(self.out_dir, name), self._draw(image, found))

    def write_results(self) -> Path:
        """Write the COCO file of all detections; returns its path."""
        path = self.out_dir / 'detections.json'
        write_json(path, self.results.content)
        return path

    def _detect_video(self, path: Path, name: str) -> Iterator[tuple[int, int | None]]:
        frames, total, done = read_video(path, self.max_megapixels), frame_count(path), 0
        target = self.out_dir / 'videos' / (name if name.endswith('.mp4') else f'{name}.mp4')
        rate = frame_rate(path)
        track = VideoTracker(self.score_thr, rate) if self.with_tracks else None
        with video_writer(target, rate) if self.with_pictures else nullcontext() as write:
            while batch := list(islice(frames, self.batch_size)):
                for frame, found in zip(batch, self.detector(batch)):
                    tracks = None if track is None else track(found)
                    self.results.add(f'{name}/{done:06d}', frame.shape[:2], *found, tracks)
                    done += 1
                    if write is not None:
                        write(self._draw(frame, found, tracks))
                yield done, total

    def _draw(
        self, image: NDArray[np.uint8], found: Detections, tracks: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        drawn = found.scores >= self.score_thr
        if tracks is None:
            return draw_detections(image, *(values[drawn] for values in found), self.detector.classes)
        drawn |= tracks != NO_TRACK
        return draw_tracks(
            image, Detections(*(values[drawn] for values in found)), tracks[drawn], self.detector.classes
        )
