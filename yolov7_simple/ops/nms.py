"""Exact greedy non-maximum suppression in plain torch, on any device: N boxes, K of them kept."""

from __future__ import annotations

import torch
from torch import Tensor

# Boxes compared at once, with four times as many: enough to be worth a kernel, few enough to stay in cache.
BLOCK_SIZE = 192


def pairwise_overlaps(boxes_a: Tensor, boxes_b: Tensor, threshold: float, offset: int) -> Tensor:
    """Tell which pairs overlap by more than ``threshold`` IoU: (..., A, 4), (..., B, 4) -> (..., A, B) bool."""
    ax1, ay1, ax2, ay2 = boxes_a.mT.unsqueeze(-1).unbind(-3)  # (..., A, 1) each
    bx1, by1, bx2, by2 = boxes_b.mT.unsqueeze(-2).unbind(-3)  # (..., 1, B) each
    inter = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1))  # (..., A, B)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1))
    if offset:  # skips two passes over all pairs when it is 0
        inter += offset
        height += offset
    inter.clamp_(min=0).mul_(height.clamp_(min=0))
    area_a = (ax2 - ax1 + offset) * (ay2 - ay1 + offset)
    area_b = (bx2 - bx1 + offset) * (by2 - by1 + offset)
    union = (area_a + area_b).sub_(inter)
    return inter.div_(union) > threshold


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0, labels: Tensor | None = None) -> Tensor:
    """Keep each box that does not overlap a better kept box of its class by more than ``iou_threshold`` IoU.

    With ``labels``, boxes of different classes are never compared. ``mmcv.ops.batched_nms`` instead shifts each class
    by ``label * extent``, which is not exact: float32 has too few digits for many classes on large images, and boxes
    with negative coordinates reach into the class before theirs.

    Boxes are walked in blocks, class by class and best first. In a block, "kept unless a better kept box overlaps" is
    iterated to its fixed point, which is unique and the greedy result; the longest chain of boxes that overlap bounds
    the rounds. What is kept then suppresses later boxes: of its last class alone, as others have all been in a block.

    Args:
        boxes: (N, 4), xyxy in pixels.
        scores: (N,).
        iou_threshold: Boxes that overlap by more than this are suppressed.
        offset: 0 or 1, added to widths and heights; 1 is the old convention of inclusive corners.
        labels: (N,) classes, or None for one class.

    Returns:
        (K,) int64, the indices of the kept boxes, best first.
    """
    by_score = scores.argsort(descending=True, stable=True)
    # Sorted by class, and within a class best first.
    every = torch.arange(len(boxes), device=boxes.device)
    by_class = every if labels is None else labels[by_score].argsort(stable=True)
    order = by_score[by_class]
    boxes, labels = boxes[order].float(), None if labels is None else labels[order]
    kept, rest = [every[:0]], every
    while len(rest):
        block, rest = rest[:BLOCK_SIZE], rest[BLOCK_SIZE:]
        suppresses = pairwise_overlaps(boxes[block], boxes[block], iou_threshold, offset).triu_(1)
        if labels is not None:
            suppresses &= labels[block, None] == labels[block]
        keep, previous = ~suppresses.any(0), None
        while previous is None or not torch.equal(keep, previous):
            keep, previous = ~(suppresses & keep[:, None]).any(0), keep
        kept.append(block := block[keep])
        rivals, count = block, len(rest)
        if labels is not None:
            last = labels[block[-1]]
            rivals, count = block[labels[block] == last], int((labels[rest] == last).sum())
        parts = boxes[rest[:count]].split(4 * BLOCK_SIZE)
        hit = [pairwise_overlaps(boxes[rivals], part, iou_threshold, offset).any(0) for part in parts]
        rest = torch.cat([rest[:count][~torch.cat(hit)], rest[count:]])
    return by_score[by_class[torch.cat(kept)].sort()[0]]
