import pytest
import torch

from yolov7_simple.models.neck import ELANPAFPN


@pytest.mark.parametrize(
    ('in_channels', 'out_channels', 'num_stages', 'depth', 'parameters'),
    [
        ((128, 256, 512), 128, 2, 1, 5_291_392),
        ((512, 1024, 1024), 256, 4, 1, 23_559_168),
        ((640, 1280, 1280), 320, 4, 2, 42_568_320),
    ],
)
def test_sizes(in_channels, out_channels, num_stages, depth, parameters):
    with torch.device('meta'):
        neck = ELANPAFPN(in_channels, out_channels, num_stages, depth)
        outs = neck([torch.empty(2, c, 64 // s, 96 // s) for c, s in zip(in_channels, (8, 16, 32), strict=True)])
    assert [tuple(out.shape) for out in outs] == [(2, out_channels, 64 // s, 96 // s) for s in (8, 16, 32)]
    assert sum(p.numel() for p in neck.parameters()) == parameters


def test_every_output_sees_every_input():
    neck = ELANPAFPN((8, 16, 32), 16, 2).eval()
    inputs = [torch.rand(1, c, 64 // s, 64 // s, requires_grad=True) for c, s in ((8, 8), (16, 16), (32, 32))]
    for out in neck(inputs):
        grads = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)


def test_channels_that_do_not_fit_are_named():
    neck = ELANPAFPN((8, 16, 32), 16, 2)
    with pytest.raises(ValueError, match=r'in_channels=\(8, 16, 32\), but the backbone gives \(8, 16, 64\)'):
        neck([torch.zeros(1, c, 64 // s, 64 // s) for c, s in ((8, 8), (16, 16), (64, 32))])
    with pytest.raises(ValueError, match='three numbers'):
        ELANPAFPN((8, 16), 16)
    with pytest.raises(ValueError, match='multiple of 8'):
        ELANPAFPN((8, 16, 32), 20)
    with pytest.raises(ValueError, match='num_stages'):
        ELANPAFPN((8, 16, 32), 16, num_stages=0)
