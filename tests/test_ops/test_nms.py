import pytest
import torch

from yolov7_simple.models.prediction import TestOptions
from yolov7_simple.ops.nms import nms


def plain_nms(boxes, scores, threshold, labels=None):
    """The definition, in Python's own float64 and one box at a time."""
    boxes = boxes.tolist()
    labels = [0] * len(boxes) if labels is None else labels.tolist()
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    keep = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        for j in keep:
            if labels[i] != labels[j]:
                continue
            a, b = boxes[i], boxes[j]
            inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            if inter / (areas[i] + areas[j] - inter) > threshold:
                break
        else:
            keep.append(i)
    return keep


def random_boxes(n, extent=100.0):
    corners = torch.rand(n, 2) * extent - extent / 4
    return torch.cat([corners, corners + torch.rand(n, 2) * extent / 2 + 1], 1)


@pytest.mark.parametrize('n', [0, 1, 2, 37, 700])  # 700 is more than two blocks
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.7])
@pytest.mark.parametrize('num_classes', [None, 3])
def test_equals_the_definition(n, threshold, num_classes):
    boxes, scores = random_boxes(n), torch.rand(n)
    labels = None if num_classes is None else torch.randint(num_classes, (n,))
    assert nms(boxes, scores, threshold, labels=labels).tolist() == plain_nms(boxes, scores, threshold, labels)


def test_a_long_chain_alternates():
    # A kept box suppresses the next one, all along the chain: the worst case for the fixed point.
    x = torch.arange(400.0) * 4
    boxes = torch.stack([x, torch.zeros(400), x + 10, torch.full((400,), 10.0)], 1)
    kept = nms(boxes, torch.linspace(1, 0, 400), 0.4)
    assert kept.tolist() == list(range(0, 400, 2))


def test_classes_never_meet_whatever_their_number_and_the_coordinates():
    # These two cases fail where classes are separated by shifting their boxes.
    far = torch.tensor([[-500.0, 0, 500, 100], [-500, 0, 500, 100]])
    assert len(nms(far, torch.tensor([0.9, 0.8]), 0.1, labels=torch.tensor([0, 1]))) == 2
    many = torch.tensor([[600.0, 600, 600.5, 600.5], [600.26, 600, 600.76, 600.5]])  # IoU 0.316
    assert len(nms(many, torch.tensor([0.9, 0.8]), 0.35, labels=torch.tensor([1202, 1202]))) == 2


def test_offset_counts_inclusive_corners():
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]])  # touch; share a column of pixels if corners are inclusive
    scores = torch.tensor([0.9, 0.8])
    assert len(nms(boxes, scores, 0.3)) == 2
    assert len(nms(boxes, scores, 0.3, offset=1)) == 1


def test_suppress_takes_class_agnostic_and_mmcvs_other_types():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.8, 0.9]), torch.tensor([0, 1])

    def suppress(boxes, scores, labels, nms):
        return TestOptions.from_cfg({'nms': nms}).select(boxes[None], scores[None], labels[None], with_nms=True)[0]

    assert suppress(boxes, scores, labels, {'iou_threshold': 0.5})[0].tolist() == [1, 0]
    assert suppress(boxes, scores, labels, {'iou_threshold': 0.5, 'class_agnostic': True})[0].tolist() == [1]
    # Options that only mmcv's NMS has are passed to it.
    kept = suppress(boxes, scores, labels, {'type': 'nms', 'iou_threshold': 0.5, 'split_thr': 1})
    assert kept[0].tolist() == [1, 0] and kept[1].tolist() == pytest.approx([0.9, 0.8])
