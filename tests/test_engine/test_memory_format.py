"""Weights with their channels last, and states of optimisers that follow them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from yolov7_simple.engine.memory_format import MemoryFormatHook, match_memory_format


def make_model(channels_last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))
    MemoryFormatHook(channels_last).before_run(SimpleNamespace(model=model))
    return model


def train(model, optimizer, steps=3):
    images = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def test_hook():
    model = make_model(True)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and not model[0].weight.is_contiguous()
    assert make_model(False)[0].weight.is_contiguous()
    wanted = make_model(False).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('saved_last', [True, False])
def test_a_run_resumes_in_the_other_format(fused, saved_last):
    first = make_model(saved_last)
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.01, fused=fused)
    train(first, optimizer)
    weights, state = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(first, optimizer)

    resumed = make_model(not saved_last)
    resumed.load_state_dict(weights)
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=0.01, fused=fused)
    optimizer.register_load_state_dict_post_hook(match_memory_format)
    optimizer.load_state_dict(state)
    weight = resumed[0].weight
    assert optimizer.state[weight]['exp_avg'].stride() == weight.stride()
    train(resumed, optimizer)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_constructor_of_the_configs_registers_it():
    from mmengine.optim import build_optim_wrapper

    model = make_model(False)
    cfg = {'constructor': 'DeviceAwareOptimWrapperConstructor', 'type': 'OptimWrapper'}
    wrapper = build_optim_wrapper(model, {**cfg, 'optimizer': {'type': 'AdamW', 'lr': 0.01}})
    train(model, wrapper.optimizer)
    state = copy.deepcopy(wrapper.state_dict())
    MemoryFormatHook().before_run(SimpleNamespace(model=model))
    wrapper.load_state_dict(state)
    weight = model[0].weight
    assert wrapper.optimizer.state[weight]['exp_avg'].stride() == weight.stride() != (72, 9, 3, 1)
