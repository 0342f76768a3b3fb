import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7_simple.models.backbone import ELANNet
from yolov7_simple.models.layers import SiLU


@pytest.mark.parametrize(
    ('arch', 'channels', 'parameters'),
    [
        ('tiny', (128, 256, 512), 871_328),
        ('large', (512, 1024, 1024), 13_371_808),
        ('huge', (640, 1280, 1280), 25_152_840),
    ],
)
def test_sizes(arch, channels, parameters):
    with torch.device('meta'):
        net = ELANNet(arch)
        outs = net(torch.empty(1, 3, 64, 96))
    assert net.out_channels == channels
    assert [tuple(out.shape) for out in outs] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_norms_are_the_originals():
    for module in ELANNet('tiny').modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-3, 0.03)


def test_norm_and_activation_are_knobs_and_defaults_do_not_leak():
    other = ELANNet('tiny', norm_cfg={'type': 'GN', 'num_groups': 8}, act_cfg={'type': 'ReLU'})
    assert any(isinstance(m, nn.GroupNorm) for m in other.modules())
    assert any(isinstance(m, nn.ReLU) for m in other.modules())
    default = ELANNet('tiny')
    assert any(isinstance(m, nn.SiLU) for m in default.modules())
    assert not any(isinstance(m, nn.GroupNorm | nn.ReLU) for m in default.modules())


def test_multipliers():
    net = ELANNet('huge', deepen_factor=0.34, widen_factor=0.25, out_indices=(0, 2, 4))
    outs = net(torch.zeros(1, 3, 64, 64))
    assert net.out_channels == tuple(out.shape[1] for out in outs) == (24, 160, 320)
    assert len(net.stage1[1].deeper) == 1


def test_frozen_stages_and_norm_eval():
    net = ELANNet('tiny', frozen_stages=1, norm_eval=True)
    # Frozen before the first train(), so that an optimiser built now leaves them out.
    assert not any(p.requires_grad for name in ('stem', 'stage1') for p in getattr(net, name).parameters())
    net.train()
    assert not net.stem.training and not net.stage1.training and net.stage2.training
    assert all(p.requires_grad for p in net.stage2.parameters())
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert ELANNet('tiny').train().stem.training


def test_pretrained_backbone_loads_by_prefix(tmp_path):
    donor = ELANNet('tiny', widen_factor=0.125)
    path = tmp_path / 'donor.pth'
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in donor.state_dict().items()}}, path)
    net = ELANNet(
        'tiny',
        widen_factor=0.125,
        init_cfg={'type': 'Pretrained', 'checkpoint': str(path), 'prefix': 'backbone.'},
    )
    net.init_weights()
    for key, value in donor.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_convolutions_start_as_pytorchs():
    net = ELANNet('tiny')
    net.init_weights()
    weight = net.stage4[1].fuse.conv.weight.detach()
    bound = weight[0].numel() ** -0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'arch': 'small'}, r"arch must be one of \['huge', 'large', 'tiny'\], got 'small'"),
        ({'widen_factor': 0}, 'widen_factor must be above 0'),
        ({'out_indices': (2, 5)}, 'out_indices'),
        ({'frozen_stages': 7}, 'frozen_stages'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ELANNet(**kwargs)


@pytest.mark.parametrize('with_grad', [True, False])
def test_the_activation_copies_nothing(with_grad):
    net = ELANNet('tiny', widen_factor=0.25).requires_grad_(with_grad)
    with Ops() as ops:
        net(torch.rand(1, 3, 64, 64))
    names = set(ops.names)
    assert 'aten.clone.default' not in names
    assert ('aten.silu.default' in names, 'aten.silu_.default' in names) == (with_grad, not with_grad)


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_activation_changes_no_number_and_no_activation_of_the_users():
    values = torch.randn(4, 5)
    wanted = nn.functional.silu(values)
    assert torch.equal(SiLU(inplace=True)(values.clone().requires_grad_()), wanted)
    copy = values.clone()
    assert torch.equal(SiLU(inplace=True)(copy), wanted) and torch.equal(copy, wanted)
    copy = values.clone()
    assert torch.equal(SiLU()(copy), wanted) and torch.equal(copy, values)
    theirs = [m for m in ELANNet('tiny', act_cfg={'type': 'SiLU'}).modules() if isinstance(m, nn.SiLU)]
    assert theirs and not any(isinstance(m, SiLU) for m in theirs)
    frozen = ELANNet('tiny', widen_factor=0.25, frozen_stages=1).train()
    with Ops() as ops:
        frozen(torch.rand(2, 3, 64, 64))
    assert {'aten.silu.default', 'aten.silu_.default'} <= set(ops.names)


def test_compiles_without_a_break():
    net = ELANNet('tiny', widen_factor=0.25)
    images = torch.rand(2, 3, 64, 64)
    wanted = [out.detach() for out in net(images)]
    torch.compiler.reset()
    for found in (torch.compile(net, backend='eager', fullgraph=True)(images),):
        for out, value in zip(found, wanted, strict=True):
            torch.testing.assert_close(out, value)
