"""SimOTA for a whole batch at once: decoded boxes + ground truth -> which cell learns which box.

B images, P priors (cells), G ground-truth boxes padded to the longest image, C classes, T priors of one tile.

The definition has a cost for every (box, cell) of an image, 20 million at 16 images of 150 boxes. Written down at
once they would be gigabytes, so the cells are walked in tiles that stay in cache; of each tile only the best few per
box and the best box per cell are kept. Nothing in here waits for the device: no loop over images or boxes, no number
read back, no shape that depends on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor

# Cost of a cell outside of the box or of its centre square. Float32 sums around it are good to 1/128.
OUTSIDE_COST = 100000.0
IOU_EPS = 1e-8
MAX_COORDINATE = 1e8


class Assignment(NamedTuple):
    """What each cell has to learn.

    Args:
        matched: (B, P) bool, the cells that learn a box.
        gt_index: (B, P) int64, which box; 0 where there is none.
        iou: (B, P) float32, IoU of the cell's predicted box and its ground truth; 0 where there is none.
    """

    matched: Tensor
    gt_index: Tensor
    iou: Tensor


Planes = Sequence[Tensor]


def iou_of_planes(boxes_a: Planes, boxes_b: Planes) -> Tensor:
    """IoU of xyxy boxes given as four planes that broadcast, e.g. 4 x (B, G, 1) and 4 x (B, 1, T) -> (B, G, T)."""
    ax1, ay1, ax2, ay2 = boxes_a
    bx1, by1, bx2, by2 = boxes_b
    inter = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    inter.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0))
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(inter)
    return inter.div_(union.clamp_(min=1e-6))


def best_of(values: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The ``k`` best along the last axis, like ``topk``."""
    return values.topk(min(k, values.shape[-1]), -1, largest=largest)


@TASK_UTILS.register_module()
class BatchSimOTAAssigner:
    """SimOTA, the whole batch at once, in memory that does not grow with boxes x cells x classes.

    The result is the definition of RT-ODLab and YOLOX: a cell is a candidate where its centre is strictly inside any
    box or strictly within ``center_radius`` strides of any box's centre. A pair costs the binary cross-entropy
    between one-hot class and sqrt(sigmoid(class) * sigmoid(objectness)), summed over classes, plus ``iou_weight`` *
    -log(IoU), plus 100000 where the cell is not inside both that box and its centre square. A box takes as many of its
    cheapest cells as its ``candidate_topk`` best IoUs sum to (at least one); a cell taken twice goes to the cheapest
    of all boxes.

    Args:
        center_radius: Half side of the centre square, in strides.
        candidate_topk: How many IoUs are summed, and the most cells that a box can take.
        iou_weight: Weight of the IoU cost.
        cls_weight: Weight of the class cost.
        tile_size: Pairs (box, cell) or logits looked at at once. Smaller saves memory, larger saves kernel launches;
            the result is the same.
    """

    def __init__(
        self,
        center_radius: float = 2.5,
        candidate_topk: int = 10,
        iou_weight: float = 3.0,
        cls_weight: float = 1.0,
        tile_size: int = 2**18,
    ) -> None:
        self.center_radius = center_radius
        self.candidate_topk = candidate_topk
        self.iou_weight = iou_weight
        self.cls_weight = cls_weight
        self.tile_size = tile_size

    @torch.no_grad()
    def __call__(
        self,
        pred_bboxes: Tensor,
        cls_logits: Tensor,
        obj_logits: Tensor,
        priors: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_mask: Tensor,
    ) -> Assignment:
        """Match cells and boxes. Any float dtype, with or without autocast: all is computed in float32.

        Args:
            pred_bboxes: (B, P, 4) decoded boxes, xyxy in pixels.
            cls_logits: (B, P, C).
            obj_logits: (B, P).
            priors: (P, 4): x and y of the cell's centre, stride in x and y, in pixels.
            gt_bboxes: (B, G, 4) xyxy in pixels, padded with anything.
            gt_labels: (B, G) int64, padded with any class.
            gt_mask: (B, G) bool, False where padded.
        """
        with torch.autocast(pred_bboxes.device.type, enabled=False):
            return self._assign(
                pred_bboxes.float(), cls_logits, obj_logits, priors.float(), gt_bboxes.float(), gt_labels, gt_mask
            )

    def _assign(self, pred_bboxes, cls_logits, obj_logits, priors, gt_bboxes, gt_labels, gt_mask) -> Assignment:
        num_images, num_priors, num_classes = cls_logits.shape
        num_gts = gt_bboxes.shape[1]
        if num_gts == 0:
            zeros = pred_bboxes.new_zeros(num_images, num_priors)
            return Assignment(zeros.bool(), zeros.long(), zeros)

        cls_planes = cls_logits.mT  # (B, C, P), which is how convolutions lay them out
        # Finite, so that an exploded prediction has no IoU instead of a NaN.
        pred_bboxes = pred_bboxes.nan_to_num().clamp(-MAX_COORDINATE, MAX_COORDINATE)
        pred_planes = pred_bboxes.mT.unsqueeze(1)  # (B, 1, 4, P)
        gt_planes = gt_bboxes.unsqueeze(-1).unbind(2)  # 4 x (B, G, 1)

        top_ious, top_costs, top_cells, best_gts = [], [], [], []
        tile = max(self.candidate_topk, self.tile_size // (num_images * max(num_gts, num_classes)))
        for start in range(0, num_priors, tile):
            part = slice(start, min(start + tile, num_priors))
            iou = iou_of_planes(gt_planes, pred_planes[..., part].unbind(2))  # (B, G, T)
            in_both, candidate = self._geometry(priors[part], gt_planes, gt_mask)  # (B, G, T), (B, 1, T)
            cost = self._class_cost(cls_planes[..., part], obj_logits[:, part], gt_labels)  # (B, G, T)
            cost = cost.mul_(self.cls_weight).sub_((iou + IOU_EPS).log_().mul_(self.iou_weight))
            cost.add_(torch.where(in_both, 0.0, OUTSIDE_COST))
            cost.masked_fill_(~(candidate & gt_mask.unsqueeze(-1)), torch.inf)

            top_ious.append(best_of(iou.mul_(candidate), self.candidate_topk, largest=True)[0])
            values, cells = best_of(cost, self.candidate_topk, largest=False)
            top_costs.append(values)
            top_cells.append(cells + start)
            best_gts.append(cost.argmin(1))

        # How many cells each box takes, and which: (B, G, K), cheapest first.
        sum_iou = best_of(torch.cat(top_ious, -1), self.candidate_topk, largest=True)[0].sum(-1, keepdim=True)
        dynamic_k = sum_iou.int().clamp_(min=1)  # (B, G, 1)
        costs, order = best_of(torch.cat(top_costs, -1), self.candidate_topk, largest=False)
        cells = torch.cat(top_cells, -1).gather(-1, order)
        taken = (torch.arange(costs.shape[-1], device=costs.device) < dynamic_k) & costs.isfinite()

        # A cell that one box took is that box's: the sum of one index is the index.
        flat_cells, flat_taken = cells.flatten(1), taken.flatten(1).long()  # (B, G * K)
        gt_ids = torch.arange(num_gts, device=costs.device)[:, None].expand_as(taken).flatten(1)
        zeros = flat_cells.new_zeros(num_images, num_priors)
        times_taken = zeros.scatter_add(1, flat_cells, flat_taken)
        gt_index = zeros.scatter_add(1, flat_cells, flat_taken * gt_ids)
        gt_index = torch.where(times_taken > 1, torch.cat(best_gts, -1), gt_index)
        matched = times_taken > 0
        own_gts = gt_bboxes.gather(1, gt_index.unsqueeze(-1).expand(-1, -1, 4))  # (B, P, 4)
        return Assignment(matched, gt_index, iou_of_planes(own_gts.unbind(-1), pred_bboxes.unbind(-1)) * matched)

    def _geometry(self, priors: Tensor, gt_planes: Planes, gt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells are inside both the box and its centre square (B, G, T), and which in any of them (B, 1, T)."""
        x, y, stride_x, stride_y = priors.unbind(1)  # (T,) each
        x1, y1, x2, y2 = gt_planes  # (B, G, 1) each
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        reach_x, reach_y = self.center_radius * stride_x, self.center_radius * stride_y
        in_box = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        in_center = (x + reach_x > center_x) & (x - reach_x < center_x)
        in_center &= (y + reach_y > center_y) & (y - reach_y < center_y)
        candidate = ((in_box | in_center) & gt_mask.unsqueeze(-1)).any(1, keepdim=True)
        return in_box.logical_and_(in_center), candidate

    @staticmethod
    def _class_cost(cls_logits: Tensor, obj_logits: Tensor, gt_labels: Tensor) -> Tensor:
        """One-hot cross-entropy summed over classes: (B, C, T), (B, T), (B, G) -> (B, G, T).

        For scores p and label y it is sum_c -log(1 - p_c), which no box changes, + log(1 - p_y) - log(p_y): there is
        no need for a tensor of boxes x classes. Logarithms end at -100, as in PyTorch's.
        """
        score = cls_logits.float().sigmoid().mul_(obj_logits.float().sigmoid().unsqueeze(1)).sqrt_()  # (B, C, T)
        image = torch.arange(len(score), device=score.device).unsqueeze(1)
        log_score = score[image, gt_labels].log_().clamp_(min=-100)  # (B, G, T)
        log_rest = score.neg_().log1p_().clamp_(min=-100)  # (B, C, T)
        return log_rest[image, gt_labels].sub_(log_score).sub_(log_rest.sum(1, keepdim=True))
