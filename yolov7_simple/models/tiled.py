"""A detector for small objects in large pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from torch.nn.functional import pad

from ..runtime.tiles import Found, Tiling, detect_in_views, fit_view
from ..utils.options import Count, OptionError, Range, check_options
from .prediction import TestOptions

OPTIONS = {
    'tile': (Annotated[int, Range(32)], None),
    'scale': (Annotated[int, Range(32)], None),
    'overlap': (Annotated[float, Range(0, 0.9)], 0.2),
}


@MODELS.register_module()
class TiledDetector(SingleStageDetector):
    """mmdet's SingleStageDetector, which detects in overlapping windows of a picture and in the picture as a whole.

    It is trained as that one, and its checkpoints are the same. Its test pipeline has no ``Resize``: pictures come as
    they are, views of them are fitted into the network's input here, a few at a time, and
    :func:`.runtime.tiles.merge_views` merges what is found.

    Args:
        args: As of SingleStageDetector.
        tile: Side of the windows in pixels of the picture.
        scale: Side of the network's input in pixels, that each view is fitted into.
        overlap: Share of a window that it has in common with the next one, at least.
        kwargs: As of SingleStageDetector.

    Raises:
        OptionError: An option of another type or range.
    """

    def __init__(self, *args: Any, tile: Count, scale: Count, overlap: float = 0.2, **kwargs: Any) -> None:
        check_options('TiledDetector', {'tile': tile, 'scale': scale, 'overlap': overlap}, OPTIONS)
        super().__init__(*args, **kwargs)
        self.tiling = Tiling(tile, overlap, scale)

    def val_step(self, data: dict[str, Any]) -> list[DetDataSample]:
        """Detect in a batch, as :meth:`test_step`."""
        return self.test_step(data)

    @torch.no_grad()
    def test_step(self, data: dict[str, Any]) -> list[DetDataSample]:
        """Detect in a batch of whole pictures.

        Args:
            data: ``inputs``, pictures (3, H, W) of 8 bits as they are in their files, and their ``data_samples``.

        Returns:
            The data samples, with ``pred_instances`` on the CPU, in pixels of the pictures.

        Raises:
            OptionError: The pipeline has resized them.
        """
        options = TestOptions.from_cfg(self.bbox_head.test_cfg)
        samples = data['data_samples']
        for picture, sample in zip(data['inputs'], samples):
            if picture.shape[-2:] != tuple(sample.metainfo.get('ori_shape', picture.shape[-2:]))[:2]:
                raise OptionError(
                    f'TiledDetector cuts windows of {self.tiling.tile} pixels out of pictures of full size, and the '
                    'pipeline has resized them: take Resize out of it (there is no --tta with tiles)'
                )
            pixels = np.ascontiguousarray(picture.byte().permute(1, 2, 0).cpu().numpy())
            boxes, scores, labels = detect_in_views(
                pixels, self.tiling, self._detect, options.iou_threshold, options.class_agnostic, options.max_per_img
            )
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(boxes), scores=torch.from_numpy(scores), labels=torch.from_numpy(labels)
            )
        samplelist_boxtype2tensor(samples)  # as a data preprocessor does with the truth
        return samples

    def _detect(self, views: Sequence[NDArray[np.uint8]]) -> list[Found]:
        """Detect in views (h, w, 3) of a picture."""
        images, samples = [], []
        for view in views:
            image = fit_view(view, self.tiling.scale / max(view.shape[:2]))
            factors = image.shape[1] / view.shape[1], image.shape[0] / view.shape[0]
            samples.append(
                DetDataSample(
                    metainfo={'img_shape': image.shape[:2], 'ori_shape': view.shape[:2], 'scale_factor': factors}
                )
            )
            images.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        batch = self.data_preprocessor({'inputs': images, 'data_samples': samples})
        inputs = batch['inputs']
        divisor = self.data_preprocessor.pad_size_divisor
        side = -(-self.tiling.scale // divisor) * divisor
        height, width = inputs.shape[-2:]
        # All inputs are of one size, whatever is in the batch.
        inputs = pad(inputs, (0, side - width, 0, side - height), value=self.data_preprocessor.pad_value)
        found = [sample.pred_instances.cpu().numpy() for sample in self.predict(inputs, batch['data_samples'])]
        return [(one.bboxes, one.scores, one.labels) for one in found]
