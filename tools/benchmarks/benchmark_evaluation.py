"""Time COCO's metric with pycocotools and with faster-coco-eval, on as many boxes as val2017 has.

    python tools/benchmarks/benchmark_evaluation.py

Truth and detections are random: 5,000 images, 36,000 boxes of 80 classes, 100 detections an image, some of them near a
box and most near nothing. Both packages evaluate the same ones in turns. Printed are the medians of the matching alone
(COCOeval) and of mmdet's whole metric, which also writes and reads the detections as JSON. The exit status is 1 unless
all numbers are equal to the last digit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yolov7_simple  # noqa: F401  (before mmdet: it stands in for missing mmcv ops)

# isort: split
import numpy as np
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import METRICS
from mmengine.registry import init_default_scope
from pycocotools.cocoeval import COCOeval

from yolov7_simple.apis.inference import quiet
from yolov7_simple.evaluation import ExactFasterCocoMetric
from yolov7_simple.runtime.errors import UserError

NUM_CLASSES = 80
BOXES_PER_IMAGE = 7.2
NUM_DETECTIONS = 100  # of each image
SIDE = 640  # of the images, in pixels
CROWD_SHARE = 0.01


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=5000, help='default: 5000')
    parser.add_argument('--rounds', type=int, default=3, help='default: 3')
    args = parser.parse_args()
    if min(args.images, args.rounds) < 1:
        parser.error('--images and --rounds must be at least 1')
    return args


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw boxes (N, 4), xyxy in pixels, as large as COCO's: most small, some as large as the image."""
    sides = np.exp(rng.normal(4, 1, (count, 2))).clip(4, SIDE - 1)
    corners = rng.random((count, 2)) * (SIDE - sides)
    return np.concatenate([corners, corners + sides], 1)


def make_set(num_images: int, num_detections: int) -> tuple[dict, list[dict]]:
    """Draw truth, as COCO's annotations, and detections, as mmdet's metric collects them."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image_id, count in enumerate(rng.poisson(BOXES_PER_IMAGE, num_images).tolist()):
        boxes, labels = draw_boxes(rng, count), rng.integers(0, NUM_CLASSES, count)
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist()):
            width, height = x2 - x1, y2 - y1
            record = {'id': len(annotations) + 1, 'image_id': image_id, 'category_id': label + 1}
            record |= {'bbox': [x1, y1, width, height], 'area': width * height}
            annotations.append(record | {'iscrowd': int(rng.random() < CROWD_SHARE)})
        found, found_labels = draw_boxes(rng, num_detections), rng.integers(0, NUM_CLASSES, num_detections)
        if count:
            near = rng.random(num_detections) < 0.3
            which = rng.integers(0, count, num_detections)
            jitter = rng.normal(0, 0.08, (num_detections, 4)) * np.tile(boxes[which, 2:] - boxes[which, :2], 2)
            found[near] = (boxes[which] + jitter)[near]
            own = near & (rng.random(num_detections) < 0.8)
            found_labels[own] = labels[which][own]
        # Two digits make many scores equal, which must not change the order.
        scores = rng.random(num_detections).round(2).astype(np.float32)
        detections.append(
            {'img_id': image_id, 'bboxes': found.astype(np.float32), 'scores': scores, 'labels': found_labels}
        )
    images = [{'id': i, 'width': SIDE, 'height': SIDE, 'file_name': f'{i}.jpg'} for i in range(num_images)]
    categories = [{'id': i + 1, 'name': f'class {i}'} for i in range(NUM_CLASSES)]
    return {'images': images, 'annotations': annotations, 'categories': categories}, detections


def timed(evaluator: type, made: list[COCOeval]) -> type:
    """An evaluator that adds itself to a list, with its ``seconds`` from the start to the summary."""

    class Timed(evaluator):
        def __init__(self, *args) -> None:
            self.start = time.perf_counter()
            super().__init__(*args)
            made.append(self)

        def summarize(self) -> None:
            super().summarize()
            self.seconds = time.perf_counter() - self.start

    return Timed


def evaluate(truth: dict, detections: list[dict], ann_file: Path) -> dict[str, tuple[dict, COCOeval, float]]:
    """Evaluate with both packages; returns mmdet's numbers, the evaluator and the metric's seconds of each, by name."""
    ann_file.write_text(json.dumps(truth))
    results = {}
    for name, type_ in (('pycocotools', 'CocoMetric'), ('faster-coco-eval', 'ExactFasterCocoMetric')):
        metric = METRICS.build({'type': type_, 'ann_file': str(ann_file), 'classwise': True})
        metric.dataset_meta = {'classes': [one['name'] for one in truth['categories']]}
        made: list[COCOeval] = []
        if isinstance(metric, ExactFasterCocoMetric):
            metric.evaluator = timed(metric.evaluator, made)
        else:
            coco_metric.COCOeval = timed(COCOeval, made)
        start = time.perf_counter()
        try:
            numbers = metric.compute_metrics([({}, one) for one in detections])
        finally:
            coco_metric.COCOeval = COCOeval
        results[name] = (numbers, made[0], time.perf_counter() - start)
    return results


def are_equal(results: dict[str, tuple[dict, COCOeval, float]]) -> bool:
    """Whether both packages computed the same numbers, bit for bit."""
    (numbers, one, _), (other_numbers, other, _) = results.values()
    return (
        all(np.array_equal(one.eval[key], other.eval[key]) for key in ('precision', 'recall', 'scores'))
        and np.array_equal(one.stats, other.stats)
        and str(numbers) == str(other_numbers)  # as text, in which nan equals nan
    )


def main() -> int:
    args = parse_args()
    init_default_scope('mmdet')
    METRICS.build({'type': 'ExactFasterCocoMetric'})  # fails now if faster-coco-eval is missing
    truth, detections = make_set(args.images, NUM_DETECTIONS)
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            with quiet():
                results = evaluate(truth, detections, Path(folder) / 'truth.json')
            for name, (_, evaluator, whole) in results.items():
                seconds.setdefault(name, []).append((evaluator.seconds, whole))
            if not are_equal(results):
                print('The numbers differ.')
                return 1
    print(
        f'{args.images} images, {len(truth["annotations"])} boxes of {NUM_CLASSES} classes, {NUM_DETECTIONS} '
        f'detections an image; medians of {args.rounds} rounds; mAP {evaluator.stats[0]:.6f}\n\n'
        '| | pycocotools | faster-coco-eval | times faster |\n| --- | ---: | ---: | ---: |'
    )
    for i, what in enumerate(('COCOeval', 'whole metric')):
        slow, fast = (statistics.median(pair[i] for pair in pairs) for pairs in seconds.values())
        print(f'| {what} | {slow:.2f} s | {fast:.2f} s | {slow / fast:.1f} |')
    print('\nAll numbers are equal, to the last digit.')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f'error: {error}')
