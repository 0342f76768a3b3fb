"""Read videos and cameras frame by frame, and write videos atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError, OutputError
from .files import make_folder, temporary_path
from .images import check_size

VIDEO_SUFFIXES = {
    *('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.mts', '.m2ts'),
    *('.3gp', '.ogv', '.gif'),
}
DEFAULT_RATE = 25.0  # frames a second, if a file does not state its own
MAX_RATE = 1000.0  # what states more, as some streams do, does not know it


class Video:
    """A video file, a stream or a camera: iterate over its frames, (H, W, 3), BGR, once.

    Args:
        address: Path, URL, or number of a camera.
        name: Name for messages.
        max_megapixels: Largest frame that is accepted; None: no limit.

    Attributes:
        rate (float): Frames a second.
        count (int | None): Number of frames as stated by the file.
        is_live (bool): Whether it ends only when it is stopped.
        is_single (bool): Whether it has one frame only.
        shortfall (str | None): After the last frame, what is wrong if more had been promised.

    Raises:
        InputError: Not a video, or a video without frames or with frames of an unusable size.
    """

    def __init__(self, address: Path | str | int, name: str | None = None, max_megapixels: float | None = None) -> None:
        self.name = str(address) if name is None else name
        self.max_megapixels = max_megapixels
        if isinstance(address, Path) and not address.is_file():
            raise InputError(f'{self.name}: no such file')
        self._capture = open_capture(address)
        # A second one, since only it tells whether this is a moving picture.
        self._first = [frame for frame in (self._read(), self._read()) if frame is not None]
        self.is_single = len(self._first) == 1
        if not self._first:
            self._capture.release()
            kind = 'camera' if isinstance(address, int) else 'video'
            raise InputError(f'{self.name}: not a {kind} that OpenCV can read, or one without frames')
        check_size(self.name, *self._first[0].shape[:2], max_megapixels)
        rate, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0 < rate <= MAX_RATE else DEFAULT_RATE
        self.count = int(count) if 0 < count < 1e9 else None
        self.is_live = isinstance(address, int) or (isinstance(address, str) and self.count is None)
        self.shortfall: str | None = None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        try:
            done, seconds = 0, 0.0
            while (frame := self._first.pop(0) if self._first else self._read()) is not None:
                yield frame
                done += 1
                seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self._judge(done, seconds)
        finally:
            self._capture.release()

    def single_image(self) -> NDArray[np.uint8]:
        """The first frame; no other is read."""
        self._capture.release()
        return self._first[0]

    def _read(self) -> NDArray[np.uint8] | None:
        try:
            is_read, frame = self._capture.read()
        except cv2.error as error:
            raise InputError(f'{self.name}: cannot be decoded: {error.err}') from error
        return frame if is_read else None

    def _judge(self, done: int, seconds: float) -> None:
        """Compare what was read with what the file states: frames, and time, as some files state an average rate."""
        if self.count is None or self.is_live:
            return
        wanted = self.count / self.rate
        if done < self.count - self.count // 100 and seconds < 0.99 * wanted - 1.5 / self.rate:
            self.shortfall = (
                f'{self.name}: ends after {done} of {self.count} frames: it is cut short or damaged; the results have '
                'those that could be read'
            )


def open_capture(address: Path | str | int) -> cv2.VideoCapture:
    """Open a video for reading, whatever its name: OpenCV takes text alone, and ``a:b`` for an address."""
    if not isinstance(address, Path):
        return cv2.VideoCapture(address)
    path = str(address.absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f'video{address.suffix}'
            link.symlink_to(path)
            return cv2.VideoCapture(str(link))
    return cv2.VideoCapture(path)


class VideoFile:
    """Write an MPEG-4 file, which has its name only when it is whole.

    Args:
        path: Ends with ``.mp4``; its folder is made with the first frame.
        rate: Frames a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.frames = 0
        self._temporary = temporary_path(path)
        self._writer = cv2.VideoWriter()
        self._size: tuple[int, int] | None = None
        self._has_failed = False

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, (H, W, 3), BGR; one of another size than the first is resized.

        Raises:
            OutputError: This OpenCV cannot write such files, or the folder cannot be made. Later frames are ignored.
        """
        if self._has_failed:
            return
        if self._size is None:
            self._has_failed = True
            make_folder(self.path.parent)
            self._size = frame.shape[1::-1]
            try:
                self._temporary.touch()  # for the system's own words, if it cannot be written
                self._writer.open(str(self._temporary), cv2.VideoWriter_fourcc(*'mp4v'), self.rate, self._size)
            except (OSError, UnicodeError, cv2.error) as error:
                raise OutputError(self.path, error if isinstance(error, OSError) else str(error)) from error
            if not self._writer.isOpened():
                raise OutputError(self.path, 'this OpenCV cannot write MPEG-4 videos')
            self._has_failed = False
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(frame)
        self.frames += 1

    def close(self, is_whole: bool = True) -> Path | None:
        """End the file.

        Args:
            is_whole: Whether all frames were written; if not, the file gets the name ``NAME.partial.mp4``.

        Returns:
            Its path; None if there is none.

        Raises:
            OutputError: The file lacks frames: OpenCV does not say when the disk is full. It is removed.
        """
        self._writer.release()
        try:
            if self.frames == 0:
                return None
            capture = cv2.VideoCapture(str(self._temporary))
            count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            capture.release()
            if count < self.frames:
                raise OutputError(self.path, f'{count} of {self.frames} frames arrived there; is the disk full?')
            path = self.path if is_whole else self.path.with_suffix('.partial.mp4')
            os.replace(self._temporary, path)
            return path
        except OSError as error:
            raise OutputError(self.path, error) from error
        finally:
            with suppress(OSError):
                self._temporary.unlink()
