"""Exact non-maximum suppression in numpy, for a few hundred boxes. N boxes, K of them kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def numpy_nms(boxes: NDArray, scores: NDArray, labels: NDArray, iou_threshold: float) -> NDArray[np.int64]:
    """Keep each box that does not overlap a better kept box of its class by more than ``iou_threshold`` IoU.

    OpenCV's ``NMSBoxesBatched`` is not used, since of several boxes without an area, left by clipping, it keeps one.

    Args:
        boxes: (N, 4), xyxy in pixels.
        scores: (N,).
        labels: (N,), indices of classes.
        iou_threshold: Boxes that overlap by more than this are suppressed.

    Returns:
        (K,), the indices of the kept boxes, best first.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    rest, kept = np.argsort(-scores, kind='stable'), []
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        inter = sides.clip(min=0).prod(1)
        overlaps = inter > iou_threshold * (areas[best] + areas[rest] - inter)
        rest = rest[~overlaps | (labels[rest] != labels[best])]
    return np.array(kept, np.int64)
