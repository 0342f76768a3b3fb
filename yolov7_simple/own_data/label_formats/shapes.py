"""Boxes, xyxy, around shapes that are none; y points down, and angles turn from x to y."""

from __future__ import annotations

import math
from collections.abc import Sequence

XYXY = tuple[float, float, float, float]


def box_around(points: Sequence[tuple[float, float]]) -> XYXY:
    """The box around some points."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)


def box_of_ellipse(cx: float, cy: float, rx: float, ry: float, radians: float = 0.0) -> XYXY:
    """The box around an ellipse that is turned about its centre."""
    w = math.hypot(rx * math.cos(radians), ry * math.sin(radians))
    h = math.hypot(rx * math.sin(radians), ry * math.cos(radians))
    return cx - w, cy - h, cx + w, cy + h


def box_of_rotated(box: XYXY, radians: float, pivot: tuple[float, float] | None = None) -> XYXY:
    """The box around a box that is turned about a point, or else its centre."""
    x1, y1, x2, y2 = box
    px, py = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    cos, sin = math.cos(radians), math.sin(radians)
    return box_around(
        [
            (px + (x - px) * cos - (y - py) * sin, py + (x - px) * sin + (y - py) * cos)
            for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
        ]
    )
