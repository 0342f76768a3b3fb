"""Draw detections on an image. N boxes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

FONT = cv2.FONT_HERSHEY_DUPLEX
MIN_CANVAS = 400  # pixels; an image whose longer side is shorter is enlarged, so that its labels can be read
GOLDEN_RATIO = 0.618034


def class_color(label: int) -> tuple[int, int, int]:
    """Colour of a class, BGR: bright, the same in every run, and unlike those of the classes before it."""
    hue = (0.58 + label * GOLDEN_RATIO) % 1
    value = 255 if label % 2 == 0 else 215
    pixel = np.array([[[round(hue * 179), 225, value]]], np.uint8)
    return tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist())


def shared_area(rectangle: NDArray, others: NDArray) -> float:
    """Area that one rectangle (4,) shares with others (N, 4), xyxy, in pixels, summed."""
    sides = np.minimum(rectangle[2:], others[:, 2:]) - np.maximum(rectangle[:2], others[:, :2])
    return float(sides.clip(min=0).prod(1).sum())


def place_label(
    box: NDArray, size: tuple[int, int], canvas: tuple[int, int], boxes: NDArray, taken: NDArray
) -> NDArray:
    """Find room for a label inside the image: beside its box, not over other labels, and if possible not over boxes.

    Args:
        box: (4,), the box that the label names; this and all others are xyxy in pixels.
        size: Width and height of the label.
        canvas: Width and height of the image.
        boxes: (N, 4), all boxes.
        taken: (M, 4), the labels placed so far.

    Returns:
        (4,), the label. It is inside its own box only if there is no room around it.
    """
    x1, y1, x2, y2 = box
    width, height = size
    spots = [
        (x1, y1 - height),  # above, flush left
        (x1, y2),  # below
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x2, y1),  # to the right
        (x1 - width, y1),  # to the left
        (x2, y2 - height),
        (x1 - width, y2 - height),
        (x1, y1),  # within
        (x2 - width, y2 - height),
        ((x1 + x2 - width) / 2, (y1 + y2 - height) / 2),
    ]
    limit = np.maximum(np.array(canvas) - size, 0)
    best, best_cost = None, np.inf
    for rank, spot in enumerate(spots):
        corner = np.clip(spot, 0, limit)
        rectangle = np.concatenate([corner, corner + size])
        # A label over another makes both unreadable; one over its own box hides the object.
        cost = (
            20 * shared_area(rectangle, taken) + 4 * shared_area(rectangle, box[None]) + shared_area(rectangle, boxes)
        )
        cost += rank + np.abs(corner - spot).sum()
        if cost < best_cost:
            best, best_cost = rectangle, cost
    return best


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
    canvas = np.repeat(np.repeat(image, zoom, 0), zoom, 1)
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
    for i in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind='stable'):
        corners = [tuple(corner) for corner in boxes[i].round().astype(int).reshape(2, 2).tolist()]
        cv2.rectangle(canvas, *corners, color_of(int(labels[i])), line)

    outer = boxes + np.array([-line, -line, line, line]) / 2
    taken = np.zeros((0, 4))
    for i in range(len(boxes)):
        text = classes[labels[i]] if scores is None else f'{classes[labels[i]]} {scores[i]:.2f}'
        (text_width, text_height), baseline = cv2.getTextSize(text, FONT, font_scale, thickness)
        margin = max(2, text_height // 5)
        size = (text_width + 2 * margin, text_height + baseline + margin)
        x1, y1, x2, y2 = place_label(outer[i], size, (width, height), outer, taken).round().astype(int).tolist()
        taken = np.concatenate([taken, [[x1, y1, x2, y2]]])
        color = color_of(int(labels[i]))
        luminance = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
        ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        cv2.putText(canvas, text, (x1 + margin, y2 - baseline), FONT, font_scale, ink, thickness, cv2.LINE_AA)
    return canvas
