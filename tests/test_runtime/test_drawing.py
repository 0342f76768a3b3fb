import cv2
import numpy as np
import pytest

from yolov7_simple.runtime.drawing import class_color, draw_detections
from yolov7_simple.runtime.label_places import covered_area, place_labels


def shared_sides(rectangle, others):
    return np.minimum(rectangle[2:], others[..., 2:]) - np.maximum(rectangle[:2], others[..., :2])


@pytest.mark.parametrize('zoom', [1, 10])  # at 10, a cell of the map of what is covered is several pixels
def test_labels_keep_off_their_boxes_and_each_other(zoom):
    canvas, sizes = (400 * zoom, 300 * zoom), np.full((5, 2), (90, 16)) * zoom
    boxes = np.array([[20, 40, 120, 90], [20, 40, 121, 91], [300, 0, 400, 60], [0, 200, 60, 300], [0, 0, 400, 300.0]])
    boxes *= zoom
    labels = place_labels(boxes, sizes, canvas)
    for i, (box, label) in enumerate(zip(boxes, labels)):
        assert (label[:2] >= 0).all() and (label[2:] <= canvas).all()
        assert (label[2:] - label[:2] == sizes[i]).all()
        assert not (shared_sides(label, labels[:i]) > 0).all(1).any(), 'labels overlap'
        if i < 4:  # there is no room around the last one
            assert not (shared_sides(label, box) > 0).all(), 'hides its box'


def test_a_label_keeps_off_other_boxes_where_it_can():
    boxes = np.array([[100, 100, 200, 150], [100, 60, 200, 99], [100, 151, 200, 190.0]])
    label = place_labels(boxes, np.full((3, 2), (60, 16)), (400, 300))[0]
    assert not (shared_sides(label, boxes) > 0).all(1).any()


def test_the_map_of_boxes_gives_the_area_they_share():
    random = np.random.default_rng(0)
    corners = random.integers(0, 100, (2, 20, 2, 2))
    boxes, places = np.concatenate([corners.min(2), corners.max(2)], 2)
    sides = np.stack([shared_sides(place, boxes) for place in places])
    wanted = sides.clip(min=0).prod(2).sum(1)
    np.testing.assert_allclose(covered_area(places, boxes.astype(float), (100, 100), 1), wanted)


def test_the_work_of_drawing_grows_with_the_boxes_alone(monkeypatch):
    """Of each label, at most all its spots are looked at once."""
    looks = []
    monkeypatch.setattr(cv2, 'countNonZero', lambda area: looks.append(area.size) or 0)
    random = np.random.default_rng(0)
    corners = random.uniform(0, 600, (2, 500, 2))
    boxes = np.concatenate([corners.min(0), corners.max(0)], 1)
    place_labels(boxes, np.full((500, 2), (60, 16)), (640, 640))
    assert 500 <= len(looks) <= 11 * 500 and max(looks) <= 60 * 17


def test_nothing_found_is_the_image_itself():
    image = np.full((500, 500, 3), 7, np.uint8)
    drawn = draw_detections(image, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ['ball'])
    assert (drawn == image).all() and not np.shares_memory(drawn, image)


def test_colors_are_steady_and_apart():
    assert [class_color(i) for i in range(3)] == [class_color(i) for i in range(3)]
    colors = np.array([class_color(i) for i in range(12)], float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=2) + 1e9 * np.eye(12)
    assert distances.min() > 40


@pytest.mark.parametrize('shape', [(16, 24), (120, 160), (480, 640), (2000, 3000)])
def test_labels_are_readable_at_any_size(shape):
    image = np.full((*shape, 3), 128, np.uint8)
    box = np.array([[shape[1] * 0.3, shape[0] * 0.4, shape[1] * 0.6, shape[0] * 0.8]])
    drawn = draw_detections(image, box, np.array([0.9]), np.array([0]), ['ball'])
    zoom = drawn.shape[0] // shape[0]
    assert drawn.shape == (shape[0] * zoom, shape[1] * zoom, 3)
    # A label is a filled area: rows in which its colour covers much of the width of the text.
    color = (drawn == class_color(0)).all(2)
    rows = (color.sum(1) > 20 * (1 + (min(drawn.shape[:2]) > 1500))).nonzero()[0]
    assert len(rows) >= 9, 'letters of fewer pixels cannot be read'
    assert (image == 128).all(), 'the image itself is left alone'
