"""Detect with a config and a checkpoint as with an ONNX file: whole images, or large ones slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..models.fast import speed_up
from ..models.prediction import TestOptions
from ..runtime.errors import InputError
from ..runtime.images import check_pixels
from ..runtime.onnx_detector import Detections
from .inference import class_names, load_inferencer


class TorchDetector:
    """Detect in whole images, through mmdet's inferencer; used as :class:`~yolov7_simple.runtime.OnnxDetector` is.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        device: Such as ``'cpu'`` or ``'cuda:0'``; None: the best there is.
        fast: Whether to detect with the copy of :func:`speed_up`.
        compiled: Whether torch compiles that copy.
        agnostic_nms: Whether to set ``class_agnostic`` of ``test_cfg.nms``: one object, one box, whatever its class.

    Attributes: ``inferencer``, which is mmdet's, and those of OnnxDetector that describe its detections.

    Raises:
        CheckpointError: Config or checkpoint cannot be used, or they do not fit.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        device: str | None = None,
        fast: bool = True,
        compiled: bool = False,
        agnostic_nms: bool = False,
    ) -> None:
        self.inferencer = load_inferencer(config, checkpoint, device)
        model = self.inferencer.model
        self.classes = class_names(model)
        options = TestOptions.from_cfg(model.bbox_head.test_cfg)
        if agnostic_nms:
            model.bbox_head.test_cfg.nms = {**options.nms, 'class_agnostic': True}
        self.agnostic_nms = agnostic_nms or options.class_agnostic
        self.score_threshold, self.iou_threshold = options.score_thr, options.iou_threshold
        if fast or compiled:
            self.inferencer.model = speed_up(model, compiled)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detect in BGR images, (H, W, 3) each."""
        images = check_pixels(images)
        samples = self.inferencer(images, batch_size=max(len(images), 1), return_datasamples=True)['predictions']
        found = [sample.pred_instances.cpu().numpy() for sample in samples]
        return [Detections(instances.bboxes, instances.scores, instances.labels) for instances in found]


class SlicedDetector(TorchDetector):
    """Detect in overlapping squares and in the whole image, through sahi, which merges the detections.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        side: Side of the squares in pixels.
        score_thr: Detections below this score are dropped before merging.
        **options: See :class:`TorchDetector`.

    Raises:
        InputError: sahi is missing.
    """

    def __init__(self, config: str | Path, checkpoint: str | Path, side: int, score_thr: float, **options) -> None:
        try:
            from sahi.models.mmdet import MmdetDetectionModel
            from sahi.predict import get_sliced_prediction
        except ImportError as error:
            raise InputError(f'--slice needs the sahi package: pip install sahi ({error})') from error
        super().__init__(config, checkpoint, **options)
        if tiling := getattr(self.inferencer.model, 'tiling', None):
            raise InputError(
                f'--slice {side}: {config} has windows of its own, of {tiling.tile} pixels, and merges what is found '
                'in them: leave --slice out'
            )
        self.side = side
        self._model = MmdetDetectionModel(model=self.inferencer, confidence_threshold=score_thr, device='cpu')
        self._predict = get_sliced_prediction

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detect in BGR images, (H, W, 3) each."""
        return [self._detect_slices(image) for image in check_pixels(images)]

    def _detect_slices(self, image: NDArray[np.uint8]) -> Detections:
        rgb = np.ascontiguousarray(image[..., ::-1])
        options = {'postprocess_class_agnostic': self.agnostic_nms, 'verbose': 0}
        objects = self._predict(rgb, self._model, slice_height=self.side, slice_width=self.side, **options)
        objects = sorted(objects.object_prediction_list, key=lambda one: -one.score.value)
        return Detections(
            np.array([one.bbox.to_xyxy() for one in objects], np.float32).reshape(-1, 4),
            np.array([one.score.value for one in objects], np.float32),
            np.array([one.category.id for one in objects], np.int64),
        )
