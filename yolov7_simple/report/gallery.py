"""The commonest error of each type, drawn: a part of an image with the box that is there and what was detected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime.drawing import draw_detections
from ..runtime.images import read_image
from .error_types import ErrorType, Losses
from .explain import CONFUSED, MISSED, RIGHT, WRONG, draw_plain
from .matching import BACKGROUND_THR, NOTHING, EvaluatedImage, above, pairwise_ious

SIDE = 480  # pixels of the longer side of a picture
MIN_PART = 48  # pixels of the image in it, so that something can be recognised
AROUND = 0.6  # around the boxes, of their longer side
OTHER = (255, 170, 60)  # BGR
MAX_OTHERS = 5  # other detections in a picture
LINE = 6  # pixels of the error


class Case(NamedTuple):
    """An error to draw: indices of the image, of the detection and of the box in it (None: there is none), in words."""

    image: int
    detection: int | None
    box: int | None
    words: str


def find_case(losses: Losses, type_: ErrorType, classes: Sequence[str]) -> Case:
    """Choose the error with the highest score of the commonest kind, those with the same classes.

    Of missed boxes, which have no score, it is the one of the median size. Errors that a user sees come first.

    Args:
        losses: All errors, at least one of them of the type.
        type_: The type.
        classes: Names of the classes.
    """
    errors = losses.shown if losses.shown.counts()[type_] else losses.errors
    if type_ is ErrorType.MISSED:
        label = int(np.bincount(errors.gt_labels[errors.missed]).argmax())
        missed = np.flatnonzero(errors.missed & (errors.gt_labels == label))
        box = missed[np.argsort(errors.gt_areas[missed], kind='stable')[len(missed) // 2]]
        words = f'{classes[label]}, missed {count_words(len(missed))}'
        return Case(int(errors.gt_images[box]), None, int(errors.gt_indices[box]), words)
    wrong = np.flatnonzero(errors.types == type_)
    targets = errors.targets[wrong]
    has_box = targets != NOTHING
    truth = np.where(has_box, errors.gt_labels[targets], NOTHING)
    beside = has_box & errors.found[targets] & (type_ is ErrorType.LOCALISATION)
    kinds = np.stack([truth, errors.labels[wrong], beside], 1)
    kinds, which, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    common = counts.argmax()
    wrong = wrong[which.ravel() == common]
    best = wrong[errors.scores[wrong].argmax()]
    truth, label, _ = kinds[common]
    target = errors.targets[best]
    found = target != NOTHING and errors.found[target]
    words = {
        ErrorType.CLASSIFICATION: f'{classes[truth]}, {"also " if found else ""}called {classes[label]}',
        ErrorType.LOCALISATION: f'{classes[label]}, a box that fits badly{" beside the right one" if found else ""}',
        ErrorType.BOTH: f'{classes[label]}, fitting badly on {classes[truth]}',
        ErrorType.DUPLICATE: f'{classes[label]}, a second box',
        ErrorType.BACKGROUND: f'{classes[label]} where nothing is labelled',
    }[type_]
    return Case(
        int(errors.images[best]),
        int(errors.indices[best]),
        None if target == NOTHING else int(errors.gt_indices[target]),
        f'{words}, {count_words(len(wrong))}',
    )


def count_words(count: int) -> str:
    """How often, in words."""
    return 'once' if count == 1 else f'{count} times'


def draw_case(image: EvaluatedImage, case: Case, classes: Sequence[str], score_thr: float) -> NDArray[np.uint8]:
    """Draw an error: truth in white, or yellow if missed; other detections on it in blue; the error in red, or violet.

    Args:
        image: Truth and detections.
        case: The error.
        classes: Names of the classes.
        score_thr: Lowest score of the other detections.

    Returns:
        A part of the image with boxes, BGR.
    """
    focus = np.concatenate(
        [
            image.boxes[[] if case.detection is None else [case.detection]],
            image.gt_boxes[[] if case.box is None else [case.box]],
        ]
    )
    shown = above(image, score_thr)
    ious = pairwise_ious(shown._replace(gt_boxes=focus, gt_crowds=np.zeros(len(focus), bool)))
    others = np.flatnonzero((ious >= BACKGROUND_THR).any(1))
    others = others[others != case.detection][:MAX_OTHERS]
    truths = np.flatnonzero(~image.gt_crowds)
    truths = truths[truths != case.box]
    near = pairwise_ious(image._replace(boxes=focus))[:, truths].max(0) >= BACKGROUND_THR
    drawn = [(image.gt_boxes[i], f'{classes[image.gt_labels[i]]}: truth', RIGHT) for i in truths[near]]
    drawn += [(image.boxes[i], f'{classes[image.labels[i]]} {image.scores[i]:.2f}', OTHER) for i in others]
    if case.box is not None:
        color, word = (MISSED, 'missed') if case.detection is None else (RIGHT, 'truth')
        drawn.append((image.gt_boxes[case.box], f'{classes[image.gt_labels[case.box]]}: {word}', color))
    if case.detection is not None:
        label = image.labels[case.detection]
        is_confused = case.box is not None and label != image.gt_labels[case.box]
        text = f'{classes[label]} {image.scores[case.detection]:.2f}'
        drawn.append((image.boxes[case.detection], text, CONFUSED if is_confused else WRONG))

    pixels = read_image(image.path, None)
    left, top, right, bottom = part_around(focus, pixels.shape[1], pixels.shape[0])
    scale = SIDE / max(right - left, bottom - top)
    part = cv2.resize(pixels[top:bottom, left:right], None, fx=scale, fy=scale,
                      interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)  # fmt: skip
    height, width = part.shape[:2]
    boxes, texts, colors = zip(*drawn)

    def place(boxes: NDArray) -> NDArray:
        return ((boxes - [left, top, left, top]) * scale).clip(0, [width - 1, height - 1] * 2)

    far = place(image.gt_boxes[truths[~near]])
    part = draw_plain(part, far[((far[:, 2:] - far[:, :2]) >= 1).all(1)])
    boxes = place(np.array(boxes))
    x1, y1, x2, y2 = boxes[-1].round().astype(int).tolist()
    cv2.rectangle(part, (x1, y1), (x2, y2), colors[-1], LINE)
    return draw_detections(part, boxes, None, np.arange(len(boxes)), texts, colors)


def part_around(boxes: NDArray, width: int, height: int) -> tuple[int, int, int, int]:
    """A square around boxes (N, 4), as far as it is in the image: left, top, right and bottom."""
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    half = max((high - low).max() * (0.5 + AROUND), MIN_PART / 2)
    center = np.clip((low + high) / 2, 0, [width - 1, height - 1])
    left, top = np.floor((center - half).clip(0)).astype(int).tolist()
    right, bottom = np.ceil(np.minimum(center + half, [width, height])).astype(int).tolist()
    return left, top, max(right, left + 1), max(bottom, top + 1)
