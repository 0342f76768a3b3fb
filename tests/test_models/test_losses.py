"""Our GIoU against mmdet's."""

import pytest
import torch
from mmdet.models.losses import GIoULoss
from torch._subclasses.fake_tensor import FakeTensorMode
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
        {'weight': torch.linspace(0, 2, 400), 'avg_factor': 7.0},
        {'weight': torch.linspace(0, 2, 1600).view(400, 4), 'reduction_override': 'none'},
        {'weight': torch.zeros(400), 'reduction_override': 'sum'},
    ],
)
@pytest.mark.parametrize('options', [{}, {'eps': 1e-3, 'loss_weight': 5.0, 'reduction': 'sum'}])
def test_giou_equals_mmdets_to_the_last_bit(arguments, options):
    if 'avg_factor' in arguments and 'reduction' in options:
        pytest.skip('an avg_factor needs the reduction mean')
    pairs, results = make_pairs(), []
    for loss in (GIoULoss(**options), NoSyncGIoULoss(**options)):
        pred, target = pairs.clone()
        pred.requires_grad_()
        value = loss(pred, target, **arguments)
        value.sum().backward()
        results.append((value, pred.grad))
    (theirs, their_grad), (ours, our_grad) = results
    assert torch.equal(theirs, ours)
    assert torch.equal(their_grad, our_grad)


class NoCopies(TorchDispatchMode):
    """Fails where a tensor is made on one device from one of another."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in (*args, out) if isinstance(value, torch.Tensor) and value.dim()}
        assert len(devices) < 2, f'{func}: {devices}'
        return out


def test_giou_does_not_wait_for_the_device():
    with FakeTensorMode():
        boxes = torch.empty(2, 400, 4, device='cuda').unbind()
        with NoCopies():
            NoSyncGIoULoss()(*boxes)
        with pytest.raises(AssertionError, match='cuda'), NoCopies():
            GIoULoss()(*boxes)  # what this test would see
