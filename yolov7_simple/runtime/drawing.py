"""Draw detections on an image. N boxes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .label_places import place_labels

FONT = cv2.FONT_HERSHEY_DUPLEX
MIN_CANVAS = 400  # pixels; an image whose longer side is shorter is enlarged, so that its labels can be read
GOLDEN_RATIO = 0.618034


@cache
def class_color(label: int) -> tuple[int, int, int]:
    """Colour of a class, BGR: bright, the same in every run, and unlike those of the classes before it."""
    hue = (0.58 + label * GOLDEN_RATIO) % 1
    value = 255 if label % 2 == 0 else 215
    pixel = np.array([[[round(hue * 179), 225, value]]], np.uint8)
    return tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist())


def draw_detections(
    image: NDArray[np.uint8],
    boxes: NDArray,
    scores: NDArray | None,
    labels: NDArray,
    classes: Sequence[str],
    colors: Sequence[tuple[int, int, int]] | None = None,
    enlarge: bool = True,
) -> NDArray[np.uint8]:
    """Draw boxes with labels that scale with the image.

    Args:
        image: (H, W, 3), BGR.
        boxes: (N, 4), xyxy in pixels.
        scores: (N,), or None for labels without scores.
        labels: (N,), indices of classes.
        classes: Names of the classes.
        colors: BGR of each class; None: :func:`class_color`.
        enlarge: Whether an image too small for readable labels is enlarged by a whole number.

    Returns:
        A new image.
    """
    zoom = min(8, max(1, -(-MIN_CANVAS // max(image.shape[:2])))) if enlarge else 1
    canvas = np.repeat(np.repeat(image, zoom, 0), zoom, 1) if zoom > 1 else image.copy()
    height, width = canvas.shape[:2]
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    visible = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)  # boxes outside of the image were clipped to a line
    boxes, labels = boxes[visible] * zoom, np.asarray(labels)[visible]
    scores = None if scores is None else np.asarray(scores)[visible]
    line = max(1, round(min(height, width) / 240))
    color_of = class_color if colors is None else colors.__getitem__
    font_scale = max(0.4, min(height, width) / 1000)
    thickness = max(1, round(font_scale * 1.2))

    # Small boxes are drawn last, so that large ones do not hide them.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind='stable')
    corners = boxes.round().astype(int)
    for (x1, y1, x2, y2), label in zip(corners[order].tolist(), labels[order].tolist()):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color_of(label), line)

    outer = boxes + np.array([-line, -line, line, line]) / 2
    texts = [classes[label] for label in labels.tolist()]
    if scores is not None:
        texts = [f'{text} {score:.2f}' for text, score in zip(texts, scores.tolist())]
    measured = [cv2.getTextSize(text, FONT, font_scale, thickness) for text in texts]
    margins = [max(2, text_height // 5) for (_, text_height), _ in measured]
    sizes = [
        (width + 2 * margin, height + baseline + margin)
        for ((width, height), baseline), margin in zip(measured, margins)
    ]
    places = place_labels(outer, np.array(sizes).reshape(-1, 2), canvas.shape[1::-1]).tolist()
    for text, label, (x1, y1, x2, y2), (_, baseline), margin in zip(texts, labels.tolist(), places, measured, margins):
        color = color_of(label)
        luminance = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
        ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        cv2.putText(canvas, text, (x1 + margin, y2 - baseline), FONT, font_scale, ink, thickness, cv2.LINE_AA)
    return canvas
