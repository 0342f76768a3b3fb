"""Image files: headers, decoding at a fraction of the size, and refusing damaged ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine import fileio
from numpy.typing import NDArray
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from ..runtime.errors import DamagedImageError
from ..runtime.images import MAX_RATIO, is_cut_short
from ..utils.options import checked_options

# Pillow's default limit: a decompression bomb of kilobytes can claim any size, and this many pixels decode to 0.5 GB.
# It is checked here too, since other packages (SAHI for one) remove Pillow's limit for the whole process.
MAX_PIXELS = 178_956_970
EXIF_ORIENTATION = 0x0112
NUM_THREADS = 4  # that read headers: they wait for the disk
CHUNK = 32  # headers that a thread reads at once
# A progress bar on a terminal alone, and not before a second is over.
BAR = {'disable': None, 'delay': 1, 'leave': False}
# JPEG can be decoded at these fractions of its size, which is faster.
REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class Header(NamedTuple):
    """Width and height of an image, turned upright by its EXIF tag, and that tag, 1 to 8."""

    width: int
    height: int
    orientation: int


def read_header(path: str, content: bytes | None = None) -> Header | None:
    """Read the header of an image, without decoding it.

    Args:
        path: Path of the file.
        content: Content of the file, if it was read already.

    Returns:
        None if Pillow cannot read it; OpenCV may still.

    Raises:
        DamagedImageError: Its header claims absurd dimensions.
    """
    absurd = DamagedImageError(path, f'claims to have more than {MAX_PIXELS / 1e6:.0f} million pixels')
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            width, height = image.size
            # Pillow decodes a whole PNG file in search of an EXIF tag that is not there.
            orientation = image.getexif().get(EXIF_ORIENTATION, 1) if 'exif' in image.info else 1
    except Image.DecompressionBombError:
        raise absurd from None
    except Exception:  # whatever damaged bytes make Pillow do
        return None
    orientation = orientation if orientation in range(1, 9) else 1
    if orientation >= 5:
        width, height = height, width
    if width * height > MAX_PIXELS:
        raise absurd
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DamagedImageError(path, f'is {width} x {height} pixels: one side may be {MAX_RATIO} times the other')
    return Header(width, height, orientation)


def image_size(path: str, content: bytes | None = None) -> tuple[int, int] | None:
    """Width and height of an image, turned upright by its EXIF tag; otherwise as :func:`read_header`."""
    header = read_header(path, content)
    return header and header[:2]


def image_headers(paths: Sequence[str]) -> list[Header | DamagedImageError | None]:
    """Read the headers of many images at once, with a progress bar on a terminal.

    Returns:
        As :func:`read_header`; what it raises takes the place of the header.
    """

    def read(path: str) -> Header | DamagedImageError | None:
        try:
            return read_header(path)
        except DamagedImageError as error:
            return error

    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    found = thread_map(
        lambda chunk: list(map(read, chunk)),
        chunks,
        max_workers=NUM_THREADS,
        desc='Sizes of images',
        unit_scale=CHUNK,
        **BAR,
    )
    return list(chain.from_iterable(found))


def read_file(path: str, backend_args: dict | None) -> bytes:
    """Read an image file.

    Raises:
        DamagedImageError: It is not there, cannot be read, is empty, cut short, or of absurd dimensions.
    """
    try:
        data = fileio.get(path, backend_args=backend_args)
    except OSError as error:
        raise DamagedImageError(path, f'cannot be read: {error.strerror or error}') from error
    if is_cut_short(data) or not data:
        raise DamagedImageError(path, f'is cut short after {len(data)} bytes')
    image_size(path, data)
    return data


def decode_image(path: str, reduction: int = 1, backend_args: dict | None = None) -> NDArray:
    """Decode an image as mmcv's loader does: 8 bits, BGR, turned upright by its EXIF tag.

    Args:
        path: Path of the file.
        reduction: Decode at 1 / reduction of the size: 1, 2, 4 or 8.
        backend_args: Options of mmengine's file backend.

    Returns:
        (ceil(height / reduction), ceil(width / reduction), 3). Each pixel is the mean of ``reduction`` x ``reduction``
        pixels of the full image.

    Raises:
        DamagedImageError: No image can be read from the file.
    """
    data = np.frombuffer(read_file(path, backend_args), np.uint8)
    is_jpeg = data[:2].tobytes() == b'\xff\xd8'
    try:
        image = cv2.imdecode(data, REDUCED_FLAGS[reduction if is_jpeg else 1])
    except cv2.error as error:
        raise DamagedImageError(path, f'cannot be decoded: {error.err}') from error
    if image is None:
        raise DamagedImageError(path, 'cannot be decoded: it is damaged or not an image')
    if reduction > 1 and not is_jpeg:
        height, width = -image.shape[0] % reduction, -image.shape[1] % reduction
        image = cv2.copyMakeBorder(image, 0, height, 0, width, cv2.BORDER_REPLICATE)
        height, width = np.array(image.shape[:2]) // reduction
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image


@TRANSFORMS.register_module()
@checked_options
class CheckImageFile(BaseTransform):
    """Refuse an image file that is cut short or of absurd dimensions, which mmcv's loader accepts.

    A detector must not be evaluated on half an image. In training :class:`SeededMixDataset` replaces such images.

    Required key: ``img_path``, None for an image that did not come from a file.

    Args:
        backend_args: Options of mmengine's file backend.

    Raises:
        DamagedImageError: The file is cut short or of absurd dimensions.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Check the file; the results pass through unchanged."""
        if results['img_path'] is not None:
            read_file(results['img_path'], self.backend_args)
        return results
