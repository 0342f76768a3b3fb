"""Losses that never wait for the device."""

from __future__ import annotations

import torch
from mmdet.models.losses import GIoULoss, weighted_loss
from mmdet.registry import MODELS
from torch import Tensor


@weighted_loss
def no_sync_giou_loss(pred: Tensor, target: Tensor, eps: float) -> Tensor:
    """1 - GIoU of (N, 4) and (N, 4) boxes, xyxy -> (N,) float32; areas count as at least ``eps``."""
    low, high, target_low, target_high = pred[:, :2].float(), pred[:, 2:].float(), target[:, :2], target[:, 2:]
    overlap = (torch.minimum(high, target_high) - torch.maximum(low, target_low)).clamp(min=0)
    hull = (torch.maximum(high, target_high) - torch.minimum(low, target_low)).clamp(min=0)
    overlap, hull, area, target_area = (
        size[:, 0] * size[:, 1] for size in (overlap, hull, high - low, target_high - target_low)
    )
    union = (area + target_area - overlap).clamp(min=eps)
    hull = hull.clamp(min=eps)
    return 1 - (overlap / union - (hull - union) / hull)


@MODELS.register_module()
class NoSyncGIoULoss(GIoULoss):
    """mmdet's GIoULoss, with the same options and results, without waiting for the device.

    mmdet's copies its eps there at each call, which takes until all that was asked of the device before is done.
    """

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss, in float32.

        Args:
            pred: (N, 4) predicted boxes, xyxy.
            target: (N, 4) boxes to learn.
            weight: (N,), or (N, 4), whose mean counts.
            avg_factor: Divides the sum in place of N.
            reduction_override: ``none``, ``mean`` or ``sum``, in place of ``reduction``.

        Returns:
            (N,) with the reduction ``none``, else a scalar.
        """
        assert reduction_override in (None, 'none', 'mean', 'sum'), f'reduction_override: {reduction_override!r}'
        reduction = reduction_override or self.reduction
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(-1)
        if weight is not None and not len(weight) and reduction != 'none':
            return pred.sum()  # 0, where the mean would be NaN
        return self.loss_weight * no_sync_giou_loss(
            pred, target, weight, eps=self.eps, reduction=reduction, avg_factor=avg_factor
        )
