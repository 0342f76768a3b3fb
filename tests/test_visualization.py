import numpy as np
import torch
from mmengine.structures import InstanceData
from small_model import CLASSES

from yolov7_simple.runtime.drawing import draw_detections
from yolov7_simple.visualization import ReadableDetVisualizer


def test_mmdets_visualizer_draws_the_same():
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    boxes, labels = np.array([[100.0, 100, 300, 250]]), np.array([1])
    instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.tensor(labels), scores=torch.tensor([0.8]))
    drawn = ReadableDetVisualizer()._draw_instances(image[..., ::-1], instances, list(CLASSES), None)
    wanted = draw_detections(image, boxes, np.array([0.8]), labels, CLASSES)
    assert (drawn[..., ::-1] == wanted).all() and (wanted != image).any()
