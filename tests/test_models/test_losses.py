"""Our GIoU against mmdet's."""

import pytest
import torch
from mmdet.models.losses import GIoULoss
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7_simple.models.losses import NoSyncGIoULoss


def make_pairs():
    """Boxes that overlap, touch, lie apart or inside, have no area, or have negative sides."""
    boxes = torch.rand(2, 400, 4) * 100
    boxes[:, :360, 2:] += boxes[:, :360, :2]
    boxes[1, :20] = boxes[0, :20]
    boxes[0, 20:40, 2:] = boxes[0, 20:40, :2]
    boxes[:, 40:60, 2:] = boxes[:, 40:60, :2] + 1e-4
    boxes[1, 60:80, :2] = boxes[0, 60:80, 2:]
    return boxes


@pytest.mark.parametrize(
    'arguments',
    [
        {'reduction_override': 'none'},
        {'reduction_override': 'sum'},
        {},
        {'weight': torch.linspace(0, 2, 400), 'avg_factor': 7.0, 'reduction_override': 'mean'},
        {'weight': torch.linspace(0, 2, 1600).view(400, 4), 'reduction_override': 'none'},
        {'weight': torch.zeros(400), 'reduction_override': 'sum'},
    ],
)
@pytest.mark.parametrize('options', [{}, {'eps': 1e-3, 'loss_weight': 5.0, 'reduction': 'sum'}])
def test_giou_equals_mmdets_to_the_last_bit(arguments, options):
    pairs, results = make_pairs(), []
    for loss in (GIoULoss(**options), NoSyncGIoULoss(**options)):
        pred, target = pairs.clone()
        pred.requires_grad_()
        value = loss(pred, target, **arguments)
        value.sum().backward()
        results.append((value, pred.grad))
    (theirs, their_grad), (ours, our_grad) = results
    assert torch.equal(theirs, ours)
    # Gradients are sums, which are formed in another order.
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-5, atol=1e-6)


class HostData(TorchDispatchMode):
    """Lists what makes a tensor of Python's numbers, which on a GPU is a copy that waits."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.lift_fresh.default:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def test_giou_does_not_wait_for_the_device():
    pred, target = make_pairs()
    with HostData() as host_data:
        NoSyncGIoULoss()(pred, target)
    assert not host_data.found
    with HostData() as host_data:
        GIoULoss()(pred, target)
    assert host_data.found, "mmdet's no longer waits: use it again"


def test_giou_of_nothing_is_mmdets():
    pred, weight = torch.zeros(0, 4, requires_grad=True), torch.zeros(0)
    for options in ({}, {'avg_factor': 2}, {'reduction_override': 'sum'}):
        losses = [loss()(pred, pred.detach(), weight, **options) for loss in (GIoULoss, NoSyncGIoULoss)]
        assert losses[0].tolist() == losses[1].tolist() and losses[1].requires_grad
    with pytest.raises(AssertionError):
        NoSyncGIoULoss()(pred, pred, reduction_override='men')
