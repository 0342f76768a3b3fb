"""Boxes and pixels through one matrix.

Coordinates are continuous: pixel i covers [i, i + 1], so a box and its pixels are moved by the same matrix. Points and
sizes are (x, y). Matrices are 3x3; in a product the rightmost is applied first. N boxes; a single box is four plain
numbers, xyxy, since numpy's overhead for one box exceeds the work on its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

PlainBox = tuple[float, float, float, float]


def scaling(x: float, y: float) -> NDArray:
    """Matrix that scales both axes."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def translation(x: float, y: float) -> NDArray:
    """Matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def mirror(width: float) -> NDArray:
    """Matrix that flips left and right within a width."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def inverse(matrix: NDArray) -> NDArray:
    """Inverse of an affine matrix, without its last row: (2, 3)."""
    return cv2.invertAffineTransform(matrix[:2])


def zoom(matrix: NDArray) -> float:
    """Factor by which a matrix scales lengths: the geometric mean over both axes."""
    return math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))


def transform_boxes(matrix: NDArray, boxes: NDArray) -> NDArray:
    """Upright boxes around the transformed ones: (3, 3), (N, 4) xyxy -> (N, 4) xyxy."""
    # A low side comes from the low side of the box along an axis with a positive factor, else from its high side.
    keeps, turns = np.maximum(matrix[:2, :2].T, 0), np.minimum(matrix[:2, :2].T, 0)
    both = np.empty((4, 4))
    both[:2, :2] = both[2:, 2:] = keeps
    both[2:, :2] = both[:2, 2:] = turns
    return boxes @ both + np.concatenate([matrix[:2, 2], matrix[:2, 2]])


def transform_box(matrix: NDArray, box: PlainBox) -> PlainBox:
    """Do as :func:`transform_boxes` for one box, in plain numbers and a tenth of the time."""
    (a, b, x), (c, d, y) = matrix[:2].tolist()
    left, top, right, bottom = box
    x1, x2 = (left, right) if a > 0 else (right, left)
    y1, y2 = (top, bottom) if b > 0 else (bottom, top)
    x3, x4 = (left, right) if c > 0 else (right, left)
    y3, y4 = (top, bottom) if d > 0 else (bottom, top)
    return a * x1 + b * y1 + x, c * x3 + d * y3 + y, a * x2 + b * y2 + x, c * x4 + d * y4 + y


def clip_boxes(boxes: NDArray, size: NDArray) -> NDArray:
    """Clip (N, 4) xyxy boxes to the rectangle from (0, 0) to ``size``."""
    return np.minimum(np.maximum(boxes, 0), np.concatenate([size, size]))


def clip_box(box: PlainBox, size: Sequence[float]) -> PlainBox:
    """Do as :func:`clip_boxes` for one box."""
    (width, height), (x1, y1, x2, y2) = size, box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def have_overlap(a: PlainBox, b: PlainBox) -> bool:
    """Whether two boxes have an area in common."""
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def draw(
    pixels: NDArray,
    reduction: tuple[float, float],
    inside: PlainBox,
    seen: PlainBox,
    matrix: NDArray,
    target: NDArray,
) -> None:
    """Draw a decoded image. Pixels end up less than one target pixel away from their boxes.

    Args:
        pixels: (height, width, 3), the image at 1 / ``reduction`` of its size.
        reduction: 1 or more, in x and y.
        inside: Part of the image that may be drawn, in pixels of the full-size image.
        seen: Part of the image that the target has room for, in the same pixels.
        matrix: From the full-size image to the target.
        target: (height, width, 3 or 4), drawn into.
    """
    x1, y1, x2, y2 = (side / step for side, step in zip(inside, reduction * 2))
    # Bilinear weights at the edges need up to two pixels more than are seen.
    left, top = (math.floor(max(side, room / step - 2)) for side, room, step in zip((x1, y1), seen[:2], reduction))
    right, bottom = (math.ceil(min(side, room / step + 2)) for side, room, step in zip((x2, y2), seen[2:], reduction))
    pixels = pixels[top:bottom, left:right]
    if target.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    matrix = matrix @ scaling(*reduction) @ translation(left, top)
    inside = (x1 - left, y1 - top, x2 - left, y2 - top)
    if matrix[0, 1] == 0 and matrix[1, 0] == 0:
        paste(pixels, inside, matrix, target)
    else:
        warp(pixels, inside, matrix, target)


def warp(pixels: NDArray, inside: PlainBox, matrix: NDArray, target: NDArray) -> None:
    """Draw the part ``inside`` by any matrix; the rest of the target is not changed."""
    scale = zoom(matrix)
    if scale > 1:
        # OpenCV leaves out the outermost half pixel of the source. Enlarging first makes that half a target pixel.
        height, width = pixels.shape[:2]
        new_width, new_height = math.ceil(width * scale), math.ceil(height * scale)
        x, y = new_width / width, new_height / height
        left, top = math.floor(max(inside[0], 0) * x), math.floor(max(inside[1], 0) * y)
        pixels = cv2.resize(pixels, (new_width, new_height))
        pixels = pixels[top : math.ceil(inside[3] * y), left : math.ceil(inside[2] * x)]
        matrix = matrix @ scaling(1 / x, 1 / y) @ translation(left, top)
    # OpenCV's origin is the centre of the first pixel, ours its corner.
    matrix = translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)
    shape = target.shape[1::-1]
    cv2.warpAffine(pixels, matrix[:2], shape, dst=target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)


def paste(pixels: NDArray, inside: PlainBox, matrix: NDArray, target: NDArray) -> None:
    """Do as :func:`warp`, for a matrix without rotation and to whole target pixels, in a quarter of the time."""
    if matrix[0, 0] < 0:
        width = pixels.shape[1]
        matrix, pixels = matrix @ mirror(width), cv2.flip(pixels, 1)
        inside = (width - inside[2], inside[1], width - inside[0], inside[3])
    left, top, right, bottom = map(round, transform_box(matrix, (0, 0, *pixels.shape[1::-1])))
    if left < right and top < bottom:
        pixels = cv2.resize(pixels, (right - left, bottom - top))
        whole = clip_box((left, top, right, bottom), target.shape[1::-1])
        x1, y1, x2, y2 = map(round, transform_box(matrix, inside))
        x1, y1, x2, y2 = max(x1, whole[0]), max(y1, whole[1]), min(x2, whole[2]), min(y2, whole[3])
        if x1 < x2 and y1 < y2:
            target[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
