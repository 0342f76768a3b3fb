import numpy as np
import pytest

from yolov7_simple.runtime.drawing import class_color, draw_detections, place_label


def test_labels_keep_off_their_boxes_and_each_other():
    canvas, size = (400, 300), (90, 16)
    boxes = np.array([[20, 40, 120, 90], [20, 40, 121, 91], [300, 0, 400, 60], [0, 200, 60, 300], [0, 0, 400, 300.0]])
    taken = np.zeros((0, 4))
    for i, box in enumerate(boxes):
        label = place_label(box, size, canvas, boxes, taken)
        assert (label[:2] >= 0).all() and (label[2:] <= canvas).all()
        sides = np.minimum(label[2:], taken[:, 2:]) - np.maximum(label[:2], taken[:, :2])
        assert not (sides > 0).all(1).any(), 'labels overlap'
        if i < 4:  # there is no room around the last one
            assert not (np.minimum(label[2:], box[2:]) - np.maximum(label[:2], box[:2]) > 0).all(), 'hides its box'
        taken = np.concatenate([taken, label[None]])


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
