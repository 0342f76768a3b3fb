"""A visualiser that draws detections in mmdet's tools, hooks and inferencer as the tools of this package do."""

from __future__ import annotations

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from numpy.typing import NDArray

from .runtime.drawing import draw_detections


@VISUALIZERS.register_module()
class ReadableDetVisualizer(DetLocalVisualizer):
    """mmdet's visualiser, with boxes and labels drawn by :func:`draw_detections`.

    Labels scale with the image and avoid each other and the boxes; colours depend on the class alone. Instances with
    masks are drawn by mmdet.
    """

    def _draw_instances(
        self, image: NDArray, instances: InstanceData, classes: list[str] | None, palette: list[tuple] | None
    ) -> NDArray:
        """Draw on a copy of an RGB image (H, W, 3), enlarged if the image is tiny."""
        if 'masks' in instances or 'bboxes' not in instances:
            return super()._draw_instances(image, instances, classes, palette)
        boxes, labels = (np.asarray(instances[key]) for key in ('bboxes', 'labels'))
        scores = np.asarray(instances.scores) if 'scores' in instances else None
        if classes is None:
            classes = [f'class {label}' for label in range(int(labels.max(initial=0)) + 1)]
        drawn = draw_detections(np.ascontiguousarray(image[..., ::-1]), boxes, scores, labels, classes)[..., ::-1]
        self.set_image(drawn)
        return drawn
