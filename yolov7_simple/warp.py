"""Boxes and pixels through one matrix.

Coordinates are continuous: pixel i covers [i, i + 1], so that a box and the pixels under it go through one matrix.
Points and sizes are (x, y). Matrices are 3x3, and the one written last is applied first. N boxes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray


def scaling(x: float, y: float) -> NDArray:
    """Matrix that scales both axes."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def translation(x: float, y: float) -> NDArray:
    """Matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def mirror(width: float) -> NDArray:
    """Matrix that flips from left to right within a width."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def inverse(matrix: NDArray) -> NDArray:
    """Its first two rows, (2, 3)."""
    return cv2.invertAffineTransform(matrix[:2])


def zoom(matrix: NDArray) -> float:
    """How many times as long lengths become, the mean of both axes."""
    return math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))


def transform_boxes(matrix: NDArray, boxes: NDArray) -> NDArray:
    """Upright boxes around the transformed ones: (3, 3), (N, 4) xyxy -> (N, 4) xyxy."""
    low, high = boxes[:, :2], boxes[:, 2:]
    center = (low + high) / 2 @ matrix[:2, :2].T + matrix[:2, 2]
    half = (high - low) / 2 @ np.abs(matrix[:2, :2]).T
    return np.concatenate([center - half, center + half], 1)


def clip_boxes(boxes: NDArray, size: NDArray) -> NDArray:
    """Clip (N, 4) xyxy boxes to the rectangle from (0, 0) to ``size``."""
    return np.minimum(np.maximum(boxes, 0), np.concatenate([size, size]))


def overlap(a: NDArray, b: NDArray) -> bool:
    """Whether two xyxy boxes (4,) have an area in common."""
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def draw(pixels: NDArray, reduction: int, inside: NDArray, seen: NDArray, matrix: NDArray, target: NDArray) -> None:
    """Draw a decoded image. Its pixels and its boxes part by less than a pixel of the target.

    Args:
        pixels: (height, width, 3), the image at 1 / ``reduction`` of its size.
        reduction: 1 or more.
        inside: (4,) xyxy in pixels of the whole image: nothing beyond it is drawn.
        seen: (4,) xyxy, what the target has room for.
        matrix: From the whole image to the target.
        target: (height, width, 3 or 4), drawn into.
    """
    inside, seen = inside / reduction, seen / reduction
    # Two pixels more than are seen, for the bilinear weights at its edges.
    first = np.maximum(np.floor(inside[:2]), np.floor(seen[:2]) - 2).astype(int)
    last = np.minimum(np.ceil(inside[2:]), np.ceil(seen[2:]) + 2).astype(int)
    pixels = pixels[first[1] : last[1], first[0] : last[0]]
    if target.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    matrix = matrix @ scaling(reduction, reduction) @ translation(*first)
    inside = inside - np.tile(first, 2)
    if matrix[0, 1] == 0 and matrix[1, 0] == 0:
        paste(pixels, inside, matrix, target)
    else:
        warp(pixels, inside, matrix, target)


def warp(pixels: NDArray, inside: NDArray, matrix: NDArray, target: NDArray) -> None:
    """Draw what is inside of ``inside`` by any matrix; what the target has elsewhere stays."""
    scale = zoom(matrix)
    if scale > 1:
        # OpenCV draws nothing in the outermost half pixel: enlarged first, that is half a pixel of the target too.
        size = np.ceil(np.array(pixels.shape[1::-1]) * scale).astype(int)
        ratio = size / pixels.shape[1::-1]
        low = np.floor(np.maximum(inside[:2], 0) * ratio).astype(int)
        high = np.minimum(np.ceil(inside[2:] * ratio).astype(int), size)
        pixels = cv2.resize(pixels, size.tolist())[low[1] : high[1], low[0] : high[0]]
        matrix = matrix @ scaling(*1 / ratio) @ translation(*low)
    # OpenCV counts from the centre of the first pixel.
    matrix = translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)
    shape = target.shape[1::-1]
    cv2.warpAffine(pixels, matrix[:2], shape, dst=target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)


def paste(pixels: NDArray, inside: NDArray, matrix: NDArray, target: NDArray) -> None:
    """Do as :func:`warp` in a quarter of the time, by a matrix that does not turn: to whole pixels of the target."""
    if matrix[0, 0] < 0:
        matrix, pixels = matrix @ mirror(pixels.shape[1]), cv2.flip(pixels, 1)
        inside = np.array([pixels.shape[1] - inside[2], inside[1], pixels.shape[1] - inside[0], inside[3]])
    whole = np.array([0, 0, *pixels.shape[1::-1]])
    left, top, right, bottom = np.rint(transform_boxes(matrix, whole[None])[0]).astype(int).tolist()
    if left < right and top < bottom:
        pixels = cv2.resize(pixels, (right - left, bottom - top))
        edges = transform_boxes(matrix, inside[None])[0].clip(0, np.tile(target.shape[1::-1], 2))
        x1, y1, x2, y2 = np.rint(edges).astype(int).clip((left, top) * 2, (right, bottom) * 2).tolist()
        target[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
