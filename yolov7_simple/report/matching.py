"""A detector and its test split -> what it finds, COCO's numbers, and what is right, wrong and missed.

N detections, G boxes of the truth, C classes, T thresholds of IoU, R of recall.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.runner import Runner
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import Dataset

from ..apis.inference import class_names, quiet
from ..runtime.errors import InputError

IOU_THR = 0.5  # from which a detection is one of a box, here; COCO's numbers are of ten thresholds
NOTHING, CROWD = -1, -2


class Image(NamedTuple):
    """Truth and detections of an image; boxes are xyxy in pixels of the file, detections best first."""

    path: str
    gt_boxes: NDArray  # (G, 4)
    gt_labels: NDArray  # (G,)
    gt_crowds: NDArray  # (G,), bool: regions in which nothing counts
    boxes: NDArray  # (N, 4)
    scores: NDArray  # (N,)
    labels: NDArray  # (N,)


class Evaluated(NamedTuple):
    """A detector on its test split.

    ``precision`` (T, R, C) over ``recall_thresholds`` (R,), nan for classes without boxes, and ``scores`` (T, R, C),
    at which it is reached. ``stats`` (12,) are those that COCO prints. ``class_ap`` (C, 3): AP, AP50, AP75.
    """

    classes: tuple[str, ...]
    dataset: Dataset
    images: list[Image]
    stats: NDArray
    recall_thresholds: NDArray
    precision: NDArray
    scores: NDArray
    class_ap: NDArray


def evaluate(model: nn.Module, cfg: Config, on_images: Callable[[int, int], None]) -> Evaluated:
    """Run a detector once over its test split, as ``tools/test.py`` does, and evaluate it.

    Args:
        model: In evaluation mode, with its ``dataset_meta``.
        cfg: Its config.
        on_images: Is told how many images are done, and of how many.

    Raises:
        InputError: The config does not evaluate by CocoMetric and an annotation file, or nothing at all is found.
    """
    evaluator = cfg.get('test_evaluator')
    if not isinstance(evaluator, dict) or not evaluator.get('ann_file'):
        raise InputError(f'{cfg.filename}: only a test_evaluator of one CocoMetric with an ann_file can be reported')
    with quiet():
        loader = Runner.build_dataloader(cfg.test_dataloader)
        metric = METRICS.build(dict(evaluator, metric='bbox', format_only=False))
    if not isinstance(metric, CocoMetric):
        raise InputError(f'{cfg.filename}: test_evaluator is {evaluator["type"]}; only CocoMetric can be reported')
    classes, coco = class_names(model), metric._coco_api
    metric.dataset_meta = {'classes': classes}
    for batch in loader:
        with torch.no_grad():
            samples = model.test_step(batch)
        metric.process(batch, [sample.to_dict() for sample in samples])
        on_images(len(metric.results), len(loader.dataset))

    found = [prediction for _, prediction in metric.results]
    if not sum(len(one['scores']) for one in found):
        raise InputError(f'the model finds nothing in any of the {len(found)} images; it is not trained yet')
    metric.cat_ids = coco.get_cat_ids(cat_names=classes)
    with tempfile.TemporaryDirectory() as folder, quiet():
        boxes = load(metric.results2json(found, f'{folder}/found')['bbox'])
        evaluated = COCOeval(coco, coco.loadRes(boxes), 'bbox')
        evaluated.params.catIds = metric.cat_ids
        evaluated.params.maxDets = metric.proposal_nums
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    # COCO sorts classes by their ids. All areas; as mmdet's classwise, the most detections.
    order = np.argsort(np.argsort(metric.cat_ids))
    precision = evaluated.eval['precision'][:, :, order, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    known = ~np.isnan(precision).any((0, 1))
    class_ap = np.full((len(classes), 3), np.nan)
    class_ap[known] = np.stack([precision.mean((0, 1)), *precision[[0, 5]].mean(1)], 1)[known]
    return Evaluated(
        classes,
        loader.dataset,
        [read_truth(coco, metric.cat_ids, info, one) for info, one in zip(image_infos(loader.dataset), found)],
        evaluated.stats,
        evaluated.params.recThrs,
        precision,
        evaluated.eval['scores'][:, :, order, 0, -1],
        class_ap,
    )


def image_infos(dataset: Dataset) -> list[dict]:
    """What a dataset knows of each image, in its order."""
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def read_truth(coco, cat_ids: list[int], info: dict, found: dict) -> Image:
    """Join the boxes on which COCO's metric judges with what is found."""
    labels = {id_: label for label, id_ in enumerate(cat_ids)}
    boxes = [one for one in coco.imgToAnns[found['img_id']] if one['category_id'] in labels]
    xywh = np.array([one['bbox'] for one in boxes], float).reshape(-1, 4)
    order = np.argsort(-found['scores'], kind='stable')
    return Image(
        info['img_path'],
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        np.array([labels[one['category_id']] for one in boxes], int),
        np.array([one.get('iscrowd', 0) for one in boxes], bool),
        *(found[key][order] for key in ('bboxes', 'scores', 'labels')),
    )


def match(image: Image, score_thr: float) -> NDArray:
    """Match detections to boxes, each to one at the most: best first, its own class first, as COCO does at IoU 0.5.

    mmdet's confusion matrix counts a detection for each box that it overlaps, so that its rows and columns have no
    sum; here they do.

    Returns:
        (N',), for each detection from ``score_thr`` on the index of its box, ``NOTHING``, or ``CROWD``: it lies in a
        region in which nothing counts.
    """
    count = int((image.scores >= score_thr).sum())
    matched = np.full(count, NOTHING)
    if not count or not len(image.gt_boxes):
        return matched
    xywh = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1) for boxes in (image.boxes, image.gt_boxes)]
    ious = mask.iou(xywh[0][:count].astype(float), xywh[1], image.gt_crowds.astype(np.uint8).tolist())  # (N', G)
    free = ~image.gt_crowds
    for own_class in (True, False):
        for i in np.flatnonzero(matched == NOTHING):
            fits = free & (ious[i] >= IOU_THR) & ((image.gt_labels == image.labels[i]) == own_class)
            if fits.any():
                matched[i] = np.where(fits, ious[i], -1).argmax()
                free[matched[i]] = False
    in_crowd = (ious[:, image.gt_crowds] >= IOU_THR).any(1)
    matched[(matched == NOTHING) & in_crowd] = CROWD
    return matched


def count_confusions(images: list[Image], matches: list[NDArray], num_classes: int) -> NDArray:
    """Count (C + 1, C + 1): rows are truth, and last what is not there, columns detections, and last missed."""
    counts = np.zeros((num_classes + 1, num_classes + 1), int)
    for image, matched in zip(images, matches):
        labels = image.labels[: len(matched)]
        found = matched >= 0
        np.add.at(counts, (image.gt_labels[matched[found]], labels[found]), 1)
        np.add.at(counts, (num_classes, labels[matched == NOTHING]), 1)
        np.add.at(counts, (image.gt_labels[missed_boxes(image, matched)], num_classes), 1)
    return counts


def missed_boxes(image: Image, matched: NDArray) -> NDArray:
    """Indices of the boxes that no detection is matched to."""
    return np.setdiff1d(np.flatnonzero(~image.gt_crowds), matched)


def count_right(image: Image, matched: NDArray) -> int:
    """Detections that are matched to a box of their class."""
    found = matched >= 0
    return int((image.gt_labels[matched[found]] == image.labels[: len(matched)][found]).sum())


def f1_score(image: Image, matched: NDArray) -> float:
    """How well boxes and detections of an image agree: 1 is all right, also where there are none, 0 nothing."""
    total = int((matched != CROWD).sum() + (~image.gt_crowds).sum())
    return 2 * count_right(image, matched) / total if total else 1.0


def best_thresholds(evaluated: Evaluated) -> NDArray:
    """The score of each class from which on its F1 at IoU 0.5 is best, (C,), nan for classes without boxes."""
    precision, recall = evaluated.precision[0], evaluated.recall_thresholds[:, None]  # (R, C), (R, 1)
    best = (precision * recall / (precision + recall).clip(1e-9)).argmax(0)
    scores = np.take_along_axis(evaluated.scores[0], best[None], 0)[0]
    return np.where(np.isnan(precision).any(0), np.nan, scores)


def sample_path(image: Image) -> str:
    """File name of an image, to show."""
    return Path(image.path).name
