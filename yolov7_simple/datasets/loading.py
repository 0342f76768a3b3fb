"""Image files: decoding at a fraction of the size, and refusing damaged ones."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine import fileio
from numpy.typing import NDArray

from ..runtime.errors import DamagedImageError
from ..runtime.images import is_cut_short, to_8_bits
from ..utils.options import checked_options
from .headers import image_size

# JPEG can be decoded at these fractions of its size, which is faster.
REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class Decoded(NamedTuple):
    """Pixels of an image, at a fraction of its size.

    Args:
        pixels: (height, width, 3).
        reduction: How many pixels of the full image are one of these, in x and y.
        size: (2,), width and height of the full image.
    """

    pixels: NDArray
    reduction: tuple[float, float]
    size: NDArray


def read_file(path: str, backend_args: dict | None) -> tuple[bytes, tuple[int, int] | None]:
    """Read an image file.

    Returns:
        Its content, and the width and height of the image as :func:`image_size` finds them.

    Raises:
        DamagedImageError: It is not there, cannot be read, is empty, cut short, or of absurd dimensions.
    """
    try:
        data = fileio.get(path, backend_args=backend_args)
    except OSError as error:
        raise DamagedImageError(path, f'cannot be read: {error.strerror or error}') from error
    if is_cut_short(data) or not data:
        raise DamagedImageError(path, f'is cut short after {len(data)} bytes')
    return data, image_size(path, data)


def decode_image(path: str, reduction: int = 1, backend_args: dict | None = None) -> NDArray:
    """Decode an image as mmcv's loader does: 8 bits, BGR, turned upright by its EXIF tag.

    Of deeper images the 8 highest bits in use remain, as in detection and, by :class:`CheckImageFile`, in evaluation.

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
    return decode_content(read_file(path, backend_args)[0], path, reduction)


def decode_content(content: bytes, path: str, reduction: int) -> NDArray:
    """Decode the content of a file, as :func:`decode_image`."""
    data = np.frombuffer(content, np.uint8)
    is_jpeg = data[:2].tobytes() == b'\xff\xd8'
    try:
        image, _ = decode_any_depth(data)
        if image is None:
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


def fitting_reduction(scale: float) -> int:
    """Largest reduction of an image that will be scaled by ``scale`` which does not make it smaller than that."""
    return max(d for d in REDUCED_FLAGS if d == 1 or scale * d <= 1)


def decode_any_depth(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8] | None, bool]:
    """Decode the content of a PNG, TIFF or PNM file that may have 16 bits a channel.

    OpenCV and mmcv's loader take the 8 highest of 16 bits, which leaves those of 12 bits nearly black.

    Returns:
        The image, and whether it has 16 bits a channel; None and False of other files.
    """
    start = data[:26].tobytes()
    may_be_deep = start[:2] in (b'II', b'MM', b'P2', b'P3', b'P5', b'P6')
    if not may_be_deep and not (start[:4] == b'\x89PNG' and start[24:25] == b'\x10'):
        return None, False
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        return None, False
    return to_8_bits(image), image.dtype == np.uint16


@TRANSFORMS.register_module()
@checked_options
class CheckImageFile(BaseTransform):
    """Refuse an image file that is cut short or of absurd dimensions, which mmcv's loader accepts.

    A detector must not be evaluated on half an image. In training :class:`SeededMixDataset` replaces such images. An
    image of 16 bits a channel, which that loader reads too dark, is read again, as in training.

    Required key: ``img_path``, None for an image that did not come from a file.

    Args:
        backend_args: Options of mmengine's file backend.

    Raises:
        DamagedImageError: The file is cut short or of absurd dimensions.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Check the file; the results pass through unchanged, but for the pixels of a deep image."""
        if results['img_path'] is not None:
            data, _ = read_file(results['img_path'], self.backend_args)
            image = results.get('img')
            deep, is_deep = (None, False) if image is None else decode_any_depth(np.frombuffer(data, np.uint8))
            if is_deep and image.shape == deep.shape and image.dtype != np.uint16:
                results['img'] = deep.astype(image.dtype)
        return results
