"""Measure judging with pycocotools and with faster-coco-eval, side by side, on as many boxes as COCO's val2017 has.

    python tools/analysis_tools/benchmark_evaluation.py

Truth and detections are drawn at random: 5,000 images, 36,000 boxes of 80 classes, 100 detections an image, of which
some fit a box, some its double or its neighbour, and most nothing. Both judge the same, in turns, round after round,
and medians count: the matching itself (COCOeval), and the whole metric of mmdet, which also writes and reads the
detections as JSON. The exit status is 1 unless all numbers are equal, to the last digit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yolov7_simple  # noqa: F401, I001  (before mmdet: it stands in for missing mmcv ops)
import numpy as np
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import METRICS
from mmengine.registry import init_default_scope
from pycocotools.cocoeval import COCOeval

from yolov7_simple.runtime.errors import UserError
from yolov7_simple.evaluation import ExactFasterCocoMetric
from yolov7_simple.apis.inference import quiet

NUM_CLASSES = 80
BOXES_PER_IMAGE = 7.2
SIDE = 640  # of the images, in pixels
CROWD_SHARE = 0.01


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=5000, help='default: 5000')
    parser.add_argument('--detections', type=int, default=100, help='of each image; default: 100')
    parser.add_argument('--rounds', type=int, default=3, help='default: 3')
    args = parser.parse_args()
    if min(args.images, args.detections, args.rounds) < 1:
        parser.error('--images, --detections and --rounds must be at least 1')
    return args


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (N, 4), xyxy in pixels, of the sizes of COCO's: most small, some as large as the image."""
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
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': label + 1,
                    'bbox': [x1, y1, width, height],
                    'area': width * height,
                    'iscrowd': int(rng.random() < CROWD_SHARE),
                }
            )
        found, found_labels = draw_boxes(rng, num_detections), rng.integers(0, NUM_CLASSES, num_detections)
        if count:
            near = rng.random(num_detections) < 0.3
            which = rng.integers(0, count, num_detections)
            jitter = rng.normal(0, 0.08, (num_detections, 4)) * np.tile(boxes[which, 2:] - boxes[which, :2], 2)
            found[near] = (boxes[which] + jitter)[near]
            own = near & (rng.random(num_detections) < 0.8)
            found_labels[own] = labels[which][own]
        # Two digits: many scores are equal, which must not change the order.
        scores = rng.random(num_detections).round(2)
        detections.append(
            {
                'img_id': image_id,
                'bboxes': found.astype(np.float32),
                'scores': scores.astype(np.float32),
                'labels': found_labels,
            }
        )
    images = [{'id': i, 'width': SIDE, 'height': SIDE, 'file_name': f'{i}.jpg'} for i in range(num_images)]
    categories = [{'id': i + 1, 'name': f'class {i}'} for i in range(NUM_CLASSES)]
    return {'images': images, 'annotations': annotations, 'categories': categories}, detections


def timed(evaluator: type, judged: list[COCOeval]) -> type:
    """An evaluator that puts itself into a list, with its ``seconds`` from the start to the summary."""

    class Timed(evaluator):
        def __init__(self, *args) -> None:
            self.start = time.perf_counter()
            super().__init__(*args)
            judged.append(self)

        def summarize(self) -> None:
            super().summarize()
            self.seconds = time.perf_counter() - self.start

    return Timed


def judge(truth: dict, detections: list[dict], ann_file: Path) -> dict[str, tuple[dict, COCOeval, float]]:
    """Judge with both metrics; gives the numbers of mmdet, the evaluator and the seconds of the whole, by name."""
    ann_file.write_text(json.dumps(truth))
    results = {}
    for name, type_ in (('pycocotools', 'CocoMetric'), ('faster-coco-eval', 'ExactFasterCocoMetric')):
        metric = METRICS.build({'type': type_, 'ann_file': str(ann_file), 'classwise': True})
        metric.dataset_meta = {'classes': [one['name'] for one in truth['categories']]}
        judged = []
        if isinstance(metric, ExactFasterCocoMetric):
            metric.evaluator = timed(metric.evaluator, judged)
        else:
            coco_metric.COCOeval = timed(COCOeval, judged)
        start = time.perf_counter()
        try:
            numbers = metric.compute_metrics([({}, one) for one in detections])
        finally:
            coco_metric.COCOeval = COCOeval
        results[name] = (numbers, judged[0], time.perf_counter() - start)
    return results


def are_equal(results: dict[str, tuple[dict, COCOeval, float]]) -> bool:
    """Whether all that both have computed is the same, bit for bit."""
    (numbers, judged, _), (other_numbers, other, _) = results.values()
    return (
        all(np.array_equal(judged.eval[key], other.eval[key]) for key in ('precision', 'recall', 'scores'))
        and np.array_equal(judged.stats, other.stats)
        and str(numbers) == str(other_numbers)  # as text: nan is nan
    )


def main() -> int:
    args = parse_args()
    init_default_scope('mmdet')
    METRICS.build({'type': 'ExactFasterCocoMetric'})  # the package may be missing: say so now
    truth, detections = make_set(args.images, args.detections)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds):
            with quiet():
                results = judge(truth, detections, Path(folder) / 'truth.json')
            same = are_equal(results)
            mean_ap = results['pycocotools'][1].stats[0]
            rounds.append({name: (judged.seconds, whole) for name, (_, judged, whole) in results.items()})
            seconds = ', '.join(f'{name} {one:.1f} s and {whole:.1f} s' for name, (one, whole) in rounds[-1].items())
            print(f'round {i + 1} of {args.rounds}: {seconds}', file=sys.stderr)
            if not same:
                break
    print(
        f'{args.images} images, {len(truth["annotations"])} boxes of {NUM_CLASSES} classes, {args.detections} '
        f'detections an image; medians of {len(rounds)} rounds; mAP {mean_ap:.6f}\n\n'
        '| | pycocotools | faster-coco-eval | times faster |\n| --- | ---: | ---: | ---: |'
    )
    for i, what in enumerate(('COCOeval', 'whole metric')):
        slow, fast = (statistics.median(one[name][i] for one in rounds) for name in rounds[0])
        print(f'| {what} | {slow:.2f} s | {fast:.2f} s | {slow / fast:.1f} |')
    print('\nAll numbers are equal, to the last digit.' if same else '\nThe numbers differ.')
    return 0 if same else 1


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f'error: {error}')
