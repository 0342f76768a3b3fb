"""A visualiser that draws detections in mmdet's tools, hooks and inferencer as the tools of this package do."""

from __future__ import annotations

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from numpy.typing import NDArray

from .runtime.drawing import draw_detections


@VISUALIZERS.register_module()
class ReadableDetVisualizer(DetLocalVisualizer):
    """mmdet's visualiser, with boxes and labels drawn by :func:`draw_detections`.

    Labels scale with the image and avoid each other and the boxes; colours depend on the class alone. Instances with
    masks or with names of their own are drawn by mmdet.
    """

    def _draw_instances(
        self, image: NDArray, instances: InstanceData, classes: list[str] | None, palette: list[tuple] | None
    ) -> NDArray:
        """Draw on a copy of an RGB image (H, W, 3), of its size: mmdet puts truth and detections side by side."""
        if 'masks' in instances or 'label_names' in instances or 'bboxes' not in instances:
            return super()._draw_instances(image, instances, classes, palette)
        boxes, labels = np.asarray(get_box_tensor(instances.bboxes)), np.asarray(instances.labels)
        scores = np.asarray(instances.scores) if 'scores' in instances else None
        if classes is None:
            classes = [f'class {label}' for label in range(int(labels.max(initial=0)) + 1)]
        plain = np.ascontiguousarray(image[..., ::-1])
        drawn = draw_detections(plain, boxes, scores, labels, classes, enlarge=False)[..., ::-1]
        self.set_image(drawn)
        return drawn
