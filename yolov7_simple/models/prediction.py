"""``test_cfg`` with its defaults, and the NMS that it selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmcv.ops import batched_nms
from torch import Tensor

from ..ops.nms_batch import nms_batch, true_indices
from ..utils.configs import type_name
from ..utils.options import OptionError, Share, describe_type, fits, to_python


class TestOptions(NamedTuple):
    """Options of ``test_cfg``; validation, testing, tools and exports share these defaults.

    Args:
        nms_pre: Best (cell, class) scores kept of each level; below 1: all.
        score_thr: Detections have a higher score than this.
        nms: Type and options of the NMS. ``type='nms'`` is exact; every other type is mmcv's ``batched_nms``.
        max_per_img: Most detections of an image; below 1: no limit.
    """

    __test__ = False  # keeps pytest from collecting it for its name

    nms_pre: int = 1000
    score_thr: Share = 0.001
    nms: dict = {'type': 'nms', 'iou_threshold': 0.7}
    max_per_img: int = -1

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> TestOptions:
        """Fill in what ``cfg`` leaves out."""
        options = cls(**{name: to_python(cfg[name]) for name in cls._fields if cfg.get(name) is not None})
        if (type_name(options.nms) or 'nms') == 'nms':
            options = options._replace(nms={**cls().nms, **options.nms, 'type': 'nms'})
        for name, hint in (('score_thr', Share), ('nms.iou_threshold', Share), ('nms.class_agnostic', bool)):
            value = getattr(options, name.removeprefix('nms.'))
            if not fits(value, hint):
                raise OptionError(f'test_cfg.{name} must be {describe_type(hint)}, got {value!r}')
        return options

    @property
    def is_plain_nms(self) -> bool:
        """Whether it is greedy NMS with no more than a threshold."""
        return self.nms.get('type') == 'nms' and self.nms.keys() <= {'type', 'iou_threshold', 'class_agnostic'}

    @property
    def iou_threshold(self) -> float:
        """Largest IoU of two detections of a class, if the NMS is plain."""
        return self.nms.get('iou_threshold', type(self)().nms['iou_threshold'])

    @property
    def class_agnostic(self) -> bool:
        """Whether NMS treats all classes as one, so that an object has one box: mmcv's word, of any type of NMS."""
        return self.nms.get('class_agnostic', False)

    def select(self, boxes: Tensor, scores: Tensor, labels: Tensor, with_nms: bool) -> list[tuple[Tensor, Tensor]]:
        """Choose detections: (B, N, 4), (B, N), (B, N) -> indices and scores of each image, best first if with NMS."""
        valid = scores > self.score_thr
        if with_nms and self.is_plain_nms:
            kept = nms_batch(boxes, scores, valid, self.iou_threshold, labels=None if self.class_agnostic else labels)
        else:
            kept = true_indices(valid)
        selected = [(index, scores[i, index]) for i, index in enumerate(kept)]
        if with_nms and not self.is_plain_nms:
            for i, (index, found) in enumerate(selected):
                dets, keep = batched_nms(boxes[i, index], found, labels[i, index], dict(self.nms))
                selected[i] = index[keep], dets[:, 4]
        limit = self.max_per_img if with_nms and self.max_per_img > 0 else None
        return [(index[:limit], found[:limit]) for index, found in selected]
