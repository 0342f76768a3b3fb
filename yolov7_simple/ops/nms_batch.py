"""Greedy NMS of each image of a batch: on an accelerator for the whole batch at once, and waiting for it only once.

The block version of :mod:`.nms` is the faster one on a CPU. It launches hundreds of kernels an image, and reads their
results back dozens of times, which a GPU would idle through. B images, N boxes in each, K of them kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .nms import nms, pairwise_overlaps

# An image's matrix of all pairs takes N * N bytes, twice while it is used: 32 MiB for this many boxes.
MAX_DENSE_BOXES = 4096
# Pairs of boxes compared at once, in any number of images: 13 bytes each meanwhile, 208 MiB.
PAIRS_AT_ONCE = 2**24
# In heaps of random boxes, chains are up to a dozen long. A round costs little, and a second wait much.
FIRST_ROUNDS = 16


def true_indices(mask: Tensor) -> list[Tensor]:
    """Indices of what is true in each row, in their order: (B, N) bool -> B x (K,) int64. One wait for all rows."""
    order = mask.byte().argsort(dim=1, descending=True, stable=True)
    return [row[:count] for row, count in zip(order, mask.sum(1).tolist())]


def nms_batch(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor,
    iou_threshold: float,
    offset: int = 0,
    labels: Tensor | None = None,
) -> list[Tensor]:
    """Run :func:`.nms.nms` on the valid boxes of each image, by the version that suits device and number of boxes.

    Args:
        boxes: (B, N, 4), xyxy in pixels.
        scores: (B, N).
        valid: (B, N) bool, which boxes take part.
        iou_threshold: Boxes that overlap by more than this are suppressed.
        offset: 0 or 1, as in :func:`.nms.nms`.
        labels: (B, N) classes, or None for one class.

    Returns:
        B x (K,) int64, the indices of the kept boxes of each image, best first.
    """
    if torch.compiler.is_compiling():
        return _nms_batch_op(boxes, scores, valid, iou_threshold, offset, labels)
    if boxes.device.type != 'cpu' and boxes.shape[1] <= MAX_DENSE_BOXES:
        return dense_nms(boxes, scores, valid, iou_threshold, offset, labels)
    kept = []
    for i, index in enumerate(true_indices(valid)):
        own_labels = None if labels is None else labels[i, index]
        kept.append(index[nms(boxes[i, index], scores[i, index], iou_threshold, offset, own_labels)])
    return kept


# Its loops depend on values, so `torch.export` and `torch.compile` take it as one opaque op.
@torch.library.custom_op(
    'yolov7_simple::nms_batch',
    mutates_args=(),
    schema='(Tensor boxes, Tensor scores, Tensor valid, float iou_threshold, int offset, Tensor? labels) -> Tensor[]',
)
def _nms_batch_op(*arguments: Any) -> list[Tensor]:
    return [index.clone() for index in nms_batch(*arguments)]  # what an op returns must share no memory


@_nms_batch_op.register_fake
def _describe_nms_batch(boxes: Tensor, scores: Tensor, *_: Any) -> list[Tensor]:
    size = torch.library.get_ctx().new_dynamic_size
    return [scores.new_empty(size(), dtype=torch.int64) for _ in range(len(boxes))]


def dense_nms(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor,
    iou_threshold: float,
    offset: int = 0,
    labels: Tensor | None = None,
) -> list[Tensor]:
    """Run NMS on a matrix of all pairs: arguments and result are those of :func:`nms_batch`.

    "Kept unless a better kept box overlaps" is iterated to its fixed point, as in :func:`.nms.nms`, but for all boxes.
    A box is settled one round after the better boxes that overlap it, so the longest chain of such boxes bounds the
    number of rounds. What is read back tells whether the last round still changed a box; only then more rounds follow,
    each time twice as many, and another wait.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)).float()
    labels = None if labels is None else labels.gather(1, order)
    num_images, num_boxes = order.shape
    suppressed_by = valid.new_empty(num_images, num_boxes, num_boxes)  # column suppresses row, if it is kept
    step = max(1, PAIRS_AT_ONCE // max(1, num_boxes**2))
    for start in range(0, num_images, step):
        images = slice(start, start + step)
        overlaps = pairwise_overlaps(boxes[images], boxes[images], iou_threshold, offset)
        if labels is not None:
            overlaps &= labels[images].unsqueeze(2) == labels[images].unsqueeze(1)
        suppressed_by[images] = overlaps.tril_(-1)
    alive = valid.gather(1, order)

    keep, rounds, changed = alive, FIRST_ROUNDS, True
    while changed:
        for _ in range(rounds):
            # `>` is "and not" in one kernel.
            previous, keep = keep, alive > (suppressed_by & keep.unsqueeze(1)).any(2)
        *counts, changed = torch.cat([keep.sum(1), (keep != previous).sum().unsqueeze(0)]).tolist()
        rounds *= 2
    index = order.gather(1, keep.byte().argsort(dim=1, descending=True, stable=True))
    return [row[:count] for row, count in zip(index, counts)]
