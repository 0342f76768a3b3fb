"""Find room for the labels of boxes, in a time that grows with their number alone. N boxes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_MAP_CELLS = 1e6  # of the map of what is covered; in larger images, a cell is several pixels
# A label over another makes both unreadable; one over its own box hides the object.
OVER_LABEL, OVER_OWN_BOX = 20, 4


def place_labels(boxes: NDArray, sizes: NDArray, canvas: tuple[int, int]) -> NDArray[np.int64]:
    """Find room for labels inside the image: beside their boxes, not over each other, and if possible not over boxes.

    Args:
        boxes: (N, 4), xyxy in pixels, those whose labels choose first in front.
        sizes: (N, 2), width and height of the labels.
        canvas: Width and height of the image.

    Returns:
        (N, 4), the labels, xyxy. One is inside its own box only if there is no room around it.
    """
    if not len(boxes):
        return np.zeros((0, 4), np.int64)
    spots = spots_beside(boxes, sizes)
    corners = np.clip(spots, 0, np.maximum(np.array(canvas) - sizes, 0)[:, None])
    places = np.concatenate([corners, corners + sizes[:, None]], 2)
    own = np.minimum(places[..., 2:], boxes[:, None, 2:]) - np.maximum(places[..., :2], boxes[:, None, :2])
    cell = int(np.ceil(np.sqrt(max(1, canvas[0] * canvas[1] / MAX_MAP_CELLS))))
    costs = OVER_OWN_BOX * own.clip(min=0).prod(2) + covered_area(places, boxes, canvas, cell)
    costs += np.arange(spots.shape[1]) + np.abs(corners - spots).sum(2)

    places = places.round().astype(int)
    # Flat lists: millions of small ones would keep the garbage collector busy.
    order = np.argsort(costs, 1, kind='stable')
    costs = np.take_along_axis(costs, order, 1).ravel().tolist()
    in_cells = np.concatenate([places[..., :2] // cell, -(-places[..., 2:] // cell)], 2)
    in_cells = np.take_along_axis(in_cells, order[..., None], 1).ravel().tolist()
    taken = np.zeros((canvas[1] // cell + 2, canvas[0] // cell + 2), np.uint8)
    chosen, count = [], order.shape[1]
    for start in range(0, len(costs), count):
        best, best_cost = start, np.inf
        for spot in range(start, start + count):
            if costs[spot] >= best_cost:
                break  # nor is any of the others better
            x1, y1, x2, y2 = in_cells[4 * spot : 4 * spot + 4]
            cost = costs[spot] + OVER_LABEL * cell * cell * cv2.countNonZero(taken[y1:y2, x1:x2])
            if cost < best_cost:
                best, best_cost = spot, cost
        x1, y1, x2, y2 = in_cells[4 * best : 4 * best + 4]
        taken[y1:y2, x1:x2] = 1
        chosen.append(best - start)
    chosen = order[np.arange(len(boxes)), chosen]
    return places[np.arange(len(boxes)), chosen]


def spots_beside(boxes: NDArray, sizes: NDArray) -> NDArray:
    """Upper left corners that the labels may have, the better ones first, (N, 11, 2)."""
    (x1, y1, x2, y2), (width, height) = boxes.T, sizes.T
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
    return np.array(spots).transpose(2, 0, 1)


def covered_area(places: NDArray, boxes: NDArray, canvas: tuple[int, int], cell: int) -> NDArray:
    """Area that each place (..., 4) shares with the boxes (N, 4), summed over these, from one map of their number."""
    width, height = canvas[0] // cell + 2, canvas[1] // cell + 2
    limit = (width - 1, height - 1) * 2
    x1, y1, x2, y2 = (boxes / cell).round().clip(0, limit).astype(int).T
    steps = np.zeros((height, width), np.int32)
    for x, y, step in ((x1, y1, 1), (x2, y1, -1), (x1, y2, -1), (x2, y2, 1)):
        np.add.at(steps, (y, x), step)
    sums = cv2.integral(steps.cumsum(0).cumsum(1).astype(np.float64))
    x1, y1, x2, y2 = np.moveaxis((places / cell).round().clip(0, limit).astype(int), -1, 0)
    return cell * cell * (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1])
