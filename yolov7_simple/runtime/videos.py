"""Read videos frame by frame, and write them atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .files import make_folder, replacing
from .images import check_size

DEFAULT_RATE = 25.0  # frames a second, if a file does not state its own


def read_video(path: Path, max_megapixels: float | None) -> Iterator[NDArray[np.uint8]]:
    """Read the frames of a video, (H, W, 3), BGR.

    Raises:
        InputError: Not a video, or a video without frames or with frames of an unusable size.
    """
    if not path.is_file():
        raise InputError(f'{path}: no such file')
    capture = cv2.VideoCapture(str(path))
    try:
        is_read, frame = capture.read()
        if not is_read:
            raise InputError(f'{path}: not a video that OpenCV can read, or one without frames')
        check_size(str(path), *frame.shape[:2], max_megapixels)
        while is_read:
            yield frame
            is_read, frame = capture.read()
    finally:
        capture.release()


def frame_rate(path: Path) -> float:
    """Frames a second."""
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) or DEFAULT_RATE


def frame_count(path: Path) -> int | None:
    """Number of frames as stated by the file, or None."""
    count = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))
    return count if count > 0 else None


@contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Write an MPEG-4 file atomically.

    Args:
        path: Ends with ``.mp4``; its folder is made with the first frame.
        rate: Frames a second.

    Yields:
        A function that appends a frame, (H, W, 3), BGR, of the size of the first one.

    Raises:
        InputError: This OpenCV cannot write such files, or the folder cannot be made.
    """
    writer = cv2.VideoWriter()
    with replacing(path) as temporary:

        def write(frame: NDArray[np.uint8]) -> None:
            if not writer.isOpened():
                make_folder(path.parent)
                writer.open(str(temporary), cv2.VideoWriter_fourcc(*'mp4v'), rate, frame.shape[1::-1])
                if not writer.isOpened():
                    raise InputError(f'{path}: this OpenCV cannot write MPEG-4 videos')
            writer.write(frame)

        try:
            yield write
        finally:
            writer.release()
