"""Headers of image files: sizes and orientation, without decoding.

A progress bar shows where thousands are read.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from PIL import Image
from tqdm.contrib.concurrent import thread_map

from ..runtime.errors import DamagedImageError
from ..runtime.images import MAX_RATIO

# Pillow's default limit: a decompression bomb of kilobytes can claim any size, and this many pixels decode to 0.5 GB.
# It is checked here too, since other packages (SAHI for one) remove Pillow's limit for the whole process.
MAX_PIXELS = 178_956_970
EXIF_ORIENTATION = 0x0112
# Markers of a JPEG file that give its size: C0 to CF without tables (C4, CC) and a reserved one (C8). The others begin
# segments that say how long they are; E1 has the EXIF tag, which is left to Pillow.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEGMENTS = frozenset((*range(0xC0, 0xD0), *range(0xDB, 0xFF))) - {0xE1}
NUM_THREADS = 4  # that read headers: they wait for the disk
CHUNK = 32  # headers that a thread reads at once
# A progress bar on a terminal alone, and not before a second is over.
BAR = {'disable': None, 'delay': 1, 'leave': False}


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
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            width, height = image.size
            # Pillow decodes a whole PNG file in search of an EXIF tag that is not there.
            orientation = image.getexif().get(EXIF_ORIENTATION, 1) if 'exif' in image.info else 1
    except Image.DecompressionBombError:
        raise _too_many_pixels(path) from None
    except Exception:  # whatever damaged bytes make Pillow do
        return None
    orientation = orientation if orientation in range(1, 9) else 1
    if orientation >= 5:
        width, height = height, width
    _check_size(path, width, height)
    return Header(width, height, orientation)


def stored_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a plain JPEG or PNG file, without a tag that may turn it; None of all others."""
    if content[:2] == b'\xff\xd8':
        start = 2
        while start + 9 <= len(content) and content[start] == 0xFF and content[start + 1] in SEGMENTS:
            if content[start + 1] in FRAMES:
                height, width = (int.from_bytes(content[i : i + 2], 'big') for i in (start + 5, start + 7))
                return (width, height) if width and height else None
            start += 2 + int.from_bytes(content[start + 2 : start + 4], 'big')
    elif content[:4] == b'\x89PNG' and content[12:16] == b'IHDR' and b'eXIf' not in content:
        width, height = (int.from_bytes(content[i : i + 4], 'big') for i in (16, 20))
        return (width, height) if width and height else None
    return None


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(path)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DamagedImageError(path, f'is {width} x {height} pixels: one side may be {MAX_RATIO} times the other')


def _too_many_pixels(path: str) -> DamagedImageError:
    return DamagedImageError(path, f'claims to have more than {MAX_PIXELS / 1e6:.0f} million pixels')


def image_size(path: str, content: bytes | None = None) -> tuple[int, int] | None:
    """Width and height of an image, turned upright by its EXIF tag; otherwise as :func:`read_header`.

    Given the content, plain files are read without Pillow, in a tenth of the time.
    """
    size = content and stored_size(content)
    if size:
        _check_size(path, *size)
        return size
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
