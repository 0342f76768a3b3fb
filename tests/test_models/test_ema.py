"""The average has mmdet's numbers, to the last bit on a CPU."""

import copy

import pytest
import torch
from mmdet.models.layers import ExpMomentumEMA
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7_simple.models.ema import ForeachExpMomentumEMA


def make_model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def change(model, generator):
    """As a training step: parameters, running statistics and the number of batches."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


@pytest.mark.parametrize('interval', [1, 3])
@pytest.mark.parametrize('update_buffers', [True, False])
def test_equals_mmdets(update_buffers, interval):
    model, generator = make_model(), torch.Generator().manual_seed(0)
    options = {'momentum': 0.01, 'gamma': 5, 'interval': interval, 'update_buffers': update_buffers}
    theirs, ours = ExpMomentumEMA(model, **options), ForeachExpMomentumEMA(model, **options)
    for step in range(8):
        change(model, generator)
        if step == 5:  # resumed, by the class of before
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
            resumed = ForeachExpMomentumEMA(model, **options)
            resumed.load_state_dict(copy.deepcopy(theirs.state_dict()))
            ours = resumed
        theirs.update_parameters(model)
        ours.update_parameters(model)
        wanted = theirs.state_dict()
        assert ours.state_dict().keys() == wanted.keys()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, wanted[name]), (step, name)
    assert int(ours.steps) == 8


@pytest.mark.parametrize('update_buffers', [True, False])
def test_a_shared_tensor_is_averaged_once(update_buffers):
    model = nn.ModuleDict({'a': nn.Linear(2, 2, bias=False), 'b': nn.Linear(2, 2, bias=False)})
    model['b'].weight = model['a'].weight
    nn.init.zeros_(model['a'].weight)
    ema = ForeachExpMomentumEMA(model, momentum=0.1, gamma=1, update_buffers=update_buffers)
    ema.steps.fill_(10**6)
    nn.init.ones_(model['a'].weight)
    ema.update_parameters(model)
    torch.testing.assert_close(ema.module['b'].weight, torch.full((2, 2), 0.1))


class Count(TorchDispatchMode):
    ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += not str(func).startswith('aten.detach')  # of state_dict(), which starts no kernel
        return func(*args, **(kwargs or {}))


def test_operations_do_not_grow_with_the_model():
    counts = []
    for model in (make_model(), nn.Sequential(*(make_model() for _ in range(5)))):
        ema = ForeachExpMomentumEMA(model, update_buffers=True)
        ema.update_parameters(model)
        with Count() as count:
            ema.update_parameters(model)
        counts.append(count.ops)
    assert counts[0] == counts[1] < 20
