"""A detector and its test split -> detections, COCO's numbers, and matches between detections and truth.

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
from ..evaluation import WholePictureCocoMetric
from ..runtime.errors import InputError
from ..utils.configs import type_name

IOU_THR = 0.5  # a detection matches a box from here on; COCO's AP uses ten thresholds
BACKGROUND_THR = 0.1  # below this IoU with every box, there is nothing where a detection is
NOTHING, CROWD, LOOSE = -1, -2, -3
OTHER_TRUTH = ('duplicate', 'loose box', 'nothing there')  # rows of the confusion matrix below those of the classes


class EvaluatedImage(NamedTuple):
    """Truth and detections of an image; boxes are xyxy in pixels of the file, detections best first."""

    path: str
    gt_boxes: NDArray  # (G, 4)
    gt_labels: NDArray  # (G,)
    gt_crowds: NDArray  # (G,), bool: regions in which detections do not count
    boxes: NDArray  # (N, 4)
    scores: NDArray  # (N,)
    labels: NDArray  # (N,)


class Evaluated(NamedTuple):
    """Results of a detector on its test split.

    ``precision`` (T, R, C) is over ``recall_thresholds`` (R,), nan for classes without boxes; ``scores`` (T, R, C) are
    the scores at which it is reached. ``stats`` (12,): what COCO prints. ``class_ap`` (C, 3): AP, AP50, AP75.
    """

    classes: tuple[str, ...]
    dataset: Dataset
    images: list[EvaluatedImage]
    stats: NDArray
    recall_thresholds: NDArray
    precision: NDArray
    scores: NDArray
    class_ap: NDArray


def evaluate(model: nn.Module, cfg: Config, on_images: Callable[[int, int], None]) -> Evaluated:
    """Run a detector once over its test split, as ``tools/test.py`` does, and evaluate it.

    Args:
        model: The detector, in evaluation mode, with its ``dataset_meta``.
        cfg: Its config.
        on_images: Called with the number of images that are done, and that of all.

    Raises:
        InputError: The config does not evaluate by CocoMetric with an annotation file, or the model finds nothing.
    """
    evaluator = cfg.get('test_evaluator')
    if not isinstance(evaluator, dict) or not evaluator.get('ann_file'):
        raise InputError(f'{cfg.filename}: only a test_evaluator of one CocoMetric with an ann_file can be reported')
    with quiet():
        loader = Runner.build_dataloader(cfg.test_dataloader)
        metric = METRICS.build(dict(evaluator, metric='bbox', format_only=False))
    if not isinstance(metric, CocoMetric):
        raise InputError(f'{cfg.filename}: test_evaluator is {type_name(evaluator)}; only CocoMetric can be reported')
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
        count_all = isinstance(metric, WholePictureCocoMetric)
        evaluated = (metric.evaluator if count_all else COCOeval)(coco, coco.loadRes(boxes), 'bbox')
        evaluated.params.catIds = metric.cat_ids
        evaluated.params.maxDets = metric.proposal_nums
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    # COCO sorts classes by id. Index 0 is all areas, -1 the most detections, as in mmdet's classwise AP.
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
    """Records of all images of a dataset, in its order."""
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def read_truth(coco, cat_ids: list[int], info: dict, found: dict) -> EvaluatedImage:
    """Join the ground truth that COCO's metric evaluates on with the detections."""
    labels = {id_: label for label, id_ in enumerate(cat_ids)}
    boxes = [one for one in coco.imgToAnns[found['img_id']] if one['category_id'] in labels]
    xywh = np.array([one['bbox'] for one in boxes], float).reshape(-1, 4)
    order = np.argsort(-found['scores'], kind='stable')
    return EvaluatedImage(
        info['img_path'],
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        np.array([labels[one['category_id']] for one in boxes], int),
        np.array([one.get('iscrowd', 0) for one in boxes], bool),
        *(found[key][order] for key in ('bboxes', 'scores', 'labels')),
    )


def above(image: EvaluatedImage, score_thr: float) -> EvaluatedImage:
    """Keep the detections of at least ``score_thr``."""
    count = int((image.scores >= score_thr).sum())
    return image._replace(boxes=image.boxes[:count], scores=image.scores[:count], labels=image.labels[:count])


def pairwise_ious(image: EvaluatedImage) -> NDArray:
    """IoU of detections and boxes, (N, G), as COCO has it: in a crowd the share of the detection."""
    if not len(image.boxes) or not len(image.gt_boxes):
        return np.zeros((len(image.boxes), len(image.gt_boxes)))  # pycocotools has a list here
    xyxy = [boxes.astype(float) for boxes in (image.boxes, image.gt_boxes)]
    xywh = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1) for boxes in xyxy]
    return mask.iou(*xywh, image.gt_crowds.astype(np.uint8).tolist())


def match(image: EvaluatedImage, score_thr: float) -> NDArray:
    """Match detections to boxes one to one, best first, boxes of the own class first, as COCO does at IoU 0.5.

    mmdet's confusion matrix counts a detection once for each box that it overlaps, so sums of its rows and columns mean
    nothing; here they are the numbers of boxes and detections.

    Returns:
        (N',), for each detection of at least ``score_thr`` the index of its box, ``NOTHING``, or ``CROWD`` if it lies
        in a region where detections do not count.
    """
    image = above(image, score_thr)
    matched, ious = np.full(len(image.scores), NOTHING), pairwise_ious(image)
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


class Confusions(NamedTuple):
    """What boxes of each class are detected as.

    ``matched`` (C + 1, C + 1) has each box and each detection once: rows are truth, the last one for no box; columns
    detections, the last one for missed. Of that last row, ``taken`` (C, C) are on a box which another detection has:
    off the diagonal an object has a second, wrong name; on it are duplicates. ``loose`` (C,) fit no box at IoU 0.5, but
    at 0.1.
    """

    matched: NDArray
    taken: NDArray
    loose: NDArray

    @property
    def table(self) -> NDArray:
        """All of it, (C + 3, C + 1): a row for each class, then :data:`OTHER_TRUTH`.

        A column adds up to the detections of a class, and a row to the boxes and the second names of a class.
        """
        doubles = np.diag(self.taken)
        others = [doubles, self.loose, self.matched[-1, :-1] - self.taken.sum(0) - self.loose]
        table = np.vstack([self.matched[:-1], np.pad(others, ((0, 0), (0, 1)))])
        table[: len(doubles), :-1] += self.taken - np.diag(doubles)
        return table

    @property
    def shares(self) -> NDArray:
        """:attr:`table` as shares of the boxes of each class; of the last rows, of all detections that have no box."""
        table, num_classes = self.table, len(self.loose)
        totals = np.append(self.matched[:-1].sum(1), [table[num_classes:].sum()] * len(OTHER_TRUTH))
        return table / totals[:, None].clip(1)


def count_confusions(images: list[EvaluatedImage], matches: list[NDArray], num_classes: int) -> Confusions:
    """Count what boxes are detected as, by the results of :func:`match`."""
    matched_counts = np.zeros((num_classes + 1, num_classes + 1), int)
    taken_counts = np.zeros((num_classes, num_classes), int)
    loose_counts = np.zeros(num_classes, int)
    for image, matched in zip(images, matches):
        labels, on = image.labels[: len(matched)], labels_of_boxes(image, matched)
        found, also = matched >= 0, (matched == NOTHING) & (on >= 0)
        np.add.at(matched_counts, (image.gt_labels[matched[found]], labels[found]), 1)
        np.add.at(matched_counts, (num_classes, labels[matched == NOTHING]), 1)
        np.add.at(matched_counts, (image.gt_labels[missed_boxes(image, matched)], num_classes), 1)
        np.add.at(taken_counts, (on[also], labels[also]), 1)
        np.add.at(loose_counts, labels[on == LOOSE], 1)
    return Confusions(matched_counts, taken_counts, loose_counts)


def labels_of_boxes(image: EvaluatedImage, matched: NDArray) -> NDArray:
    """Classes of the boxes that detections lie on, also if another detection has the box.

    Args:
        image: Truth and detections.
        matched: Result of :func:`match`.

    Returns:
        (N',), a class, or ``CROWD``, ``LOOSE`` for detections that fit their best box badly, ``NOTHING``.
    """
    ious = pairwise_ious(image)[: len(matched)] * ~image.gt_crowds
    ious = np.pad(ious, ((0, 0), (0, 1)))  # so that there is always a box to compare with
    best = np.select([ious.max(1) >= IOU_THR, ious.max(1) >= BACKGROUND_THR], [ious.argmax(1), LOOSE], NOTHING)
    labels = np.append(image.gt_labels, [LOOSE, CROWD, NOTHING])  # which are at -3, -2 and -1
    return labels[np.where(matched == NOTHING, best, matched)]


def missed_boxes(image: EvaluatedImage, matched: NDArray) -> NDArray:
    """Indices of the boxes that no detection is matched to, without crowds."""
    return np.setdiff1d(np.flatnonzero(~image.gt_crowds), matched)


def count_right(image: EvaluatedImage, matched: NDArray) -> int:
    """Number of detections that are matched to a box of their class."""
    found = matched >= 0
    return int((image.gt_labels[matched[found]] == image.labels[: len(matched)][found]).sum())


def f1_score(image: EvaluatedImage, matched: NDArray) -> float:
    """F1 of an image: 1 if everything is right or there is nothing, 0 if nothing is right."""
    total = int((matched != CROWD).sum() + (~image.gt_crowds).sum())
    return 2 * count_right(image, matched) / total if total else 1.0


def best_thresholds(evaluated: Evaluated) -> NDArray:
    """Score threshold at which the F1 of each class is highest at IoU 0.5, (C,); nan for classes without boxes."""
    precision, recall = evaluated.precision[0], evaluated.recall_thresholds[:, None]  # (R, C), (R, 1)
    best = (precision * recall / (precision + recall).clip(1e-9)).argmax(0)
    scores = np.take_along_axis(evaluated.scores[0], best[None], 0)[0]
    return np.where(np.isnan(precision).any(0), np.nan, scores)


def sample_path(image: EvaluatedImage) -> str:
    """File name of an image, to show."""
    return Path(image.path).name
