"""YOLOv7SimpleHead: p3, p4, p5 -> raw predictions -> losses or detections.

B images, P priors (cells of all levels, stride 8 first), G ground-truth boxes padded to the longest image, C classes,
K slots for matched cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_type_hints

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import reduce_mean
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..utils.options import Count, OptionError, Share, check_options, checked_options
from .boxes import decode_boxes, encode_boxes, flatten_levels, gather_cells, gather_rows, max_iof, pad_boxes, smaller
from .layers import CONV_INIT_CFG, conv3x3_chain, conv_factory
from .prediction import TestOptions

# Losses are summed, since the head divides by the number of matched cells on all ranks.
DEFAULT_LOSS_CLS = {'type': 'CrossEntropyLoss', 'use_sigmoid': True, 'reduction': 'sum', 'loss_weight': 1.0}
DEFAULT_LOSS_OBJ = {'type': 'CrossEntropyLoss', 'use_sigmoid': True, 'reduction': 'sum', 'loss_weight': 1.0}
DEFAULT_LOSS_BBOX = {'type': 'NoSyncGIoULoss', 'reduction': 'sum', 'loss_weight': 5.0}
DEFAULT_LOSS_L1 = {'type': 'L1Loss', 'reduction': 'sum', 'loss_weight': 1.0}
PRIOR_PROBABILITY = 0.01
# What train_cfg and test_cfg may hold: type and default, None where it is absent.
TRAIN_CFG = {'assigner': (dict, None)}
TEST_CFG = {name: (hint, None) for name, hint in get_type_hints(TestOptions, include_extras=True).items()}


@MODELS.register_module()
@checked_options
class YOLOv7SimpleHead(BaseDenseHead):
    """Decoupled head without anchors, nothing shared between levels; trained by SimOTA.

    Keeps the contract of mmdet's YOLOXHead: ``forward`` gives the lists ``cls_scores, bbox_preds, objectnesses``, and
    ``use_l1`` turns the L1 loss of the last stage on. Source: RT-ODLab (MIT), ``yolov7``.

    Args:
        num_classes: Number of classes, at least 1.
        in_channels: Channels of every level.
        feat_channels: Width of the towers, at least ``num_classes`` in the class tower and 64 in the box tower; None
            is ``in_channels``.
        stacked_convs: 3x3 convolutions in each tower.
        strides: Stride of each level in pixels, finest first.
        norm_cfg: Norm layer; None is BatchNorm with eps 1e-3 and momentum 0.03.
        act_cfg: Activation; None is SiLU.
        loss_cls: Class loss, over matched cells; None is BCE, weight 1.
        loss_bbox: Box loss, over matched cells; None is GIoU, weight 5.
        loss_obj: Objectness loss, over all cells; None is BCE, weight 1.
        loss_l1: Loss between predicted and encoded box numbers, in the last stage; None is L1, weight 1.
        use_l1: Whether the L1 loss is on from the start.
        ignore_iof_thr: An unmatched cell is left out of the objectness loss if more than this share of its predicted
            box lies in an ignored region; None: ignored regions have no effect, as in the original.
        train_cfg: ``dict(assigner=...)``; None is :class:`BatchSimOTAAssigner` with its defaults.
        test_cfg: Any of :class:`TestOptions`.
        init_cfg: Initialisation; None is PyTorch's default.

    Raises:
        ValueError: An option that is unknown, or of another type or range.
    """

    def __init__(
        self,
        num_classes: Count,
        in_channels: Count,
        feat_channels: Count | None = None,
        stacked_convs: Count = 2,
        strides: Sequence[Count] = (8, 16, 32),
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_obj: dict | None = None,
        loss_l1: dict | None = None,
        use_l1: bool = False,
        ignore_iof_thr: Share | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=CONV_INIT_CFG if init_cfg is None else init_cfg)
        check_options('YOLOv7SimpleHead: train_cfg', train_cfg or {}, TRAIN_CFG)
        check_options('YOLOv7SimpleHead: test_cfg', test_cfg or {}, TEST_CFG)
        self.num_classes = num_classes
        self.cls_out_channels = num_classes  # read by mmdet's tools
        self.in_channels = in_channels
        self.strides = tuple(strides)
        self.use_l1 = use_l1
        self.ignore_iof_thr = ignore_iof_thr
        self.train_cfg = train_cfg
        self.test_cfg = ConfigDict(test_cfg or {})
        TestOptions.from_cfg(self.test_cfg)
        self.loss_cls = MODELS.build(loss_cls or DEFAULT_LOSS_CLS)
        self.loss_bbox = MODELS.build(loss_bbox or DEFAULT_LOSS_BBOX)
        self.loss_obj = MODELS.build(loss_obj or DEFAULT_LOSS_OBJ)
        self.loss_l1 = MODELS.build(loss_l1 or DEFAULT_LOSS_L1)
        self.assigner = TASK_UTILS.build((train_cfg or {}).get('assigner') or {'type': 'BatchSimOTAAssigner'})
        if not callable(self.assigner):
            raise OptionError(
                'YOLOv7SimpleHead: train_cfg.assigner must be a BatchSimOTAAssigner, which takes a whole batch; '
                f'{type(self.assigner).__name__} takes one image'
            )
        self.prior_generator = TASK_UTILS.build(
            {'type': 'MlvlPointGenerator', 'strides': list(self.strides), 'offset': 0.5}
        )

        conv = conv_factory(norm_cfg, act_cfg)
        width = in_channels if feat_channels is None else feat_channels
        cls_width, reg_width = max(width, num_classes), max(width, 64)
        levels = range(len(self.strides))
        self.cls_towers = nn.ModuleList(conv3x3_chain(conv, in_channels, cls_width, stacked_convs) for _ in levels)
        self.reg_towers = nn.ModuleList(conv3x3_chain(conv, in_channels, reg_width, stacked_convs) for _ in levels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(cls_width, num_classes, 1) for _ in levels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(reg_width, 4, 1) for _ in levels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(reg_width, 1, 1) for _ in levels)

    def init_weights(self) -> None:
        """Start with scores of 0.01 and boxes of e strides, centred on their cell."""
        super().init_weights()
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for cls_pred, reg_pred, obj_pred in zip(self.cls_preds, self.reg_preds, self.obj_preds):
            nn.init.constant_(cls_pred.bias, bias)
            nn.init.constant_(obj_pred.bias, bias)
            nn.init.zeros_(reg_pred.weight)
            nn.init.ones_(reg_pred.bias)

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Predict, without decoding.

        Args:
            feats: One feature map a level, (B, in_channels, H, W), finest first.

        Returns:
            ``cls_scores`` (B, C, H, W), ``bbox_preds`` (B, 4, H, W) and ``objectnesses`` (B, 1, H, W) of each level,
            scores as logits.
        """
        if len(feats) != len(self.strides):
            raise OptionError(f'YOLOv7SimpleHead: built for {len(self.strides)} levels, but got {len(feats)}')
        channels = [int(feat.shape[1]) for feat in feats]  # tensors, while an export traces
        if set(channels) != {self.in_channels}:
            raise OptionError(
                f'YOLOv7SimpleHead: built for in_channels={self.in_channels}, but the neck gives {channels}; '
                'set bbox_head.in_channels to the out_channels of the neck'
            )
        return multi_apply(
            self._forward_level,
            feats,
            self.cls_towers,
            self.reg_towers,
            self.cls_preds,
            self.reg_preds,
            self.obj_preds,
        )

    @staticmethod
    def _forward_level(feat, cls_tower, reg_tower, cls_pred, reg_pred, obj_pred) -> tuple[Tensor, Tensor, Tensor]:
        reg_feat = reg_tower(feat)
        return cls_pred(cls_tower(feat)), reg_pred(reg_feat), obj_pred(reg_feat)

    def level_priors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Priors of each level, (H * W, 4): x and y of the cell's centre, stride in x and y, in pixels."""
        # Half precision cannot represent the centre of every cell of a large image.
        return self.prior_generator.grid_priors(
            [level.shape[-2:] for level in levels], dtype=torch.float32, device=levels[0].device, with_stride=True
        )

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        batch_gt_instances_ignore: Sequence[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            cls_scores: As in :meth:`forward`.
            bbox_preds: As in :meth:`forward`.
            objectnesses: As in :meth:`forward`.
            batch_gt_instances: ``bboxes`` (G, 4), xyxy in pixels of the input, and ``labels`` (G,) of each image.
            batch_img_metas: Not used.
            batch_gt_instances_ignore: ``bboxes`` of ignored regions, used if ``ignore_iof_thr`` is set.

        Returns:
            Scalars ``loss_cls``, ``loss_bbox``, ``loss_obj``, and ``loss_l1`` in the last stage.
        """
        cls_levels = [level.flatten(2) for level in cls_scores]  # L x (B, C, P_l), kept apart: a joined copy is large
        raw_boxes = flatten_levels(bbox_preds).float()  # (B, P, 4)
        obj_logits = flatten_levels(objectnesses).squeeze(-1)  # (B, P)
        priors = torch.cat(self.level_priors(cls_scores))  # (P, 4)
        boxes = decode_boxes(priors, raw_boxes.detach())

        gt_bboxes, gt_labels, gt_mask = pad_boxes(batch_gt_instances)  # (B, G, 4), (B, G), (B, G)
        cls_logits = [level.mT for level in cls_levels]
        assigned = self.assigner(boxes, cls_logits, obj_logits, priors, gt_bboxes, gt_labels, gt_mask)
        num_matched = reduce_mean(assigned.matched.sum().float()).clamp(min=1)

        loss_obj = self.loss_obj(obj_logits, assigned.matched.to(obj_logits), reduction_override='none')
        if self.ignore_iof_thr is not None and batch_gt_instances_ignore is not None:
            shares = max_iof(boxes, [ignored.bboxes for ignored in batch_gt_instances_ignore])  # (B, P)
            loss_obj = loss_obj * (assigned.matched | (shares <= self.ignore_iof_thr))
        losses = {'loss_obj': loss_obj.sum() / num_matched}

        # Reading the number of matched cells back from the device would stall it. A box takes at most candidate_topk
        # cells, so a fixed number of slots holds them all; empty slots have weight 0.
        num_slots = min(assigned.matched.shape[1], gt_bboxes.shape[1] * self.assigner.candidate_topk)
        weight, cells = assigned.matched.float().topk(num_slots)  # (B, K)
        gt_index = assigned.gt_index.gather(1, cells)
        target_boxes = gather_rows(gt_bboxes, gt_index).float()
        slot_priors = priors[cells]  # (B, K, 4)
        target_numbers = encode_boxes(slot_priors, target_boxes)

        # An empty slot predicts its own target, so that it has no gradient and its losses stay finite.
        matched = weight.bool().unsqueeze(-1)  # (B, K, 1)
        slot_numbers = torch.where(matched, gather_rows(raw_boxes, cells), target_numbers)
        slot_boxes = decode_boxes(slot_priors, slot_numbers)
        loss_bbox = self.loss_bbox(slot_boxes.flatten(0, 1), target_boxes.flatten(0, 1), reduction_override='none')
        losses['loss_bbox'] = (loss_bbox * weight.flatten()).sum() / num_matched

        target_scores = torch.zeros(*cells.shape, self.num_classes, device=weight.device)
        iou = assigned.iou.gather(1, cells)
        target_scores.scatter_(2, gt_labels.gather(1, gt_index).unsqueeze(-1), iou.unsqueeze(-1))
        loss_cls = self.loss_cls(gather_cells(cls_levels, cells).mT, target_scores, reduction_override='none')
        losses['loss_cls'] = (loss_cls * weight.unsqueeze(-1)).sum() / num_matched

        if self.use_l1:
            loss_l1 = self.loss_l1(slot_numbers, target_numbers, reduction_override='none')
            losses['loss_l1'] = (loss_l1 * weight.unsqueeze(-1)).sum() / num_matched
        return losses

    def candidates(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Sequence[Tensor],
        nms_pre: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode, score and keep the best of each level, for detections and for the exported graph.

        Args:
            cls_scores: As in :meth:`forward`.
            bbox_preds: As in :meth:`forward`.
            objectnesses: As in :meth:`forward`.
            nms_pre: Best (cell, class) scores kept of each level, at most as many as it has cells; below 1: all.

        Returns:
            Boxes (B, N, 4), xyxy in pixels of the input; scores (B, N); labels (B, N).
        """
        priors = self.level_priors(cls_scores)
        boxes = decode_boxes(torch.cat(priors), flatten_levels(bbox_preds))
        all_scores, all_labels, all_cells, start = [], [], [], 0
        for cls_score, objectness, cells in zip(cls_scores, objectnesses, priors):
            num_cells = cells.shape[0]
            # Flattened first: OpenCV 5 cannot multiply maps of one channel and of several.
            score = (cls_score.flatten(2).sigmoid() * objectness.flatten(2).sigmoid()).sqrt().flatten(1)  # (B, C * HW)
            scores, index = score.topk(smaller(nms_pre, num_cells) if nms_pre > 0 else score.shape[1])
            all_scores.append(scores)
            all_labels.append(torch.div(index, num_cells, rounding_mode='floor'))
            all_cells.append(index % num_cells + start)
            start += num_cells
        return gather_rows(boxes, torch.cat(all_cells, 1)), torch.cat(all_scores, 1), torch.cat(all_labels, 1)

    def predict_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Sequence[Tensor],
        batch_img_metas: Sequence[dict] | None = None,
        cfg: dict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """Turn raw predictions into detections.

        Args:
            cls_scores: As in :meth:`forward`.
            bbox_preds: As in :meth:`forward`.
            objectnesses: As in :meth:`forward`.
            batch_img_metas: With ``rescale``, ``scale_factor`` (w, h) and ``ori_shape`` (h, w) of each image; without
                ``ori_shape`` its boxes are not clipped.
            cfg: Replaces ``test_cfg``.
            rescale: Give boxes in pixels of the original image, clipped to it; else in pixels of the input, unclipped.
            with_nms: Whether to suppress doubles; if not, all candidates above the score threshold are returned.

        Returns:
            ``bboxes`` (N, 4) xyxy, ``scores`` (N,) best first and ``labels`` (N,) of each image.
        """
        options = TestOptions.from_cfg(self.test_cfg if cfg is None else cfg)
        levels = ([level.float() for level in kind] for kind in (cls_scores, bbox_preds, objectnesses))
        boxes, scores, labels = self.candidates(*levels, options.nms_pre)
        selected = options.select(boxes, scores, labels, with_nms)
        if rescale:
            unknown = (math.inf, math.inf)
            known = [[*meta['scale_factor'], *meta.get('ori_shape', unknown)[1::-1]] for meta in batch_img_metas]
            numbers = torch.tensor(known).to(boxes, non_blocking=True)  # one copy, which no one waits for
            numbers = numbers.view(-1, 1, 4)
            factors, sizes = numbers[..., :2].repeat(1, 1, 2), numbers[..., 2:].repeat(1, 1, 2)  # (B, 1, 4)
            boxes = (boxes / factors).clamp(min=0).minimum(sizes)
        found = ((boxes[i, index], best, labels[i, index]) for i, (index, best) in enumerate(selected))
        return [InstanceData(bboxes=boxes, scores=scores, labels=labels) for boxes, scores, labels in found]
