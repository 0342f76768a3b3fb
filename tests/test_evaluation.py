"""Evaluation: faster-coco-eval's numbers are pycocotools', bit for bit; and of pictures with more than 100 objects."""

import sys

import pytest
import torch
from benchmark_evaluation import are_equal, evaluate, make_set
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import METRICS
from mmengine.fileio import dump
from pycocotools.cocoeval import COCOeval

from yolov7_simple.utils.options import OptionError


def test_faster_coco_metric_gives_the_same_numbers(tmp_path):
    """The set has crowds, equal scores, classes without boxes, and more than 100 detections of a class."""
    pytest.importorskip('faster_coco_eval')
    truth, detections = make_set(12, 500)
    for annotation in truth['annotations']:
        annotation['category_id'] = (annotation['category_id'] - 1) % 2 + 1
    for image in detections:
        image['labels'] = image['labels'] % 4
    truth['categories'] = truth['categories'][:4]
    results = evaluate(truth, detections, tmp_path / 'truth.json')
    numbers, evaluator, _ = results['pycocotools']
    assert are_equal(results) and numbers['bbox_mAP'] > 0.05
    assert any('faster_coco_eval' in cls.__module__ for cls in type(results['faster-coco-eval'][1]).__mro__)
    precision = evaluator.eval['precision']
    assert (precision[..., 0] != precision[..., 2]).any()  # limits of 100 and 1000 detections differ
    assert ((precision < 1) & (precision > 1 - 1e-15)).any()  # the values that the packages compute differently occur


def test_a_missing_faster_coco_eval_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval.core.faster_eval_api', None)
    with pytest.raises(OptionError, match='pip install faster-coco-eval'):
        METRICS.build({'type': 'ExactFasterCocoMetric'})
    with pytest.raises(OptionError, match='use_mp_eval'):
        METRICS.build({'type': 'ExactFasterCocoMetric', 'use_mp_eval': True})


def test_all_objects_of_a_large_picture_count(tmp_path):
    """150 objects of a class, all found; COCO counts the best 100 detections."""
    boxes = [[20.0 * (i % 15), 20.0 * (i // 15), 10.0, 12.0] for i in range(150)]
    annotations = [
        {'id': i + 1, 'image_id': 1, 'category_id': 1, 'bbox': box, 'area': 120, 'iscrowd': 0}
        for i, box in enumerate(boxes)
    ]
    categories = [{'id': 1, 'name': 'thing'}]
    truth = {'images': [{'id': 1, 'width': 300, 'height': 200}], 'annotations': annotations, 'categories': categories}
    dump(truth, tmp_path / 'truth.json')
    corners = torch.tensor(boxes)
    corners[:, 2:] += corners[:, :2]
    found = {'bboxes': corners, 'scores': torch.linspace(1, 0.5, 150), 'labels': torch.zeros(150, dtype=torch.long)}
    numbers = {}
    for name in ('CocoMetric', 'WholePictureCocoMetric'):
        metric = METRICS.build({'type': name, 'ann_file': str(tmp_path / 'truth.json')})
        metric.dataset_meta = {'classes': ('thing',)}
        metric.process({}, [{'img_id': 1, 'pred_instances': found, 'ori_shape': (200, 300)}])
        numbers[name] = metric.evaluate(1)
    all_found, as_coco = (numbers[name] for name in ('WholePictureCocoMetric', 'CocoMetric'))
    assert all_found.pop('coco/bbox_mAP') == 1 and as_coco.pop('coco/bbox_mAP') < 0.7
    assert all_found == as_coco
    assert coco_metric.COCOeval is COCOeval
