"""Why AP50 is lost: the types of error of TIDE (Bolya et al., 2020), and the AP50 that mending each would give.

Boxes are matched as COCO does at IoU 0.5: class by class, best detection first. N detections and G boxes of the truth,
of an image or of all images; C classes. Crowds are no boxes; detections of their class in them are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .matching import BACKGROUND_THR, CROWD, IOU_THR, NOTHING, EvaluatedImage, above, pairwise_ious

RECALLS = np.linspace(0, 1, 101)  # COCO's


class ErrorType(IntEnum):
    """Why a detection is wrong, the first that holds, or a box is not found.

    A box may have its right detection, too: the second name of an object is a classification error.
    """

    LOCALISATION = 0  # the best box of its class is between both thresholds
    CLASSIFICATION = 1  # on a box of another class
    DUPLICATE = 2  # on a box of its class, which a better detection has
    BACKGROUND = 3  # on nothing
    BOTH = 4  # between both thresholds, and of another class
    MISSED = 5  # a box without a detection, and without one of the first two errors


CORRECT = -1  # neither an error nor CROWD, which does not count


class Errors(NamedTuple):
    """All detections with their types, and all boxes of the truth but crowds.

    ``images`` and ``gt_images`` are indices of images, ``indices`` and ``gt_indices`` those in the image.
    """

    images: NDArray  # (N,)
    indices: NDArray  # (N,)
    scores: NDArray  # (N,)
    labels: NDArray  # (N,)
    types: NDArray  # (N,): ErrorType, CORRECT or CROWD
    targets: NDArray  # (N,): the box that it is about, as an index of all boxes; NOTHING on the background
    gt_images: NDArray  # (G,)
    gt_indices: NDArray  # (G,)
    gt_labels: NDArray  # (G,)
    gt_areas: NDArray  # (G,), in pixels of the file
    found: NDArray  # (G,), bool
    missed: NDArray  # (G,), bool

    def counts(self) -> NDArray:
        """How often each type occurs, (6,)."""
        counts = np.bincount(self.types[self.types >= 0], minlength=len(ErrorType))
        counts[ErrorType.MISSED] = self.missed.sum()
        return counts


class Losses(NamedTuple):
    """What costs AP50.

    ``gains`` (6,): how much higher AP50 is without each type, all others as they are; they do not add up to the rest.
    ``ap50_of_right``: that of the right detections alone.
    ``shown``: the errors of the detections with a score of at least ``score_thr``, which a user sees.
    """

    ap50: float
    gains: NDArray
    ap50_of_right: float
    errors: Errors
    shown: Errors
    score_thr: float


def find_losses(images: Sequence[EvaluatedImage], score_thr: float, num_classes: int) -> Losses:
    """Find all errors, and what each type costs.

    Args:
        images: Truth and detections.
        score_thr: Lowest score of a detection that a user sees.
        num_classes: C.
    """
    errors = find_errors(images)
    shown = find_errors([above(image, score_thr) for image in images])
    ap50 = mean_ap50(*mend(errors, None, num_classes))
    mended = [mean_ap50(*mend(errors, one, num_classes)) for one in ErrorType]
    right = errors.types == CORRECT
    num_boxes = np.bincount(errors.gt_labels, minlength=num_classes)
    return Losses(
        ap50,
        np.nan_to_num(np.array(mended) - ap50, nan=1.0 - ap50 if len(errors.gt_labels) else 0.0),
        mean_ap50(errors.scores[right], errors.labels[right], right[right], num_boxes),
        errors,
        shown,
        score_thr,
    )


def find_errors(images: Sequence[EvaluatedImage]) -> Errors:
    """Find the type of each detection, and the boxes that are missed."""
    types, targets, missed = zip(*map(classify, images))
    first = np.cumsum([0, *map(len, missed)])
    types, missed, gt_labels = map(
        concatenate, (types, missed, (image.gt_labels[~image.gt_crowds] for image in images))
    )
    targets = concatenate(np.where(one == NOTHING, one, one + start) for one, start in zip(targets, first))
    gt_boxes = concatenate(image.gt_boxes[~image.gt_crowds] for image in images)
    found = np.zeros(len(missed), bool)
    found[targets[types == CORRECT]] = True
    return Errors(
        *locate([np.ones(len(image.scores), bool) for image in images]),
        concatenate(image.scores for image in images),
        concatenate(image.labels for image in images),
        types,
        targets,
        *locate([~image.gt_crowds for image in images]),
        concatenate(image.gt_labels[~image.gt_crowds] for image in images),
        (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(1),
        found,
        missed,
    )


def concatenate(arrays: Iterable[NDArray]) -> NDArray:
    """Join arrays of all images."""
    return np.concatenate(list(arrays))


def locate(masks: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
    """Indices of the images, and those in the image, of what is true in the masks of all images."""
    indices = [np.flatnonzero(one) for one in masks]
    return np.repeat(np.arange(len(masks)), [len(one) for one in indices]), concatenate(indices)


def classify(image: EvaluatedImage) -> tuple[NDArray, NDArray, NDArray]:
    """Find the errors of an image.

    Returns:
        Types (N,), boxes that they are about (N,) as indices of those that are no crowds, and which of these boxes are
        missed (G,).
    """
    ious = pairwise_ious(image)
    is_own = image.labels[:, None] == image.gt_labels
    in_crowd = (is_own & (ious >= IOU_THR))[:, image.gt_crowds].any(1)
    # A last column of zeros, so that there is always a box to compare with.
    ious, is_own = (np.pad(one[:, ~image.gt_crowds], ((0, 0), (0, 1))) for one in (ious, is_own))
    own, other = ious * is_own, ious * ~is_own
    matched = match_class_by_class(own)
    best_own, best_other, best = own.max(1), other.max(1), ious.max(1)
    cases = [
        (matched != NOTHING, CORRECT, matched),
        (in_crowd, CROWD, NOTHING),
        ((best_own >= BACKGROUND_THR) & (best_own < IOU_THR), ErrorType.LOCALISATION, own.argmax(1)),
        (best_other >= IOU_THR, ErrorType.CLASSIFICATION, other.argmax(1)),
        (best_own >= IOU_THR, ErrorType.DUPLICATE, own.argmax(1)),
        (best < BACKGROUND_THR, ErrorType.BACKGROUND, NOTHING),
    ]
    conditions, types, targets = zip(*cases)
    types = np.select(conditions, types, ErrorType.BOTH)
    targets = np.select(conditions, targets, ious.argmax(1))
    missed = np.ones(ious.shape[1] - 1, bool)
    missed[targets[np.isin(types, (CORRECT, ErrorType.LOCALISATION, ErrorType.CLASSIFICATION))]] = False
    return types, targets, missed


def match_class_by_class(own: NDArray) -> NDArray:
    """Give each detection, best first, the free box of its class that it overlaps most.

    Args:
        own: IoU, (N, G), 0 where the class is another.

    Returns:
        (N,), the box or ``NOTHING``.
    """
    matched = np.full(len(own), NOTHING)
    own = own.copy()
    for i in np.flatnonzero((own >= IOU_THR).any(1)):
        best = own[i].argmax()
        if own[i, best] >= IOU_THR:
            matched[i] = best
            own[:, best] = 0
    return matched


def mend(errors: Errors, type_: ErrorType | None, num_classes: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """What is left once a type of error is mended; None: all that counts.

    As TIDE has it: of the detections of another class, or that fit badly, the best of each box that is not found
    becomes right, and the rest is taken out, like those of the other types. Boxes that are missed are taken out of the
    truth, as the score that a detection of them would have is unknown. (In tidecv only the better of a box's errors of
    both types becomes right, so both gains are a little smaller there.)

    Returns:
        Scores, labels and whether they are right of the N' detections that are left, and the boxes of each class, (C,).
    """
    labels, right, kept = errors.labels.copy(), errors.types == CORRECT, errors.types != CROWD
    if type_ is not None:
        kept &= errors.types != type_
    if type_ in (ErrorType.LOCALISATION, ErrorType.CLASSIFICATION):
        best = best_of_boxes(errors, type_)
        kept[best] = right[best] = True
        labels[best] = errors.gt_labels[errors.targets[best]]
    gt_labels = errors.gt_labels[~errors.missed] if type_ is ErrorType.MISSED else errors.gt_labels
    return errors.scores[kept], labels[kept], right[kept], np.bincount(gt_labels, minlength=num_classes)


def best_of_boxes(errors: Errors, type_: ErrorType) -> NDArray:
    """Of the detections with a type of error, the best of each box that is not found: indices."""
    wrong = np.flatnonzero(errors.types == type_)
    wrong = wrong[~errors.found[errors.targets[wrong]]]
    wrong = wrong[np.argsort(-errors.scores[wrong], kind='stable')]
    return wrong[np.unique(errors.targets[wrong], return_index=True)[1]]


def mean_ap50(scores: NDArray, labels: NDArray, right: NDArray, num_boxes: NDArray) -> float:
    """Mean AP over the classes that have boxes, as COCO has it; nan without any.

    Args:
        scores: (N,).
        labels: (N,).
        right: (N,), bool: whether a detection has a box.
        num_boxes: (C,), boxes of each class.
    """
    aps = [
        average_precision(scores[labels == label], right[labels == label], num_boxes[label])
        for label in np.flatnonzero(num_boxes)
    ]
    return float(np.mean(aps)) if aps else np.nan


def average_precision(scores: NDArray, right: NDArray, num_boxes: int) -> float:
    """AP of a class: the mean over recalls of the best precision at a recall or a higher one.

    Args:
        scores: (N,).
        right: (N,), bool.
        num_boxes: Boxes of the class, at least 1.
    """
    right = right[np.argsort(-scores, kind='stable')].cumsum()
    precision = right / np.arange(1, len(right) + 1)
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return float(precision[np.searchsorted(right / num_boxes, RECALLS)].mean())
