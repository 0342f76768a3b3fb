from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
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


def instances_of(size, with_scores):
    height, width = size
    boxes = torch.rand(5, 4) * torch.tensor([width, height, width, height]) / 2
    boxes[:, 2:] += boxes[:, :2]
    scores = {'scores': torch.linspace(0.4, 0.9, 5)} if with_scores else {}
    return InstanceData(bboxes=boxes, labels=torch.arange(5) % 3, **scores)


@pytest.mark.parametrize('size', [(12, 10), (120, 160), (480, 640)])
@pytest.mark.parametrize('classes', [None, CLASSES])
def test_pictures_have_the_size_of_their_image(tmp_path, size, classes):
    """With predictions, truth, both or neither; mmdet puts the two side by side, and a video needs one size."""
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    visualizer = ReadableDetVisualizer()
    visualizer.dataset_meta = {'classes': classes} if classes else {}
    pred, truth, neither = DetDataSample(), DetDataSample(), DetDataSample()
    pred.pred_instances = instances_of(size, True)
    truth.gt_instances = instances_of(size, False)
    truth.gt_instances.bboxes = HorizontalBoxes(truth.gt_instances.bboxes)
    both = truth.clone()
    both.pred_instances = pred.pred_instances
    empty = both.clone()
    empty.pred_instances, empty.gt_instances = pred.pred_instances[:0], truth.gt_instances[:0]
    height, width = size
    for sample in (pred, truth, both, empty, neither):
        for options, sides in (({}, 2), ({'draw_gt': False}, 1), ({'draw_pred': False}, 1)):
            visualizer.add_datasample('image', image, sample, out_file=str(tmp_path / 'drawn.png'), **options)
            assert cv2.imread(str(tmp_path / 'drawn.png')).shape == (height, sides * width, 3)
    visualizer.add_datasample('image', image, None, out_file=str(tmp_path / 'drawn.png'))
    assert (cv2.imread(str(tmp_path / 'drawn.png'))[..., ::-1] == image).all()


def test_names_of_their_own_are_drawn(tmp_path):
    """As open-vocabulary detectors give them."""
    image = np.full((120, 160, 3), 90, np.uint8)
    sample = DetDataSample(pred_instances=instances_of((120, 160), True))
    sample.pred_instances.label_names = ['a', 'b', 'c', 'd', 'e']
    visualizer = ReadableDetVisualizer()
    visualizer.dataset_meta = {'classes': ('one',)}  # which the labels do not fit
    visualizer.add_datasample('image', image, sample, out_file=str(tmp_path / 'drawn.png'))
    assert (cv2.imread(str(tmp_path / 'drawn.png'))[:, 160:] != 90).any()


def test_mmdets_hook_draws_a_test(tmp_path):
    path = str(tmp_path / 'image.png')
    cv2.imwrite(path, np.full((120, 160, 3), 90, np.uint8))
    sample = DetDataSample(pred_instances=instances_of((120, 160), True), metainfo={'img_path': path})
    runner = mock.Mock(work_dir=str(tmp_path), timestamp='1', iter=1)
    hook = DetVisualizationHook(draw=True, test_out_dir='shown')
    hook._visualizer = ReadableDetVisualizer()
    hook.after_test_iter(runner, 0, {}, [sample])
    assert cv2.imread(str(tmp_path / '1/shown/image.png')).shape == (120, 320, 3)
