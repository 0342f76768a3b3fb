"""Sizes of image files by their headers, and boxes brought from the size that a label states to that of its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..datasets.headers import Header, image_headers
from ..runtime.errors import DamagedImageError, InputError
from .files import Files
from .findings import Findings
from .labels import Box, LabelledImage

# Width and height that a label states may be rounded by so many pixels.
ROUNDING = 1.0

# For each EXIF orientation, how the upright image is made from the stored one: transposed, flipped in x, flipped in y.
TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def read_headers(files: Files, images: Sequence[str]) -> dict[str, Header]:
    """Read the headers of many images at once, each file but once.

    Raises:
        InputError: One is no image that Pillow knows, or claims to be of absurd dimensions.
    """
    unread = [image for image in images if image not in files.headers]
    for image, header in zip(unread, image_headers([str(files.path(image)) for image in unread])):
        if isinstance(header, DamagedImageError):
            raise InputError(str(header)) from header
        if header is None:
            raise InputError(f'{files.path(image)}: not an image that can be read')
        files.headers[image] = header
    return {image: files.headers[image] for image in images}


def is_same_shape(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether one size is the other, enlarged or reduced and rounded to pixels."""
    scale = min(b[0] / a[0], b[1] / a[1]), max(b[0] / a[0], b[1] / a[1])
    return (scale[1] - scale[0]) * max(a) <= ROUNDING * max(1.0, scale[1])


def turn(points: NDArray, size: tuple[float, float], orientation: int) -> NDArray:
    """Points (N, 2) of the stored image, of this width and height, as they lie on the upright one."""
    is_transposed, flip_x, flip_y = TURNS[orientation]
    points, (width, height) = (points[:, ::-1], size[::-1]) if is_transposed else (points, size)
    return np.stack(
        [
            width - points[:, 0] if flip_x else points[:, 0],
            height - points[:, 1] if flip_y else points[:, 1],
        ],
        1,
    )


def fit_boxes(one: LabelledImage, header: Header, findings: Findings) -> list[Box]:
    """Bring the boxes of an image from the size that their label states to the upright image.

    The same size: as they are. The size of the stored image, which EXIF turns: turned with it. The same shape at
    another scale: scaled. Where the file is turned without a change of its size, the label cannot tell which way up it
    was drawn, and is taken to be on the upright image, as it is shown today.

    Raises:
        InputError: The label is of an image of another shape.
    """
    size = (header.width, header.height)
    stated = one.size
    if stated is None or min(stated) <= 0 or stated == size or not one.boxes:
        return one.boxes
    boxes = np.array([box[1:5] for box in one.boxes], float)
    is_turned = TURNS[header.orientation][0]
    if is_turned and not is_same_shape(stated, size) and is_same_shape(stated, size[::-1]):
        corners = turn(boxes.reshape(-1, 2), stated, header.orientation).reshape(-1, 2, 2)
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        stated = stated[::-1]
        findings.repair('images whose labels are turned as EXIF turns the image', one.label or one.image)
    if stated != size:
        if not is_same_shape(stated, size):
            raise InputError(
                f'{one.label or one.image}: was drawn on an image of {one.size[0]:g} x {one.size[1]:g} pixels, but '
                f'{one.image} has {size[0]} x {size[1]}: they are not the same picture'
            )
        boxes *= np.tile(np.array(size) / stated, 2)
        findings.repair('images whose labels are scaled to the size of the file', one.label or one.image)
    return [box._replace(x1=x1, y1=y1, x2=x2, y2=y2) for box, (x1, y1, x2, y2) in zip(one.boxes, boxes.tolist())]
