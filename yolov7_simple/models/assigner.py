"""SimOTA for a whole batch at once: decoded boxes, ground truth -> which cell learns which box.

B images, P priors (cells), G ground-truth boxes padded to the longest image, C classes, T priors of one tile, L levels.

SimOTA has a cost for every pair of box and cell: 20 million for 16 images with 150 boxes each. All of them at once
would take gigabytes, so the cells are walked in tiles, and a tile keeps only the best few cells of each box. Nothing
here waits for the device: there is no loop over images or boxes, no value is read back, and no shape depends on values.
Only on a CPU, where this is free, are cells far from all boxes left out. Boxes are four planes of coordinates, and a
point is inside a box where its distance to the nearest side is positive: such float arithmetic is several times faster
than combining bools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from ..utils.options import AtLeast0, Count, checked_options
from .boxes import gather_cells

Planes = Sequence[Tensor]
IOU_EPS = 1e-8
MIN_COST = 1e-6
# Padding is put here, and exploded predictions are clamped to it: far from every cell, yet finite.
FAR = 1e8
CPU_TILE = 2**20
ACCELERATOR_TILE = 2**24


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


def iou_of_planes(boxes_a: Planes, boxes_b: Planes) -> Tensor:
    """IoU of xyxy boxes given as four planes that broadcast, e.g. 4 x (B, G, 1) and 4 x (B, 1, T) -> (B, G, T)."""
    ax1, ay1, ax2, ay2 = boxes_a
    bx1, by1, bx2, by2 = boxes_b
    inter = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    inter.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0))
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(inter)
    return inter.div_(union.clamp_(min=1e-6))


def inside_of_planes(points: Planes, boxes: Planes, reach: Planes | None = None) -> Tensor:
    """Distance to the nearest side, positive strictly inside: 2 x (..., T) points, 4 x (B, G, 1) boxes -> (B, G, T).

    With ``reach``, 2 x (..., T), it is instead the distance of the centres of ``boxes`` to the sides of a box that
    extends by ``reach`` around each point.
    """
    x, y = points
    x1, y1, x2, y2 = boxes
    if reach is None:
        sides = (x - x1, x2 - x, y - y1, y2 - y)
    else:
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        sides = (x + reach[0] - center_x, center_x - (x - reach[0]), y + reach[1] - center_y, center_y - (y - reach[1]))
    nearest = torch.minimum(sides[0], sides[1])
    return torch.minimum(nearest, torch.minimum(sides[2], sides[3], out=sides[2]), out=nearest)


def reads_freely(tensor: Tensor) -> bool:
    """Whether reading a value back, and shapes that depend on it, cost nothing."""
    return tensor.device.type == 'cpu' and not torch.compiler.is_compiling()


def first_true(mask: Tensor, most: int, least: int = 0) -> Tensor:
    """Indices of the true cells of each image, then of others: (B, P) -> (B, K), all different.

    K is ``most``; where reading back is free it is the largest number in an image, at least ``least``. K is never above
    P.
    """
    count = max(int(mask.sum(1).amax()), least) if reads_freely(mask) else most
    return mask.byte().sort(dim=1, descending=True, stable=True)[1][:, :count]


class _Cells(NamedTuple):
    """Predictions and priors of some cells, as planes.

    Args:
        boxes: (B, 4, P).
        levels: Class logits, L x (B, C, P_l).
        obj_logits: (B, P).
        priors: (4, P), or (B, 4, P).
    """

    boxes: Tensor
    levels: Sequence[Tensor]
    obj_logits: Tensor
    priors: Tensor

    def tiles(self, chosen: Sequence[Tensor], width: int) -> Iterator[tuple[Tensor, _Cells]]:
        """Walk cells chosen by their indices in each level, L x (B, K_l): yields T indices (B, T), and these cells."""
        starts = accumulate((level.shape[2] for level in self.levels), initial=0)
        firsts = list(accumulate((index.shape[1] for index in chosen), initial=0))
        parts = list(zip(self.levels, starts, firsts, chosen))
        for begin in range(0, firsts[-1], width):
            indices, logits = [], []
            for level, start, first, index in parts:
                index = index[:, max(begin - first, 0) : max(begin + width - first, 0)]
                if index.shape[1]:
                    indices.append(index + start)
                    logits.append(level.gather(2, index.unsqueeze(1).expand(-1, level.shape[1], -1)))
            index, logits = (rest[0] if len(rest) == 1 else torch.cat(rest, -1) for rest in (indices, logits))
            yield index, self.take(index, logits)

    def take(self, index: Tensor, logits: Tensor | None = None) -> _Cells:
        """Other cells for each image, by their index (B, K); ``logits``, (B, C, K), where they are known."""
        logits = gather_cells(self.levels, index) if logits is None else logits
        boxes = self.boxes.gather(2, index.unsqueeze(1).expand(-1, 4, -1))
        return _Cells(boxes, [logits], self.obj_logits.gather(1, index), self.priors[:, index].transpose(0, 1))


@TASK_UTILS.register_module()
@checked_options
class BatchSimOTAAssigner:
    """SimOTA, the whole batch at once, in memory that does not grow with boxes x cells x classes.

    The result follows the definition of RT-ODLab and YOLOX. A cell is a candidate where its centre is strictly inside
    any box or strictly within ``center_radius`` strides of any box's centre. A pair costs the binary cross-entropy
    between one-hot class and sqrt(sigmoid(class) * sigmoid(objectness)), summed over classes, plus ``iou_weight`` *
    -log(IoU). For each box, cells inside both the box and its centre square come before all others. A box takes its
    cheapest cells, as many as its ``candidate_topk`` best IoUs sum to, at least one. A cell that several boxes took
    goes to the box that is cheapest for it, among all boxes.

    Args:
        center_radius: Half side of the centre square, in strides.
        candidate_topk: Number of best IoUs that are summed; also the most cells that a box can take.
        iou_weight: Weight of the IoU cost.
        cls_weight: Weight of the class cost.
        tile_size: Pairs (box, cell) or logits in one tile, of about 40 bytes each. Larger saves kernel launches, with
            the same result. None is 2^20 on a CPU, which fits its caches, and 2^24 (640 MiB) elsewhere.
    """

    def __init__(
        self,
        center_radius: AtLeast0 = 2.5,
        candidate_topk: Count = 10,
        iou_weight: AtLeast0 = 3.0,
        cls_weight: AtLeast0 = 1.0,
        tile_size: Count | None = None,
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
        cls_logits: Tensor | Sequence[Tensor],
        obj_logits: Tensor,
        priors: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_mask: Tensor,
    ) -> Assignment:
        """Match cells and boxes, in float32 whatever the dtype of the inputs and with or without autocast.

        Args:
            pred_bboxes: (B, P, 4) decoded boxes, xyxy in pixels.
            cls_logits: (B, P, C), or a list of the levels, each (B, P_l, C), which need not be joined.
            obj_logits: (B, P).
            priors: (P, 4): x and y of the cell's centre, stride in x and y, in pixels.
            gt_bboxes: (B, G, 4) xyxy in pixels, padded with anything.
            gt_labels: (B, G) int64, padded with any class.
            gt_mask: (B, G) bool, False where padded.
        """
        levels = [cls_logits] if isinstance(cls_logits, Tensor) else cls_logits
        with torch.autocast(pred_bboxes.device.type, enabled=False):
            # Clamped, so that an exploded prediction has an IoU of 0 and not NaN.
            pred_bboxes = pred_bboxes.float().nan_to_num().clamp(-FAR, FAR)
            gt_bboxes = gt_bboxes.float().masked_fill(~gt_mask.unsqueeze(-1), FAR)
            cells = _Cells(pred_bboxes.mT, [level.mT for level in levels], obj_logits, priors.float().mT)
            return self._assign(cells, gt_bboxes, gt_labels, gt_mask)

    @torch.no_grad()
    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
    ) -> AssignResult:
        """Match one image: the interface that mmdet's heads call, such as YOLOXHead.

        Args:
            pred_instances: ``bboxes`` (P, 4), ``priors`` (P, 4), and ``scores`` (P, C), sqrt(class score *
                objectness).
            gt_instances: ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Not used.
        """
        labels, num_cells = gt_instances.labels.long(), len(pred_instances.priors)
        if not len(labels) or not num_cells:
            nothing = labels.new_zeros(num_cells)
            return AssignResult(len(labels), nothing, nothing.float(), nothing - 1)
        # With an infinite objectness logit, sqrt(sigmoid(class) * sigmoid(objectness)) gives these scores back.
        cls_logits = pred_instances.scores.float().square().logit()
        obj_logits = torch.full_like(cls_logits[:, 0], torch.inf)
        found = self(
            pred_instances.bboxes[None],
            cls_logits[None],
            obj_logits[None],
            pred_instances.priors,
            gt_instances.bboxes[None],
            labels[None],
            torch.ones_like(labels, dtype=torch.bool)[None],
        )
        matched, gt_index = found.matched[0], found.gt_index[0]
        cell_labels = torch.where(matched, labels[gt_index], -1)
        return AssignResult(len(labels), torch.where(matched, gt_index + 1, 0), found.iou[0], cell_labels)

    def _assign(self, cells: _Cells, gt_bboxes: Tensor, gt_labels: Tensor, gt_mask: Tensor) -> Assignment:
        num_images, num_gts = gt_labels.shape
        gt_planes = gt_bboxes.unsqueeze(-1).unbind(2)  # 4 x (B, G, 1)
        # Padding overlaps no cell; an eps of 0 makes its cost infinite.
        iou_eps = gt_mask.unsqueeze(-1) * IOU_EPS  # (B, G, 1)
        level_priors = cells.priors.split([level.shape[2] for level in cells.levels], 1)
        chosen = [self._choose_cells(priors, gt_planes) for priors in level_priors]  # L x (B, K_l)
        tile = self._tile_width(num_images, max(num_gts, cells.levels[0].shape[1]), cells.boxes.device)

        top_ious, top_ranks, top_cells = [], [], []
        for index, part in cells.tiles(chosen, tile):
            rank, iou = self._rank_pairs(part, gt_planes, gt_labels, iou_eps)  # (B, G, T)
            topk = min(self.candidate_topk, rank.shape[-1])
            values, best = rank.topk(topk, -1, largest=False)
            top_ious.append(iou.topk(topk, -1)[0])
            top_ranks.append(values)
            top_cells.append(index.gather(1, best.flatten(1)).view_as(best))

        # Number of cells that each box takes, and these cells, cheapest first: (B, G, K).
        top_ious, top_ranks = torch.cat(top_ious, -1), torch.cat(top_ranks, -1)
        topk = min(self.candidate_topk, top_ranks.shape[-1])
        dynamic_k = top_ious.topk(topk, -1)[0].sum(-1, keepdim=True).int().clamp_(min=1)  # (B, G, 1)
        ranks, order = top_ranks.topk(topk, -1, largest=False)
        taken = torch.arange(topk, device=ranks.device) < dynamic_k
        taken &= ranks.isfinite()
        taken_cells = torch.cat(top_cells, -1).gather(-1, order).flatten(1)  # (B, G * K)

        # Summing works where only one box took the cell; the others are replaced below.
        one = taken.flatten(1).long()
        gt_ids = torch.arange(num_gts, device=one.device).unsqueeze(-1).expand(-1, topk).flatten()
        zeros = one.new_zeros(cells.obj_logits.shape)
        times_taken = zeros.scatter_add(1, taken_cells, one)
        gt_index = zeros.scatter_add(1, taken_cells, one * gt_ids)

        # A cell that several boxes took goes to the cheapest of all boxes. Two boxes at least share such a cell.
        contested = times_taken > 1
        for index in first_true(contested, most=num_gts * topk // 2).split(tile, 1):
            rank, _ = self._rank_pairs(cells.take(index), gt_planes, gt_labels, iou_eps)
            winner = torch.where(contested.gather(1, index), rank.argmin(1), gt_index.gather(1, index))
            gt_index = gt_index.scatter(1, index, winner)

        matched = times_taken > 0
        own_gts = gt_bboxes.gather(1, gt_index.unsqueeze(-1).expand(-1, -1, 4))  # (B, P, 4)
        iou = iou_of_planes(own_gts.unbind(-1), cells.boxes.unbind(1))
        return Assignment(matched, gt_index, torch.where(matched, iou, 0.0))

    def _tile_width(self, num_images: int, num_rows: int, device: torch.device) -> int:
        """Cells in one tile, where each has ``num_rows`` boxes or classes."""
        size = self.tile_size or (CPU_TILE if device.type == 'cpu' else ACCELERATOR_TILE)
        width = size // (num_images * num_rows)
        # topk is fastest on at least 64 times its k.
        return max(width, min(4 * width, 64 * self.candidate_topk), self.candidate_topk)

    def _choose_cells(self, priors: Tensor, gt_planes: Planes) -> Tensor:
        """Choose all candidates, and others: (4, P) priors and 4 x (B, G, 1) boxes -> (B, K) indices of cells.

        On a CPU few boxes leave most cells out. Elsewhere all cells are chosen, since their number has to be known.
        """
        num_images, num_cells = len(gt_planes[0]), priors.shape[1]
        everything = torch.arange(num_cells, device=priors.device).expand(num_images, -1)
        if not reads_freely(priors):
            return everything
        # A cell is inside a box where its column and its row are, and a grid has few of these.
        x, y, stride_x, stride_y = priors
        x1, y1, x2, y2 = gt_planes
        columns, column_of_cell = self._inside_on_axis(x, stride_x, x1, x2)
        rows, row_of_cell = self._inside_on_axis(y, stride_y, y1, y2)
        if columns.shape[2] * rows.shape[2] > 4 * num_cells:  # no grid
            return everything
        possible = (rows.mT @ columns)[:, row_of_cell, column_of_cell] > 0
        return first_true(possible, least=self.candidate_topk, most=num_cells)

    def _inside_on_axis(self, centers: Tensor, strides: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """On one axis, which of the U coordinates of P cells are inside the boxes, then the centre squares.

        Returns:
            (B, 2 * G, U), 1 where inside and 0 elsewhere, and the coordinate of each cell, (P,).
        """
        values, value_of_cell = centers.unique(return_inverse=True)
        middle, reach = (low + high) / 2, self.center_radius * strides.amax()
        inside = [(values > low) & (values < high), (values + reach > middle) & (middle > values - reach)]
        return torch.cat(inside, 1).float(), value_of_cell

    def _rank_pairs(
        self, cells: _Cells, gt_planes: Planes, gt_labels: Tensor, iou_eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rank of all pairs, lowest first, and IoUs, both (B, G, T).

        Rank and IoU are infinity and 0 where the cell is no candidate or the box is padding, whose ``iou_eps``
        (B, G, 1) is 0. Pairs inside both box and centre square come first; within each group the cost decides. The
        definition adds 100000 to the cost of the other pairs, which float32 then rounds to 1/128, so any of several
        cells may be taken. Here the first group has the negative reciprocal of the cost, which rises with the cost:
        both groups keep all their digits, and the cheapest cell is taken whatever the batch and the tile.
        """
        iou = iou_of_planes(gt_planes, cells.boxes.unsqueeze(1).unbind(2))
        cost = self._class_cost(cells.levels[0], cells.obj_logits, gt_labels)
        cost = cost.mul_(self.cls_weight).sub_((iou + iou_eps).log_().mul_(self.iou_weight)).clamp_(min=MIN_COST)

        x, y, stride_x, stride_y = cells.priors.unsqueeze(2).unbind(1)  # (B, 1, T) each
        in_box = inside_of_planes((x, y), gt_planes)
        in_center = inside_of_planes(
            (x, y), gt_planes, reach=(self.center_radius * stride_x, self.center_radius * stride_y)
        )
        candidate = torch.maximum(in_box, in_center).amax(1, keepdim=True) > 0  # (B, 1, T)
        in_both = torch.minimum(in_box, in_center, out=in_box) > 0
        rank = torch.where(in_both, cost.reciprocal().neg_(), cost)
        return rank.add_(torch.where(candidate, 0.0, torch.inf)), iou.mul_(candidate)

    @staticmethod
    def _class_cost(cls_logits: Tensor, obj_logits: Tensor, gt_labels: Tensor) -> Tensor:
        """One-hot cross-entropy summed over classes: (B, C, T), (B, T), (B, G) -> (B, G, T).

        For scores p and label y it is sum_c -log(1 - p_c) + log(1 - p_y) - log(p_y). The sum is the same for all boxes,
        so no tensor of boxes x classes is needed. Logarithms are clamped at -100, as in PyTorch's BCE.
        """
        score = cls_logits.float().sigmoid().mul_(obj_logits.float().sigmoid().unsqueeze(1)).sqrt_()  # (B, C, T)
        image = torch.arange(len(score), device=score.device).unsqueeze(1)
        log_score = score[image, gt_labels].log_().clamp_(min=-100)  # (B, G, T)
        log_rest = score.neg_().log1p_().clamp_(min=-100)  # (B, C, T)
        return log_rest[image, gt_labels].sub_(log_score).sub_(log_rest.sum(1, keepdim=True))
