"""Windows of large pictures, and one detection of each object in them."""

from itertools import pairwise

import numpy as np
import pytest

from yolov7_simple.runtime.tiles import Tiling, detect_in_views, fit_view, merge_views

PICTURE = (0, 0, 200, 100)
LEFT, RIGHT = (0, 0, 110, 100), (90, 0, 200, 100)
NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def found(*rows):
    """Detections of a view from (x1, y1, x2, y2, score[, label])."""
    rows = [(*row, 0) if len(row) == 5 else row for row in rows]
    values = np.array(rows, np.float32).reshape(-1, 6)
    return values[:, :4], values[:, 4], values[:, 5].astype(np.int64)


def merge(*views, **options):
    """Merge what is found in the whole picture, in its left and in its right part; boxes and scores as lists."""
    boxes, scores, labels = merge_views(np.array([PICTURE, LEFT, RIGHT]), views, 0.7, **options)
    assert (np.diff(scores) <= 0).all() and len(boxes) == len(scores) == len(labels)
    return [(*map(int, box), round(float(score), 3)) for box, score in zip(boxes.round(), scores)]


@pytest.mark.parametrize(('height', 'width'), [(100, 100), (101, 64), (333, 1000), (1920, 2560), (64, 5000)])
@pytest.mark.parametrize('overlap', [0, 0.2, 0.5, 0.9])
def test_views_cover_the_picture(height, width, overlap):
    whole, *windows = Tiling(100, overlap, 64).views(height, width).tolist()
    assert whole == [0, 0, width, height]
    assert bool(windows) == (max(height, width) > 100)
    covered = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in windows:
        assert (x2 - x1, y2 - y1) == (min(width, 100), min(height, 100)) and x1 >= 0 and y1 >= 0
        covered[y1:y2, x1:x2] = True
    assert covered.all() or not windows
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        assert all(b - a <= 100 * (1 - overlap) + 1 for a, b in pairwise(starts))


def test_an_object_that_two_views_see_is_found_once():
    # Tiny, so that a pixel is much: an IoU of 0.6.
    assert merge(NOTHING, found((94, 40, 104, 50, 0.8)), found((95, 41, 106, 51, 0.9))) == [(95, 41, 106, 51, 0.9)]


@pytest.mark.parametrize('whole_score', [0.9, 0.4])
def test_a_cut_box_does_not_stay_beside_the_whole_one(whole_score):
    # 80 to 130: the left window ends at 110.
    whole = (80, 20, 130, 60, whole_score)
    cut = (80, 20, 110, 60, 0.8)
    assert merge(found(whole), found(cut), NOTHING) == [(80, 20, 130, 60, max(whole_score, 0.8))]
    # Even a small part of it.
    assert merge(NOTHING, found((100, 20, 110, 60, 0.8)), found((100, 20, 150, 60, 0.9))) == [(100, 20, 150, 60, 0.9)]


def test_a_weak_whole_box_does_not_replace_a_sure_cut_one():
    found_twice = merge(found((80, 20, 130, 60, 0.1)), found((80, 20, 110, 60, 0.8)), NOTHING)
    assert found_twice == [(80, 20, 110, 60, 0.8)]


def test_what_a_window_holds_is_left_to_the_windows():
    assert merge(found((20, 20, 40, 40, 0.9), (80, 20, 130, 60, 0.8)), NOTHING, NOTHING) == [(80, 20, 130, 60, 0.8)]
    # At the border of the picture nothing is cut.
    assert merge(found((0, 0, 100, 100, 0.9), (0, 0, 110, 100, 0.8)), NOTHING, NOTHING) == [(0, 0, 110, 100, 0.8)]
    boxes, *_ = merge_views(np.array([PICTURE]), [found((20, 20, 40, 40, 0.9))], 0.7)
    assert len(boxes) == 1  # of a picture without windows


def test_two_parts_of_an_object_that_no_view_sees_whole_become_one():
    parts = found((60, 20, 110, 60, 0.8)), found((90, 21, 150, 60, 0.7))
    assert merge(NOTHING, *parts) == [(60, 20, 150, 60, 0.8)]


def test_neighbours_in_a_crowd_stay_two():
    # They overlap by an IoU of 0.6, in both views.
    a, b = (92, 40, 102, 60), (94, 41, 104, 61)
    left, right = found((*a, 0.9), (*b, 0.8)), found((*b, 0.95), (*a, 0.7))
    assert merge(NOTHING, left, right) == [(*b, 0.95), (*a, 0.9)]
    # One view sees only one of them, and the other one's better box may take that one's place.
    assert len(merge(NOTHING, found((*a, 0.9)), found((*b, 0.95), (*a, 0.7)))) == 2


def test_neighbours_at_a_border_stay_two():
    # The left one ends where the left window does, and the right one begins there.
    assert len(merge(NOTHING, found((70, 20, 109, 60, 0.9)), found((110, 20, 150, 60, 0.8)))) == 2
    # Of the right one the left window sees a little.
    left, right = found((70, 20, 106, 60, 0.9), (107, 20, 110, 60, 0.3)), found((107, 20, 150, 60, 0.8))
    assert merge(NOTHING, left, right) == [(70, 20, 106, 60, 0.9), (107, 20, 150, 60, 0.8)]


def test_classes_are_merged_apart_unless_nms_is_agnostic():
    two = NOTHING, found((94, 40, 104, 50, 0.8, 0)), found((94, 40, 104, 50, 0.9, 1))
    assert len(merge(*two)) == 2 and len(merge(*two, agnostic=True)) == 1


def test_nothing_is_found():
    boxes, scores, labels = merge_views(np.array([PICTURE]), [NOTHING], 0.7)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def look(objects, labels, view, rng, jitter):
    """What a detector finds in a view: of each object what is seen of it, if that is not too little."""
    seen = np.concatenate([np.maximum(objects[:, :2], view[:2]), np.minimum(objects[:, 2:], view[2:])], 1)
    sides = (seen[:, 2:] - seen[:, :2]).clip(0)
    kept = np.flatnonzero(sides.prod(1) > 0.15 * (objects[:, 2:] - objects[:, :2]).prod(1))
    moved = seen[kept] + rng.uniform(-jitter, jitter, (len(kept), 4)) * np.tile(sides[kept], 2)
    moved = np.concatenate([np.maximum(moved[:, :2], view[:2]), np.minimum(moved[:, 2:], view[2:])], 1)
    return moved.astype(np.float32), rng.uniform(0.3, 1, len(kept)).astype(np.float32), labels[kept]


@pytest.mark.parametrize('seed', range(20))
def test_each_object_of_a_crowd_is_found_once(seed):
    """Objects of all sizes, close to each other, in a picture of many windows."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(200, 900, 2)
    side = rng.uniform(6, 60)
    objects, labels = [], []
    for _ in range(300):
        size = side * rng.uniform(0.6, 1.4, 2)
        corner = rng.uniform(0, (width, height) - size) if (size < (width, height)).all() else None
        if corner is None:
            continue
        box = np.array([*corner, *(corner + size)])
        others = np.array(objects).reshape(-1, 4)
        common = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0).prod(1)
        if (common <= 0.3 * np.minimum(size.prod(), (others[:, 2:] - others[:, :2]).prod(1))).all():
            objects.append(box)
            labels.append(rng.integers(2))
    objects, labels = np.array(objects), np.array(labels)
    views = Tiling(256, 0.3, 64).views(height, width)
    boxes, _, found_labels = merge_views(views, [look(objects, labels, view, rng, 0.05) for view in views], 0.7)
    common = np.minimum(boxes[:, None, 2:], objects[:, 2:]) - np.maximum(boxes[:, None, :2], objects[:, :2])
    common = common.clip(0).prod(-1)
    areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, objects)]
    iou = common / (areas[0][:, None] + areas[1] - common)
    assert len(boxes) == len(objects) and (iou.max(0) > 0.7).all()
    assert (found_labels[iou.argmax(0)] == labels).all()


def test_thousands_of_boxes_are_merged():
    """As in the first epoch, when all is found everywhere; and no more than the best ones are looked at."""
    rng = np.random.default_rng(0)
    views = Tiling(256, 0.2, 64).views(1200, 1600)
    parts = []
    for x1, y1, x2, y2 in views.tolist():
        corners = rng.uniform((x1, y1), (x2, y2), (600, 2))
        boxes = np.concatenate([corners, np.minimum(corners + rng.uniform(5, 60, (600, 2)), (x2, y2))], 1)
        parts.append((boxes, rng.uniform(0, 0.02, 600), rng.integers(0, 3, 600)))
    boxes, scores, _ = merge_views(views, parts, 0.7)
    assert 5000 < len(boxes) < 10_000 and scores.min() > 0.001


def test_views_are_detected_in_a_few_at_a_time():
    sizes = []

    def detect(images):
        sizes.append(len(images))
        return [found((1, 2, 5, 8, 0.5)) for _ in images]

    picture = np.zeros((300, 500, 3), np.uint8)
    tiling = Tiling(100, 0, 64)
    boxes, scores, labels = detect_in_views(picture, tiling, detect, 0.7)
    assert sum(sizes) == 1 + 15 and max(sizes) <= 8
    corners = {tuple(corner) for corner in boxes[:, :2].astype(int).tolist()}
    assert corners == {(100 * x + 1, 100 * y + 2) for x in range(5) for y in range(3)}
    assert [len(values) for values in detect_in_views(picture, tiling, detect, 0.7, max_per_img=4)] == [4] * 3


def test_a_view_shrinks_to_means():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    assert fit_view(pixels, 1) is pixels
    assert fit_view(pixels, 1.5).shape == (96, 144, 3)
    means = pixels.reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(fit_view(pixels, 0.25) - means).max() <= 1
