"""Advice on each type of error, with what it gives where the detections tell: NMS and thresholds are tried on them.

C classes, G boxes of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmcv.image import rescale_size
from mmengine.config import Config
from numpy.typing import NDArray

from ..models.prediction import TestOptions
from ..ops.nms import nms
from ..utils.configs import innermost_dataset, type_name
from .error_types import CORRECT, Errors, ErrorType, Losses, find_errors, mean_ap50, mend
from .matching import CROWD, Evaluated, EvaluatedImage, above

MIN_AP50 = 0.01  # AP50 from which a type of error matters,
MIN_COUNT_SHARE = 0.05  # or the share of the boxes that there are errors
IOU_THRESHOLDS = (0.65, 0.6, 0.55, 0.5, 0.45)  # of NMS, to try
TINY_SIDE = 8  # pixels in the network, below which little is learned

TYPE_NAMES = {
    ErrorType.CLASSIFICATION: 'classification',
    ErrorType.LOCALISATION: 'localisation',
    ErrorType.BOTH: 'both',
    ErrorType.DUPLICATE: 'duplicate',
    ErrorType.BACKGROUND: 'background',
    ErrorType.MISSED: 'missed',
}
TYPE_MEANINGS = {
    ErrorType.CLASSIFICATION: 'another class on an object that is there, also where its right box was found',
    ErrorType.LOCALISATION: 'the right class, but the box fits badly: IoU 0.1 to 0.5',
    ErrorType.BOTH: 'another class, and the box fits badly',
    ErrorType.DUPLICATE: 'a second box of the right class on an object',
    ErrorType.BACKGROUND: 'nothing is there that is labelled: IoU below 0.1 with every box',
    ErrorType.MISSED: 'an object on which there is no detection',
}


class Settings(NamedTuple):
    """What advice needs to know of a config: NMS, epochs of the training, and the size that images are resized to.

    ``options`` is None if the NMS is not known, or more than a threshold.
    """

    options: TestOptions | None
    epochs: int | None
    scale: tuple[int, int] | None

    @classmethod
    def from_cfg(cls, cfg: Config) -> Settings:
        """Read a config; what it does not say is None."""
        pipeline = innermost_dataset(cfg.test_dataloader.dataset).get('pipeline', ())
        scale = next((one.get('scale') for one in pipeline if type_name(one) == 'Resize'), None)
        test_cfg = cfg.model.get('test_cfg') or {}
        is_known = 'nms' in test_cfg or type_name(cfg.model.get('bbox_head') or {}) == 'YOLOv7SimpleHead'
        options = TestOptions.from_cfg(test_cfg) if is_known else None
        return cls(
            options if options is not None and options.is_plain_nms else None,
            (cfg.get('train_cfg') or {}).get('max_epochs'),
            tuple(scale) if isinstance(scale, (tuple, list)) else None,
        )

    @property
    def longer(self) -> str:
        """How to train longer, in words."""
        return 'train longer' + (f' (--epochs {2 * self.epochs}; now {self.epochs})' if self.epochs else ' (--epochs)')


def by_cost(losses: Losses) -> list[ErrorType]:
    """Types of error, the costliest first."""
    counts = losses.shown.counts()
    return sorted(ErrorType, key=lambda one: (-round(losses.gains[one], 3), -counts[one]))


def matters(losses: Losses) -> list[ErrorType]:
    """Types of error that are worth a word, the costliest first."""
    least, counts = MIN_COUNT_SHARE * len(losses.errors.gt_labels), losses.shown.counts()
    return [one for one in by_cost(losses) if losses.gains[one] >= MIN_AP50 or counts[one] > least]


def summarize(losses: Losses) -> str:
    """One line: AP50, and which types of error cost most of it."""
    costs = [f'{TYPE_NAMES[one]} {losses.gains[one]:.3f}' for one in matters(losses) if losses.gains[one] >= MIN_AP50]
    return f'AP50 {losses.ap50:.3f}; mending one type of error would add: {", ".join(costs) or "less than 0.01"}'


def advise(type_: ErrorType, losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """What to do about a type of error, in one or two sentences."""
    return ADVISERS[type_](losses, evaluated, settings)


def advise_on_classes(losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """Another class: one box for each object, and labels and length of the training."""
    wrong = losses.shown.types == ErrorType.CLASSIFICATION
    second = int(losses.shown.found[losses.shown.targets[wrong]].sum())
    words = f'{second} of {wrong.sum()} are a second name of an object whose right box was found. ' if second else ''
    options = settings.options
    if options is not None and not options.class_agnostic:
        tried = try_nms(losses, evaluated, ErrorType.CLASSIFICATION, [options.iou_threshold], True)
        if tried is not None:
            words += (
                'With --agnostic-nms, which tools/detect.py and tools/export_onnx.py have, each object gets one box, '
                f'whatever its class: {tried.words}. '
            )
    return f'{words}Check the labels of both classes, add images that show their difference, and {settings.longer}.'


def advise_on_fit(losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """Boxes that fit badly: neighbours and parts, the size of the images, the last stage."""
    wrong = losses.shown.types == ErrorType.LOCALISATION
    beside = int(losses.shown.found[losses.shown.targets[wrong]].sum())
    words = ''
    if beside:
        words = (
            f'{beside} of {wrong.sum()} are beside the right box of an object: look whether they show a neighbour that '
            'has no label, or a part. '
        )
    return (
        f'{words}For boxes that fit better, check that labels are drawn close to the objects, {settings.longer}, which '
        'lengthens the last stage with its L1 loss, and use a larger size of images (docs/image_sizes.md).'
    )


def advise_on_both(losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """Another class and a bad fit."""
    return (
        'Look at the picture: a neighbour without a label is to be labelled (tools/check_dataset.py shows what else is '
        f'wrong with the set); for a part of an object, or one that was not understood, {settings.longer}.'
    )


def advise_on_duplicates(losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """Second boxes: a lower threshold of NMS."""
    options, tried = settings.options, None
    if options is not None:
        lower = [one for one in IOU_THRESHOLDS if one < options.iou_threshold]
        tried = try_nms(losses, evaluated, ErrorType.DUPLICATE, lower, options.class_agnostic)
    if tried is None:
        return f'No lower threshold of NMS helps: {settings.longer}, so that one box of an object stands out.'
    return (
        f'Lower the threshold of NMS, which is {options.iou_threshold:g}: with {tried.iou_threshold:g} '
        f'(model.test_cfg.nms.iou_threshold in the config, or --iou-thr of tools/export_onnx.py) {tried.words}.'
    )


def advise_on_background(losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """Nothing there: labels that are missing, images without objects, the score threshold."""
    words = (
        'Look at the picture: an object without a label is to be labelled, since it also teaches the model not to see '
        'its kind; where nothing is, add images without any object, which training takes as background'
    )
    best = best_threshold(losses.errors)
    if best > losses.score_thr:
        gone = losses.shown.scores < best
        types = losses.shown.types[gone]
        words += (
            f'. With --score-thr {best:.2f} of tools/detect.py, at which F1 is highest, '
            f'{(types == ErrorType.BACKGROUND).sum()} of {losses.shown.counts()[ErrorType.BACKGROUND]} go, and '
            f'{(types == CORRECT).sum()} right ones with them'
        )
    return f'{words}.'


def advise_on_missed(losses: Losses, evaluated: Evaluated, settings: Settings) -> str:
    """Missed: scores below the threshold, tiny boxes, and otherwise more data and epochs."""
    missed, words = losses.shown.missed, []
    low = int((missed & losses.errors.found).sum())
    if low:
        best = best_threshold(losses.errors)
        where = f' (F1 is highest at --score-thr {best:.2f})' if best < losses.score_thr else ''
        words.append(f'{low} of {missed.sum()} are found with a score below {losses.score_thr:g}{where}.')
    sides = network_sides(losses.errors, evaluated, settings)
    tiny = 0 if sides is None else int((sides[missed] < TINY_SIDE).sum())
    if tiny:
        words.append(
            f'{tiny} of {missed.sum()} are smaller than {TINY_SIDE} pixels in the network: train on windows of the '
            'full images (tools/train.py --data with --tile), or at a larger size (docs/image_sizes.md).'
        )
    if not missed.any():
        return f'With a score of {losses.score_thr:g} or more none is missed.'
    if tiny < missed.sum():
        label = int(np.bincount(losses.shown.gt_labels[missed]).argmax())
        words.append(f'Add images of {evaluated.classes[label]}, the class missed most, and {settings.longer}.')
    return ' '.join(words)


ADVISERS = {
    ErrorType.CLASSIFICATION: advise_on_classes,
    ErrorType.LOCALISATION: advise_on_fit,
    ErrorType.BOTH: advise_on_both,
    ErrorType.DUPLICATE: advise_on_duplicates,
    ErrorType.BACKGROUND: advise_on_background,
    ErrorType.MISSED: advise_on_missed,
}


class Tried(NamedTuple):
    """An NMS that was tried on the detections, and what it changes, in words."""

    iou_threshold: float
    words: str


def try_nms(
    losses: Losses, evaluated: Evaluated, type_: ErrorType, iou_thresholds: Sequence[float], class_agnostic: bool
) -> Tried | None:
    """Try NMS on the detections that are left; the one with the highest F1 of what is seen, None if none raises it."""
    now, right = losses.shown.counts()[type_], (losses.shown.types == CORRECT).sum()
    best, highest = None, f1_of(losses.shown)
    for iou_threshold in iou_thresholds:
        # What has a lower score suppresses nothing of this.
        shown = (above(image, losses.score_thr) for image in evaluated.images)
        shown = find_errors([suppress_again(image, iou_threshold, class_agnostic) for image in shown])
        if f1_of(shown) > highest and shown.counts()[type_] < now:
            best, highest = (iou_threshold, shown), f1_of(shown)
    if best is None:
        return None
    iou_threshold, shown = best
    errors = find_errors([suppress_again(image, iou_threshold, class_agnostic) for image in evaluated.images])
    ap50 = mean_ap50(*mend(errors, None, len(evaluated.classes)))
    lost = right - (shown.types == CORRECT).sum()
    words = f'{now - shown.counts()[type_]} of {now} go' + (f', and {lost} of {right} right ones' if lost else '')
    return Tried(iou_threshold, f'{words} (AP50, which counts low scores too, {losses.ap50:.3f} -> {ap50:.3f})')


def suppress_again(image: EvaluatedImage, iou_threshold: float, class_agnostic: bool) -> EvaluatedImage:
    """Apply an NMS to the detections that another has left."""
    boxes, scores, labels = (torch.as_tensor(one) for one in (image.boxes, image.scores, image.labels))
    kept = nms(boxes, scores, iou_threshold, labels=None if class_agnostic else labels).numpy()
    return image._replace(boxes=image.boxes[kept], scores=image.scores[kept], labels=image.labels[kept])


def best_threshold(errors: Errors) -> float:
    """The score threshold with the highest F1 over all classes; 0 if nothing is right."""
    order = np.argsort(-errors.scores, kind='stable')
    order = order[errors.types[order] != CROWD]
    right = (errors.types[order] == CORRECT).cumsum()
    f1 = 2 * right / (np.arange(1, len(order) + 1) + len(errors.gt_labels))
    return float(errors.scores[order[f1.argmax()]]) if len(order) and right[-1] else 0.0


def f1_of(errors: Errors) -> float:
    """F1 of all detections and classes."""
    total = (errors.types != CROWD).sum() + len(errors.gt_labels)
    return float(2 * (errors.types == CORRECT).sum() / max(total, 1))


def network_sides(errors: Errors, evaluated: Evaluated, settings: Settings) -> NDArray | None:
    """Shorter side of all boxes of the truth in the image that the network sees, in pixels, (G,); None if unknown."""
    if settings.scale is None:
        return None
    sides = np.zeros(len(errors.gt_labels))
    for i in np.unique(errors.gt_images):
        info, own = evaluated.dataset.get_data_info(int(i)), errors.gt_images == i
        factor = rescale_size((info['width'], info['height']), settings.scale, return_scale=True)[1]
        boxes = evaluated.images[i].gt_boxes[errors.gt_indices[own]]
        sides[own] = (boxes[:, 2:] - boxes[:, :2]).min(1) * factor
    return sides
