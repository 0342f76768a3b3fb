"""Images and videos -> detections of any detector, as pictures and one COCO file."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .coco_stream import CocoStream
from .errors import InputError, OutputError, UserError
from .images import MAX_MEGAPIXELS
from .onnx_detector import Detections
from .outputs import ResultFiles
from .sources import InputSource, open_input
from .threads import read_ahead
from .tracking import WEAKEST, VideoTracker
from .videos import Video, VideoFile

WORKERS = min(4, os.cpu_count() or 1)  # threads that read, draw and write
PIXELS_WAITING = 16e6  # of images that were read too early or are written late, so that large ones do not fill memory


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
    """Detect in one source after another, and write all results into one folder.

    Images are read before, and results written behind the detector, in threads. The COCO file is written as the
    detections come, and is whole however the run ends.

    Args:
        detector: Detector to run.
        files: Folder of the results.
        keep_thr: Lowest score of a detection that is kept; None: 0.1, or that of what is drawn if it is lower, and all
            with an annotation file, as an evaluation wants them.
        annotation_file: See :class:`CocoResults`.
        batch_size: Frames of a video in a batch.
        max_megapixels: Largest image that is accepted; None: no limit.
        with_tracks: Whether to follow the objects of a video, see :class:`VideoTracker`.
        report: Called with the message of each source that failed.
        stop: Ends the run once it is set.

    Attributes:
        results (CocoStream): The detections so far.
        failed (set[InputSource]): The sources that could not be used, or whose results could not be written.
        was_cut (bool): Whether it was stopped before its end; a camera has no other end.
        seconds (float): How long it took.

    Raises:
        InputError: The annotation file cannot be used, or the package for tracks is missing.
    """

    def __init__(
        self,
        detector: Detector,
        files: ResultFiles,
        keep_thr: float | None = None,
        annotation_file: Path | None = None,
        batch_size: int = 1,
        max_megapixels: float | None = MAX_MEGAPIXELS,
        with_tracks: bool = False,
        report: Callable[[str], None] = print,
        stop: Event | None = None,
    ) -> None:
        self.detector = detector
        self.files = files
        files.name_classes(detector.classes)
        if keep_thr is None:
            keep_thr = min(WEAKEST, files.score_thr) if annotation_file is None else 0.0
        self.keep_thr = keep_thr
        self.batch_size = batch_size
        self.max_megapixels = max_megapixels
        self.with_tracks = with_tracks
        self.report = report
        self.stop = Event() if stop is None else stop
        self.results = CocoStream(files.json, detector.classes, annotation_file)
        self.failed: set[InputSource] = set()
        self.was_cut = False
        self.seconds = 0.0
        self._waiting = WORKERS  # images that may wait for the detector, and for being written
        self._written: deque[tuple[InputSource, Future]] = deque()

    def run(self, sources: Sequence[InputSource]) -> Iterator[str]:
        """Detect in all sources. One that cannot be used is reported, and the rest goes on.

        Yields:
            How far it is: before each source, and after each batch of a video.

        Raises:
            OutputError: The COCO file cannot be written any longer; it has the images before.
        """
        start = time.perf_counter()
        self._pool, self._encoder = ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(1)
        try:
            with self.results:
                for i, (source, content) in enumerate(self._read(sources), 1):
                    if self.stop.is_set():
                        self.was_cut = True
                        break
                    progress = f'{i} of {len(sources)}: {source.name}'
                    yield progress
                    try:
                        opened = open_input(source, self.max_megapixels) if content is None else content.result()
                        if isinstance(opened, Video):
                            yield from self._detect_video(source, opened, progress)
                        else:
                            self._detect_image(source, opened)
                    except InputError as error:
                        self._fail(source, error)
                self._collect(0)
        finally:
            for pool in (self._pool, self._encoder):
                pool.shutdown(cancel_futures=True)
            self.seconds = time.perf_counter() - start

    def summary(self) -> str:
        """What was found, where it is, and how long it took."""
        images, rate = self.results.num_images, self.results.num_images / max(self.seconds, 1e-9)
        return (
            f'{self.results.num_annotations} detections in {images} images: {self.files.json}\n'
            f'{images} images in {self.seconds:.1f} s, {rate:.1f} a second'
        )

    def _read(self, sources: Sequence[InputSource]) -> Iterator[tuple[InputSource, Future | None]]:
        """Begin to read the next images while one is in use; videos and cameras are opened when it is their turn."""
        rest, begun = iter(sources), deque()
        while True:
            for source in islice(rest, max(0, 1 + self._waiting - len(begun))):
                is_early = not source.may_be_video
                begun.append((source, self._pool.submit(open_input, source, self.max_megapixels) if is_early else None))
            if not begun:
                return
            yield begun.popleft()

    def _detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        self._waiting = max(1, min(WORKERS, int(PIXELS_WAITING / images[0][..., 0].size)))
        return self.detector(images)

    def _keep(
        self, name: str, image: NDArray[np.uint8], found: Detections, tracks: NDArray[np.int64] | None = None
    ) -> tuple[Detections, NDArray[np.int64] | None]:
        """Drop weak detections and add the others to the results; returns these."""
        kept = found.scores >= self.keep_thr
        found = Detections(*(values[kept] for values in found))
        tracks = None if tracks is None else tracks[kept]
        self.results.add(name, image.shape[:2], *found, tracks)
        return found, tracks

    def _detect_image(self, source: InputSource, image: NDArray[np.uint8]) -> None:
        name = source.name
        if isinstance(source.address, Path):
            name = self.results.file_name(source.address, name)
        found, _ = self._keep(name, image, self._detect([image])[0])
        self._later(source, self._pool.submit(self.files.write, self.files.target(source.name), image, found))

    def _detect_video(self, source: InputSource, video: Video, progress: str) -> Iterator[str]:
        target, done = self.files.target(source.name), 0
        track = VideoTracker(self.files.score_thr, video.rate) if self.with_tracks else None
        written = VideoFile(target.video, video.rate) if self.files.with_pictures else None
        frames = read_ahead(video, self.batch_size + WORKERS, self.stop)
        is_whole = False
        try:
            while batch := list(islice(frames, self.batch_size)):
                for frame, found in zip(batch, self._detect(batch)):
                    tracks = None if track is None else track(found)
                    found, tracks = self._keep(f'{source.name}/{done:06d}', frame, found, tracks)
                    drawn = self._pool.submit(self.files.write, target, frame, found, done, tracks)
                    self._later(source, self._encoder.submit(encode, drawn, written))
                    done += 1
                yield f'{progress}, frame {done}' + (f' of {video.count}' if video.count else '')
            if self.stop.is_set() and not video.is_live:
                self.was_cut = True
            if video.shortfall is not None:
                self._fail(source, InputError(video.shortfall))
            self._collect(0)
            is_whole = not self.was_cut and (source not in self.failed or video.shortfall is not None)
        finally:
            frames.close()
            self._end_video(source, written, is_whole)

    def _end_video(self, source: InputSource, written: VideoFile | None, is_whole: bool) -> None:
        if written is None:
            return
        self._encoder.shutdown(cancel_futures=True)  # waits for the frame that is being written
        self._encoder = ThreadPoolExecutor(1)
        try:
            path = written.close(is_whole)
        except OutputError as error:
            self._fail(source, error)
        else:
            if path is not None and not is_whole:
                self.report(f'{source}: its video is not whole, and is named {path}')

    def _later(self, source: InputSource, future: Future) -> None:
        self._written.append((source, future))
        self._collect(2 * self._waiting)

    def _collect(self, most: int) -> None:
        """Wait until no more than so many results are still to be written, and report what could not be."""
        while len(self._written) > most:
            source, future = self._written.popleft()
            try:
                future.result()
            except UserError as error:
                self._fail(source, error)
            except CancelledError:  # its source was given up, and that was reported
                pass

    def _fail(self, source: InputSource, error: UserError) -> None:
        """Report the first failure of a source."""
        is_first = source not in self.failed
        self.failed.add(source)
        if getattr(error, 'is_full', False):
            if not (self.files.with_pictures or self.files.with_labels or self.files.with_crops):
                return  # it was said already
            self.files.stop()
            self.report(f'{error}; no more pictures are written, only {self.files.json}')
        elif is_first:
            self.report(str(error))


def encode(drawn: Future, written: VideoFile | None) -> Any:
    """Wait for a drawn frame, and append it to the video."""
    try:
        frame = drawn.result()
    except CancelledError:
        return
    if written is not None and frame is not None:
        written.write(frame)
