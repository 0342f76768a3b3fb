"""Boxes and cells of a batch: decode, encode, flatten, pad and gather.

B images, P priors (cells of all levels, stride 8 first), L levels, G ground-truth boxes padded to the longest image,
K gathered ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def decode_boxes(priors: Tensor, bbox_preds: Tensor) -> Tensor:
    """Turn raw box numbers into boxes, in training, inference and export alike.

    Args:
        priors: (..., P, 4): x and y of the cell's centre, stride in x and y, in pixels.
        bbox_preds: (..., P, 4): offset of the centre in strides, logarithm of the size in strides.

    Returns:
        (..., P, 4) boxes, xyxy in pixels.
    """
    points, strides = priors[..., :2], priors[..., 2:]
    centers = points + bbox_preds[..., :2] * strides
    half_sizes = bbox_preds[..., 2:].exp() * strides / 2
    return torch.cat([centers - half_sizes, centers + half_sizes], -1)


def encode_boxes(priors: Tensor, bboxes: Tensor) -> Tensor:
    """Invert :func:`decode_boxes`: (..., 4) priors and (..., 4) boxes, xyxy in pixels -> (..., 4)."""
    points, strides = priors[..., :2], priors[..., 2:]
    centers = (bboxes[..., :2] + bboxes[..., 2:]) / 2
    sizes = bboxes[..., 2:] - bboxes[..., :2]
    return torch.cat([(centers - points) / strides, (sizes / strides).clamp(min=1e-8).log()], -1)


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Join the levels, stride 8 first: L x (B, N, H, W) -> (B, P, N), a transposed view."""
    return torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)


def smaller(a: int, b: int | Tensor) -> int | Tensor:
    """``min`` of two sizes; while an export traces the model, one of them can be a tensor."""
    return torch.minimum(torch.tensor(a), b) if isinstance(b, Tensor) else min(a, b)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows by their indices in each image: (B, P, N) and (B, K) -> (B, K, N)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def pad_boxes(instances: Sequence[InstanceData]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad each image to the batch's largest number of boxes, at least 1, so that every loss stays in the graph.

    Returns:
        Boxes (B, G, 4), labels (B, G) and a mask (B, G), False where padded.
    """
    bboxes = pad_sequence([instance.bboxes for instance in instances], batch_first=True)
    labels = pad_sequence([instance.labels.long() for instance in instances], batch_first=True, padding_value=-1)
    if bboxes.shape[1] == 0:
        bboxes, labels = bboxes.new_zeros(len(bboxes), 1, 4), labels.new_full((len(labels), 1), -1)
    return bboxes, labels.clamp(min=0), labels >= 0


def max_iof(boxes: Tensor, regions: Sequence[Tensor]) -> Tensor:
    """Largest share of each box's area in one region: (B, P, 4), and (I, 4) of each image, xyxy -> (B, P)."""
    regions = pad_sequence(regions, batch_first=True)  # (B, I, 4); padding has no area, and so no share of any box
    if regions.shape[1] == 0:
        return boxes.new_zeros(boxes.shape[:2])
    regions, sizes = regions.unsqueeze(1), boxes[..., 2:] - boxes[..., :2]
    overlap = torch.minimum(boxes[..., None, 2:], regions[..., 2:]) - torch.maximum(
        boxes[..., None, :2], regions[..., :2]
    )
    return overlap.clamp_(min=0).prod(-1).amax(-1) / sizes.prod(-1).clamp_(min=1e-6)


def gather_cells(levels: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Gather cells by their index in the joined levels, without joining them: L x (B, N, P_l), (B, K) -> (B, N, K)."""
    gathered = None
    start = 0
    for level in levels:
        index = (cells - start).clamp(0, level.shape[2] - 1)
        values = level.gather(2, index.unsqueeze(1).expand(-1, level.shape[1], -1))
        # Of earlier levels are the cells before the start.
        gathered = values if gathered is None else torch.where((cells < start).unsqueeze(1), gathered, values)
        start += level.shape[2]
    return gathered
