import copy

from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from yolov7_simple.engine import without_gpu

RECIPE = {
    'constructor': 'DeviceAwareOptimWrapperConstructor',
    'type': 'AmpOptimWrapper',
    'loss_scale': 'dynamic',
    'optimizer': {'type': 'AdamW', 'lr': 0.002, 'weight_decay': 0.05},
    'paramwise_cfg': {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.0},
    'clip_grad': {'max_norm': 35.0, 'norm_type': 2},
}


def test_without_a_gpu_the_recipe_is_float32(monkeypatch):
    monkeypatch.setattr(without_gpu, 'get_device', lambda: 'cpu')
    lines = []
    monkeypatch.setattr(without_gpu, 'print_log', lambda text, *_: lines.append(text))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    wrapper = build_optim_wrapper(model, copy.deepcopy(RECIPE))
    assert type(wrapper) is OptimWrapper
    assert wrapper.clip_grad_kwargs == {'max_norm': 35.0, 'norm_type': 2}
    assert len(lines) == 1 and 'float32' in lines[0]
    groups = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert [groups[id(p)] for p in model.parameters()] == [0.05, 0.0, 0.0, 0.0]


def test_with_a_gpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(without_gpu, 'get_device', lambda: 'cuda')
    constructor = without_gpu.DeviceAwareOptimWrapperConstructor(
        {key: value for key, value in RECIPE.items() if key not in ('constructor', 'paramwise_cfg')}
    )
    assert constructor.optim_wrapper_cfg['type'] == 'AmpOptimWrapper'
    assert constructor.optim_wrapper_cfg['loss_scale'] == 'dynamic'
