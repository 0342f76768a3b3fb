"""Read image files, refusing damaged ones and unusable sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError, OutputError
from .files import replacing

WRITABLE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp'}
MIN_SIDE = 4  # pixels
MAX_RATIO = 100  # longer to shorter side; beyond it, a resize could leave less than a pixel of the shorter one
MAX_MEGAPIXELS = 64.0


def check_size(name: str, height: int, width: int, max_megapixels: float | None) -> None:
    """Refuse images that are too small to hold anything, or so large that they would fill the memory.

    Raises:
        InputError: The message also says what to do.
    """
    if min(height, width) < MIN_SIDE:
        raise InputError(f'{name}: {width} x {height} pixels; an image needs at least {MIN_SIDE} on each side')
    if max(height, width) > MAX_RATIO * min(height, width):
        raise InputError(f'{name}: {width} x {height} pixels; one side may be at most {MAX_RATIO} times the other')
    if max_megapixels is not None and height * width > max_megapixels * 1e6:
        raise InputError(
            f'{name}: {width} x {height} is {height * width / 1e6:.0f} megapixels, more than the limit of '
            f'{max_megapixels:g}: make it smaller or raise the limit with --max-megapixels (tools/detect.py --slice '
            'has none, and sees small objects)'
        )


def check_pixels(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Make sure that these are images as :func:`read_image` gives them, and not, say, the rows of one.

    Args:
        images: BGR, (H, W, 3) each; a list, or one array of them, (B, H, W, 3).

    Returns:
        The list of them.

    Raises:
        InputError: The message says what was given, and how to turn it into what is wanted.
    """
    wanted = 'detection takes a list of images, arrays (H, W, 3) of uint8 in BGR'
    if isinstance(images, (str, bytes, Path)) or not isinstance(images, (Sequence, np.ndarray)):
        raise InputError(f'{wanted}, and this is {type(images).__name__}: [read_image(path)] reads a file')
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise InputError(f'{wanted}, and this is one array {images.shape}: put it into a list, [image]')
    for i, image in enumerate(images):
        if not isinstance(image, np.ndarray):
            raise InputError(f'{wanted}, and image {i} is {type(image).__name__}: read_image(path) reads a file')
        if image.dtype != np.uint8:
            raise InputError(f'{wanted}, and image {i} has {image.dtype}: scale it to 0 to 255, then .astype(np.uint8)')
        if image.ndim == 2 or image.shape[2:] == (1,):
            raise InputError(f'{wanted}, and image {i} is grey, {image.shape}: cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)')
        if image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f'{wanted}, and image {i} has {image.shape}; of BGRA take image[..., :3]')
        check_size(f'image {i}', *image.shape[:2], None)
    return list(images)


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file lacks its end; OpenCV before 5 decodes it without an error, with a grey rest."""
    if data.startswith(b'\xff\xd8'):
        # An end-of-image marker must follow the last scan. Some cameras write more data after it.
        return not data.endswith(b'\xff\xd9') and data.rfind(b'\xff\xd9') <= data.rfind(b'\xff\xda')
    return data.startswith(b'\x89PNG') and not has_all_chunks(data)


def has_all_chunks(png: bytes) -> bool:
    """Whether a PNG file has its chunks up to the last one.

    OpenCV 4.11 allocates what a damaged chunk claims to have, gigabytes for a file of kilobytes.
    """
    start = 8  # behind the signature; a chunk is its length, its name, its data, and a checksum
    while start + 12 <= len(png):
        if png[start + 4 : start + 8] == b'IEND':
            return True
        start += 12 + int.from_bytes(png[start : start + 4], 'big')
    return False


def read_image(path: Path, max_megapixels: float | None = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """Read an image, turned upright by its EXIF tag.

    Returns:
        (H, W, 3), BGR.

    Raises:
        InputError: No file, not an image, or an image of a size that cannot be used.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror or error}') from error
    return image_from_bytes(data, str(path), max_megapixels)


def image_from_bytes(data: bytes, name: str, max_megapixels: float | None = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """Decode the content of an image file, see :func:`read_image`; ``name`` is for messages."""
    try:
        image = None
        if data and not is_cut_short(data):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # e.g. more pixels than OpenCV decodes
        raise InputError(f'{name}: cannot be decoded: {error.err}') from error
    if image is None:
        raise InputError(f'{name}: not an image, or a damaged or cut one')
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f'{name}: its pixels are {image.dtype}, and only whole numbers of 8 or 16 bits can be used')
    check_size(name, *image.shape[:2], max_megapixels)
    return to_8_bits(image)


def to_8_bits(image: NDArray) -> NDArray[np.uint8]:
    """Keep the 8 highest of the bits that are in use: cameras write 10, 12 or 14 bits into files of 16.

    OpenCV alone would keep the 8 highest of all 16, and show such a picture nearly black.
    """
    if image.dtype == np.uint8:
        return image
    bits = next(bits for bits in (8, 10, 12, 14, 16) if image.max() < 1 << bits)
    return (image >> (bits - 8)).astype(np.uint8)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a BGR image atomically, in the format of the suffix of ``path``.

    Raises:
        InputError: OpenCV has no encoder for it.
        OutputError: The file cannot be written.
    """
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise InputError(f'{path}: OpenCV cannot write {path.suffix or "a file without a suffix"}')
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OutputError(path, error) from error
