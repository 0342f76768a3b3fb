from collections import Counter

import pytest
import torch
from test_nms import plain_nms, random_boxes
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7_simple.models.head import YOLOv7SimpleHead
from yolov7_simple.ops import nms_batch as module
from yolov7_simple.ops.nms import nms
from yolov7_simple.ops.nms_batch import dense_nms, nms_batch, true_indices

NUM_BOXES = 150
# On a GPU each of these waits for the device; `tolist` does, too, but is not dispatched.
WAITS = {'_local_scalar_dense', 'nonzero', 'equal', 'masked_select', 'is_nonzero', 'unique2', '_unique2'}


def chain(n, scores):
    x = torch.arange(float(n)) * 4
    return torch.stack([x, torch.zeros(n), x + 10, torch.full((n,), 10.0)], 1), scores


def broken(n):
    """Boxes without an area, turned round, infinite and NaN among others."""
    boxes = random_boxes(n)
    boxes[::7, 2:] = boxes[::7, :2]
    boxes[1::7] = boxes[1::7, [2, 3, 0, 1]]
    boxes[2::7, 2] = float('inf')
    boxes[3::7, 1] = float('nan')
    boxes[4::7] = 0
    return boxes


def make_cases(n):
    """Boxes and scores of an image, by what is hard about them."""
    grid = torch.cartesian_prod(torch.arange(15.0), torch.arange(10.0))[torch.arange(n) % 150] * 8
    yield 'random', random_boxes(n), torch.rand(n)
    yield 'ties', random_boxes(n), torch.randint(3, (n,)) / 2
    yield 'chain', *chain(n, torch.linspace(1, 0.5, n))  # longer than the first rounds
    yield 'chain of ties', *chain(n, torch.ones(n))
    yield 'grid of ties', torch.cat([grid, grid + 32], 1), torch.ones(n)
    yield 'duplicates', random_boxes(5).repeat(n // 5 + 1, 1)[:n], torch.rand(n)
    yield 'one heap', random_boxes(1) + torch.rand(n, 4) * 3, torch.rand(n)
    yield 'broken', broken(n), torch.rand(n)


def stack(n):
    _, boxes, scores = zip(*make_cases(n))
    return torch.stack(boxes), torch.stack(scores)


def as_lists(kept):
    return [index.tolist() for index in kept]


@pytest.mark.parametrize('n', [0, 1, 2, NUM_BOXES])
@pytest.mark.parametrize('num_classes', [None, 1, 3])
@pytest.mark.parametrize(('threshold', 'offset'), [(0.1, 0), (0.4, 0), (0.7, 0), (0.4, 1)])
@pytest.mark.parametrize('images_at_once', [1, 3, 100])
def test_both_versions_keep_the_same_boxes(monkeypatch, n, num_classes, threshold, offset, images_at_once):
    monkeypatch.setattr(module, 'PAIRS_AT_ONCE', images_at_once * n * n)
    boxes, scores = stack(n)
    labels = None if num_classes is None else torch.randint(num_classes, scores.shape)
    for valid in (torch.ones_like(scores).bool(), scores > 0.6, torch.zeros_like(scores).bool()):
        found = as_lists(dense_nms(boxes, scores, valid, threshold, offset, labels))
        assert found == as_lists(nms_batch(boxes, scores, valid, threshold, offset, labels))
        for i, index in enumerate(true_indices(valid)):
            own_labels = None if labels is None else labels[i, index]
            one = index[nms(boxes[i, index], scores[i, index], threshold, offset, own_labels)]
            assert found[i] == one.tolist()


@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('seed', range(5))
def test_equals_the_definition(num_classes, seed):
    torch.manual_seed(seed)
    cases = [(boxes, scores) for name, boxes, scores in make_cases(NUM_BOXES) if name != 'broken']
    boxes, scores = map(torch.stack, zip(*cases))
    labels = torch.randint(num_classes, scores.shape)
    expected = [plain_nms(*one[:2], 0.45, one[2]) for one in zip(boxes, scores, labels)]
    valid = torch.ones_like(scores).bool()
    assert as_lists(dense_nms(boxes, scores, valid, 0.45, labels=labels)) == expected


@pytest.mark.parametrize('select', [dense_nms, nms_batch])
def test_a_batch_without_images(select):
    empty = torch.zeros(0, 20)
    assert select(torch.zeros(0, 20, 4), empty, empty.bool(), 0.5) == []


class Counting(TorchDispatchMode):
    """Count kernels, that is ops that are no views, by their name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        if not any(value.alias_info and not value.alias_info.is_write for value in returns):
            self.counts[func._overloadpacket.__name__] += 1
        if func._overloadpacket.__name__ == 'index':
            assert all(index is None or index.dtype != torch.bool for index in args[1]), 'a boolean index waits'
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """How often `tolist` was called."""
    calls = []
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda self: (calls.append(1), self.numpy().tolist())[1])
    return calls


def test_a_batch_takes_few_kernels_and_one_wait(reads):
    launches = []
    for num_images in (1, 16):
        boxes = torch.stack([random_boxes(NUM_BOXES) for _ in range(num_images)])
        scores, labels = torch.rand(boxes.shape[:2]), torch.randint(3, boxes.shape[:2])
        reads.clear()
        with Counting() as counting:
            dense_nms(boxes, scores, scores > 0.1, 0.5, labels=labels)
        assert len(reads) == 1 and not WAITS & set(counting.counts)
        launches.append(sum(counting.counts.values()))
    assert launches[0] == launches[1] <= 100


def test_a_long_chain_takes_few_waits(reads):
    n = 600
    boxes, scores = (values[None] for values in chain(n, torch.linspace(1, 0, n)))
    (kept,) = dense_nms(boxes, scores, torch.ones_like(scores).bool(), 0.4)
    assert kept.numpy().tolist() == list(range(0, n, 2))
    assert len(reads) <= 6  # 16 + 32 + ... + 512 rounds


def predictions(num_images, device='cpu'):
    return [[torch.randn(num_images, n, *cell, device=device) for cell in ((8, 12), (4, 6), (2, 3))] for n in (3, 4, 1)]


@pytest.mark.parametrize('options', [{}, {'max_per_img': 7}, {'nms': {'iou_threshold': 0.3, 'class_agnostic': True}}])
@pytest.mark.parametrize('rescale', [False, True])
def test_predictions_are_those_of_the_other_version(monkeypatch, options, rescale):
    head, outs = YOLOv7SimpleHead(3, in_channels=16), predictions(3)
    metas = [{'scale_factor': (0.5 + i, 0.7), 'ori_shape': (60 + i, 90 - i, 3)} for i in range(3)]
    cfg = {'score_thr': 0.45, **options}
    expected = head.predict_by_feat(*outs, metas, cfg, rescale)
    monkeypatch.setattr('yolov7_simple.models.prediction.nms_batch', dense_nms)
    found = head.predict_by_feat(*outs, metas, cfg, rescale)
    assert [len(one) for one in found] == [len(one) for one in expected] and len(found[0]) > 5
    for one, other, meta in zip(found, expected, metas):
        assert all(torch.equal(one[key], other[key]) for key in ('bboxes', 'scores', 'labels'))
        height, width = meta['ori_shape'][:2]
        assert not rescale or (one.bboxes <= torch.tensor([width, height, width, height])).all()


def test_no_tensor_is_on_another_device_than_the_predictions_and_one_read_waits(monkeypatch):
    """On the device `meta`, which has shapes and no data: it stands for a GPU, and says so where devices are mixed."""
    read = []

    def tolist(values):
        read.append(values.device.type)
        return [5] * (len(values) - 1) + [0]  # so many of each image, and no box was changed by the last round

    monkeypatch.setattr(torch.Tensor, 'tolist', tolist)
    head = YOLOv7SimpleHead(3, in_channels=16)
    metas = [{'scale_factor': (0.5, 0.5), 'ori_shape': (60, 90)}] * 2
    with Counting() as counting:
        found = head.predict_by_feat(*predictions(2, 'meta'), metas, rescale=True)
    assert read == ['meta'] and not WAITS & set(counting.counts)
    for one in found:
        assert [values.shape for values in (one.bboxes, one.scores, one.labels)] == [(5, 4), (5,), (5,)]
        assert {values.device.type for values in (one.bboxes, one.scores, one.labels)} == {'meta'}


def test_too_many_boxes_for_all_pairs_take_the_other_version(monkeypatch):
    monkeypatch.setattr(module, 'MAX_DENSE_BOXES', 19)
    monkeypatch.setattr(module, 'true_indices', lambda mask: [torch.zeros(3, dtype=torch.long, device='meta')])
    monkeypatch.setattr(module, 'nms', lambda *args: torch.zeros(2, dtype=torch.long, device='meta'))
    boxes, scores = torch.zeros(1, 20, 4, device='meta'), torch.zeros(1, 20, device='meta')
    assert [index.shape for index in nms_batch(boxes, scores, scores.bool(), 0.5)] == [(2,)]
