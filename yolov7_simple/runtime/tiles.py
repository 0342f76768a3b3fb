"""Large pictures: detect in overlapping windows and in the picture as a whole, and merge what is found.

A view is a window, or the whole picture. V views of a picture, N detections in all of them, K of them kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Found = tuple[NDArray, NDArray, NDArray]  # boxes (N, 4), scores (N,), labels (N,)

BATCH = 8  # views that the network sees at a time
MAX_DETECTIONS = 10_000  # of a picture, the best of all views, so that merging takes no more than a second or two
MAX_PAIRS = 1 << 20  # that are compared at a time
# Two views disagree about a small object by more than the NMS of one view allows: a pixel of ten is an IoU of 0.8.
SAME_IOU = 0.5
# Of the smaller of two boxes, both views must see so much.
MIN_COMMON = 0.2
# A box that ends where its window ends, within this share of it, is taken to be cut.
MARGIN = 0.02
# Which of two boxes stays is decided by their scores, times this for one that is cut, and for one of the picture as a
# whole that a window shows larger.
CUT_WEIGHT, COARSE_WEIGHT = 0.15, 0.3


class Tiling(NamedTuple):
    """How a picture is looked at.

    Args:
        tile: Side of the windows, in pixels of the picture.
        overlap: Share of it that two windows have in common, at least.
        scale: Side of the network's input that each view is fitted into.
    """

    tile: int
    overlap: float
    scale: int

    def views(self, height: int, width: int) -> NDArray[np.int64]:
        """The whole picture of this size, then its windows, evenly spread: (V, 4), xyxy.

        A picture that is no larger than a window has none.
        """
        views = [(0, 0, width, height)]
        if max(height, width) > self.tile:
            views += [
                (x, y, min(x + self.tile, width), min(y + self.tile, height))
                for y in self._starts(height)
                for x in self._starts(width)
            ]
        return np.array(views)

    def _starts(self, length: int) -> list[int]:
        rest = max(0, length - self.tile)
        steps = math.ceil(rest / max(1, self.tile * (1 - self.overlap)))
        return np.linspace(0, rest, steps + 1).round().astype(int).tolist()


def fit_view(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Resize a view; where it shrinks by far each pixel is the mean of those that it stands for, as in training."""
    height, width = pixels.shape[:2]
    size = (max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1))
    if size == (width, height):
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor <= 0.5 else cv2.INTER_LINEAR)


def detect_in_views(
    picture: NDArray[np.uint8],
    tiling: Tiling,
    detect: Callable[[list[NDArray[np.uint8]]], Sequence[Found]],
    iou_threshold: float,
    agnostic: bool = False,
    max_per_img: int = -1,
) -> Found:
    """Detect in all views of a picture, a few at a time.

    Args:
        picture: (H, W, 3).
        tiling: Of the picture.
        detect: Images -> what is found in each, in its pixels and after NMS.
        iou_threshold: Of that NMS.
        agnostic: Whether that NMS treats all classes as one.
        max_per_img: Most detections of the picture; below 1: no limit.

    Returns:
        Boxes in pixels of the picture, scores and labels, best first.
    """
    views = tiling.views(*picture.shape[:2])
    found: list[Found] = []
    for start in range(0, len(views), BATCH):
        found += detect([picture[y1:y2, x1:x2] for x1, y1, x2, y2 in views[start : start + BATCH].tolist()])
    moved = [(boxes + np.tile(view[:2], 2), scores, labels) for view, (boxes, scores, labels) in zip(views, found)]
    merged = merge_views(views, moved, iou_threshold, agnostic)
    return tuple(values[:max_per_img] for values in merged) if max_per_img > 0 else merged


def merge_views(views: NDArray, found: Sequence[Found], iou_threshold: float, agnostic: bool = False) -> Found:
    """Keep one detection of each object.

    Two views can only be compared where both see. There, two detections are alike by the IoU of their parts, and those
    of one class that are alike enough are of the same object. So a box that ends at the border of its window is alike
    to the whole one, of which that window sees no more. Of two, the better one stays, and rather one that is not cut;
    of two that are cut, what both cover. The detections of a single view are of different objects, however close: its
    NMS has seen to that. So a box that stays takes away one detection of each other view, and others only if that NMS
    would have done so. What the picture as a whole shows in a place where a window would show it larger, and does not,
    is left out.

    Args:
        views: (V, 4), xyxy, the whole picture first.
        found: Of each view, in pixels of the picture.
        iou_threshold: Of the NMS of each view.
        agnostic: Whether that NMS treats all classes as one.

    Returns:
        Boxes (K, 4), scores (K,) and labels (K,), best first.
    """
    boxes, scores, labels = (np.concatenate(values) for values in zip(*found))
    boxes = boxes.astype(np.float32).reshape(-1, 4)
    owners = np.repeat(np.arange(len(views)), [len(one[1]) for one in found])
    cut = is_cut(boxes, views[owners], views[0])
    coarse = (owners == 0) & is_held(boxes, views)
    weights = np.where(cut, CUT_WEIGHT, np.where(coarse, COARSE_WEIGHT, 1))
    order = np.argsort(-scores * weights, kind='stable')[:MAX_DETECTIONS]
    boxes, scores, labels, owners, cut, coarse = (
        values[order] for values in (boxes, scores, labels, owners, cut, coarse)
    )
    classes = np.zeros_like(labels) if agnostic else labels
    stays = np.ones(len(boxes), bool)
    merged, best = boxes.copy(), scores.copy()
    for i, others, alike in find_alike(boxes, classes, owners, views):
        alive = stays[others]
        if not stays[i] or not alive.any():
            continue
        others, alike = others[alive], alike[alive]
        # Of each other view the one that fits best, sure ones first.
        ranked = np.lexsort((-alike * scores[others], owners[others]))
        same = others[ranked][np.r_[True, np.diff(owners[others][ranked]) > 0]]
        stays[others[alike > iou_threshold]] = False
        stays[same] = False
        coarse[i] = False  # a window shows it, too
        parts = same[cut[same] & (scores[same] >= CUT_WEIGHT * scores[i])]
        if len(parts):
            best[i] = max(best[i], scores[parts].max())  # the parts of an object are as sure as the object
            if cut[i]:
                merged[i, :2] = np.minimum(boxes[i, :2], boxes[parts, :2].min(0))
                merged[i, 2:] = np.maximum(boxes[i, 2:], boxes[parts, 2:].max(0))
    kept = np.flatnonzero(stays & ~coarse)
    kept = kept[np.argsort(-best[kept], kind='stable')]
    return merged[kept], best[kept], labels[kept]


def is_cut(boxes: NDArray, views: NDArray, picture: NDArray) -> NDArray[np.bool_]:
    """Whether a box ends where its view does, and not the picture: (N, 4), (N, 4), (4,) -> (N,)."""
    margin = MARGIN * (views[:, 2:] - views[:, :2]).max(1, keepdims=True)
    ends = np.concatenate([boxes[:, :2] <= views[:, :2] + margin, boxes[:, 2:] >= views[:, 2:] - margin], 1)
    return (ends & (views != picture)).any(1)


def is_held(boxes: NDArray, views: NDArray) -> NDArray[np.bool_]:
    """Whether a window, of views (V, 4) beside the first, shows all of a box and does not cut it: (N, 4) -> (N,)."""
    held = np.zeros(len(boxes), bool)
    for window in views[1:]:
        inside = (boxes[:, :2] >= window[:2]).all(1) & (boxes[:, 2:] <= window[2:]).all(1)
        held |= inside & ~is_cut(boxes, window[None], views[0])
    return held


def find_alike(
    boxes: NDArray, classes: NDArray, owners: NDArray, views: NDArray
) -> Iterator[tuple[int, NDArray[np.int64], NDArray]]:
    """Find detections of other views, and the same class, that may be of the same object.

    Args:
        boxes: (N, 4), better ones first.
        classes: (N,).
        owners: (N,), index of the view of each.
        views: (V, 4).

    Yields:
        For each detection that has some, better ones first: its index, those of worse ones, and how alike they are,
        from :data:`SAME_IOU` to 1.
    """
    firsts, seconds, values = [], [], []
    for i, j in overlapping_pairs(boxes):
        differ = (owners[i] != owners[j]) & (classes[i] == classes[j])
        i, j = np.minimum(i, j)[differ], np.maximum(i, j)[differ]
        common = area(intersect(boxes[i], boxes[j]))
        mine, yours = (area(intersect(boxes[a], views[owners[b]])) for a, b in ((i, j), (j, i)))
        smaller = np.minimum(area(boxes[i]), area(boxes[j]))
        alike = common / np.maximum(mine + yours - common, 1e-9)
        kept = (alike >= SAME_IOU) & (common >= MIN_COMMON * smaller)
        firsts.append(i[kept])
        seconds.append(j[kept])
        values.append(alike[kept])
    if not firsts:
        return
    first, second, value = map(np.concatenate, (firsts, seconds, values))
    order = np.lexsort((second, first))
    first, second, value = first[order], second[order], value[order]
    for part in np.split(np.arange(len(first)), np.flatnonzero(np.diff(first)) + 1):
        if len(part):
            yield int(first[part[0]]), second[part], value[part]


def overlapping_pairs(boxes: NDArray) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of (N, 4) boxes that overlap, some at a time, each pair once."""
    order = np.argsort(boxes[:, 0], kind='stable')
    left, top, right, bottom = boxes[order].T
    # Those that begin before a box ends come right behind it.
    counts = np.maximum(np.searchsorted(left, right) - np.arange(len(boxes)) - 1, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(boxes):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] - counts[start] + MAX_PAIRS, 'right')))
        own = counts[start:stop]
        i = np.repeat(np.arange(start, stop), own)
        j = i + 1 + np.arange(len(i)) - np.repeat(np.cumsum(own) - own, own)
        met = (top[i] < bottom[j]) & (top[j] < bottom[i])
        yield order[i[met]], order[j[met]]
        start = stop


def intersect(a: NDArray, b: NDArray) -> NDArray:
    """Part that boxes have in common with others, pair by pair: (N, 4), (N, 4) -> (N, 4)."""
    return np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], 1)


def area(boxes: NDArray) -> NDArray:
    """Area of (N, 4) boxes, 0 of those with a negative side: (N,)."""
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
