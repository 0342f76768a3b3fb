"""Groups of the optimiser, its fused form, and checkpoints of other groups."""

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR
from torch import nn

from yolov7_simple.engine import optimizers, without_gpu
from yolov7_simple.engine.optimizers import log_gradient_norm, regroup_state
from yolov7_simple.utils.checkpoint import CheckpointError
from yolov7_simple.utils.options import OptionError

RECIPE = {
    'constructor': 'DeviceAwareOptimWrapperConstructor',
    'type': 'AmpOptimWrapper',
    'loss_scale': 'dynamic',
    'optimizer': {'type': 'AdamW', 'lr': 0.002, 'weight_decay': 0.05},
    'paramwise_cfg': {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.0},
    'clip_grad': {'max_norm': 35.0, 'norm_type': 2},
}
# One group a parameter, as before the groups were merged, and one for all.
MMENGINES = {'constructor': 'DefaultOptimWrapperConstructor', 'type': 'OptimWrapper', 'loss_scale': None}
ONE_GROUP = {'paramwise_cfg': None}
# The rates of the two layers differ, too.
TWO_RATES = {'paramwise_cfg': {**RECIPE['paramwise_cfg'], 'custom_keys': {'0.': {'lr_mult': 0.1}}}}


def make_model():
    """In float64, since AdamW divides gradients that are 0 but for rounding by numbers like them."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), second, nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)).double()


def build(model, **changes):
    cfg = copy.deepcopy({**RECIPE, **changes})
    return build_optim_wrapper(model, {key: value for key, value in cfg.items() if value is not None})


def schedules(wrapper):
    warmup = LinearLR(wrapper, start_factor=0.1, end=4, by_epoch=False)
    return [warmup, CosineAnnealingLR(wrapper, T_max=20, eta_min_ratio=0.1, begin=4, end=24, by_epoch=False)]


def train(model, wrapper, steps, start=0, schedulers=()):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        wrapper.update_params(model(torch.randn(4, 3, 6, 6, dtype=torch.float64)).square().mean() * 9)
        for scheduler in schedulers:
            scheduler.step()


def options_of(model, wrapper, key):
    values = {p: group[key] for group in wrapper.optimizer.param_groups for p in group['params']}
    return [values[p] for p in model.parameters()]


def go_on(wrapper, model, saved):
    """Take over the moments, as a resumed run does."""
    state, missing = regroup_state(copy.deepcopy(saved), wrapper.optimizer, model)
    wrapper.load_state_dict({**wrapper.state_dict(), 'state': state})
    return missing


def test_parameters_of_equal_options_share_a_group(monkeypatch):
    model = make_model()
    logger, handler, lines = MMLogger.get_current_instance(), logging.Handler(), []
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logger, 'handlers', [handler])
    level = logger.level  # other tests change it
    logger.setLevel(logging.INFO)
    wrapper = build(model)
    logger.setLevel(level)
    assert [len(group['params']) for group in wrapper.optimizer.param_groups] == [3, 5]
    assert options_of(model, wrapper, 'weight_decay') == [0.05, 0.0, 0.0] * 2 + [0.05, 0.0]
    assert [group['param_names'][0] for group in wrapper.optimizer.param_groups] == ['0.weight', '1.weight']
    assert all(type(group) is dict for group in wrapper.optimizer.param_groups)
    groups = 'Parameters of the optimiser, in 2 groups: 3 with the defaults; 5 with weight_decay=0.0.'
    assert [line for line in lines if 'optim' in line and '0.0' in line] == [groups]
    assert not any('paramwise_options' in line for line in lines)
    assert not logger.filters


def test_other_rates_and_frozen_parameters_keep_their_groups():
    model = make_model()
    model[2].requires_grad_(False)
    wrapper = build(model, **TWO_RATES)
    names = [group['param_names'] for group in wrapper.optimizer.param_groups]
    assert names == [['0.weight'], ['1.weight', '1.bias', '3.weight', '3.bias', '4.bias'], ['4.weight']]
    assert [group['lr'] for group in wrapper.optimizer.param_groups] == [0.0002, 0.002, 0.002]


def test_a_shared_parameter_is_refused_as_before():
    model = make_model()
    model.add_module('again', nn.Sequential(model[0]))
    with pytest.raises(OptionError, match=r'0\.weight is shared .*\.paramwise_cfg\.bypass_duplicate=True'):
        build(model)
    wrapper = build(model, paramwise_cfg={**RECIPE['paramwise_cfg'], 'bypass_duplicate': True})
    assert sum(len(group['params']) for group in wrapper.optimizer.param_groups) == 8


@pytest.mark.parametrize('kind', ['AdamW', 'Adam', 'SGD', 'RMSprop'])
@pytest.mark.parametrize('given', [{}, {'foreach': False}, {'fused': False}], ids=str)
def test_what_can_be_fused_is_unless_the_config_says_otherwise(kind, given):
    can = kind != 'RMSprop'
    wrapper = build(make_model(), optimizer={'type': kind, 'lr': 0.01, 'weight_decay': 0.05, **(given if can else {})})
    fused = {group.get('fused') for group in wrapper.optimizer.param_groups}
    assert fused == {given.get('fused', not given or None) if can else None}


def test_the_weights_are_those_of_one_group_a_parameter():
    weights = []
    for changes in ({}, MMENGINES):
        model = make_model()
        train(model, build(model, **changes), 20)
        weights.append(list(model.parameters()))
    for merged, single in zip(*weights):
        torch.testing.assert_close(merged, single, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ('old', 'new'),
    [(MMENGINES, {}), ({}, MMENGINES), ({}, {}), (MMENGINES | ONE_GROUP, ONE_GROUP)],
    ids=['before', 'other', 'same', 'one group'],
)
@pytest.mark.parametrize('paramwise', [{}, TWO_RATES], ids=['recipe', 'two rates'])
def test_a_run_goes_on_in_other_groups(old, new, paramwise):
    """Six steps and fourteen are twenty: each parameter keeps its moments."""
    straight = make_model()
    wrapper = build(straight, **paramwise | ({} if new is not ONE_GROUP else ONE_GROUP))
    train(straight, wrapper, 20, schedulers=schedules(wrapper))

    model = make_model()
    wrapper = build(model, **paramwise | old)
    train(model, wrapper, 6, schedulers=schedules(wrapper))
    saved = wrapper.state_dict()

    wrapper = build(model, **paramwise | new)
    schedulers = schedules(wrapper)
    for _ in range(6):
        for scheduler in schedulers:
            scheduler.step()
    assert go_on(wrapper, model, saved) == []
    assert {group.get('fused') for group in wrapper.optimizer.param_groups} == {None if new is MMENGINES else True}
    train(model, wrapper, 14, start=6, schedulers=schedulers)
    for resumed, expected in zip(model.parameters(), straight.parameters()):
        torch.testing.assert_close(resumed, expected, rtol=1e-7, atol=1e-9)


def test_frozen_layers_may_be_others():
    model = make_model()
    train(model, whole := build(model), 2)
    model[0].requires_grad_(False)
    part = build(model)
    assert go_on(part, model, whole.state_dict()) == []
    for parameter in [p for p in model.parameters() if p.requires_grad]:
        assert torch.equal(part.optimizer.state[parameter]['exp_avg'], whole.optimizer.state[parameter]['exp_avg'])
    model = make_model()
    model[0].requires_grad_(False)
    train(model, part := build(model), 2)
    model[0].requires_grad_(True)
    thawed = build(model)
    assert go_on(thawed, model, part.state_dict()) == ['0.weight']
    train(model, thawed, 1)
    assert {float(state['step']) for state in thawed.optimizer.state.values()} == {1.0, 3.0}


def test_an_unknown_order_is_refused():
    """Groups of a constructor of the user's, without names: there is no telling which moments are whose."""
    model = make_model()
    first, *others = model.parameters()
    optimizer = torch.optim.AdamW([{'params': others[:2]}, {'params': [first, *others[2:]]}])
    with pytest.raises(CheckpointError, match='8 parameters without names, in 2 groups'):
        regroup_state(optimizer.state_dict(), build(model).optimizer, model)
    optimizer = torch.optim.AdamW([*others, first])
    model(torch.randn(4, 3, 6, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()
    with pytest.raises(CheckpointError, match='8 parameters without names, in 1 groups'):
        regroup_state(optimizer.state_dict(), build(model).optimizer, model)


@pytest.mark.parametrize('device', ['cpu', 'mps', 'npu'])
def test_without_mixed_precision_the_recipe_is_float32(monkeypatch, device):
    for module in (without_gpu, optimizers):
        monkeypatch.setattr(module, 'get_device', lambda: device)
    lines = []
    monkeypatch.setattr(optimizers, 'print_log', lambda text, *_: lines.append(text))
    cfg = {key: value for key, value in RECIPE.items() if key not in ('constructor', 'paramwise_cfg')}
    constructor = optimizers.DeviceAwareOptimWrapperConstructor({**cfg, 'dtype': 'bfloat16'})
    if device == 'npu':
        assert constructor.optim_wrapper_cfg == {key: cfg[key] for key in ('type', 'loss_scale', 'clip_grad')} | {
            'dtype': 'bfloat16'
        }
        return
    wrapper = constructor(make_model())
    assert type(wrapper) is OptimWrapper
    assert wrapper.clip_grad_kwargs == {'max_norm': 35.0, 'norm_type': 2}
    assert len(lines) == 1 and 'float32' in lines[0] and ('mps' in lines[0]) is (device == 'mps')


def test_the_type_alone_turns_mixed_precision_off(monkeypatch):
    monkeypatch.setattr(optimizers, 'has_mixed_precision', lambda: True)
    assert type(build(make_model(), type='OptimWrapper')) is OptimWrapper


@pytest.mark.parametrize('clip', [None, {'type': 'value', 'clip_value': 1e-3}, {'max_norm': 1e-3}], ids=str)
def test_the_norm_is_logged_and_clipping_stays(clip):
    gradients = []
    for is_measured in (False, True):
        model = make_model()
        wrapper = build(model, clip_grad=clip)
        wrapper.message_hub = type(wrapper.message_hub)(f'norm {clip} {is_measured}')
        if is_measured:
            log_gradient_norm(wrapper)
        wrapper.zero_grad = lambda: None
        train(model, wrapper, 1)
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))
    norm = wrapper.message_hub.get_scalar('train/grad_norm').current()
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradients[0]]).norm().item()) or (clip and norm > 1e-3)
