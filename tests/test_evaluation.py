"""Evaluation: faster-coco-eval's numbers are pycocotools', bit for bit."""

import sys

import pytest
from benchmark_evaluation import are_equal, evaluate, make_set
from mmdet.registry import METRICS

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
