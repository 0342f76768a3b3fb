"""The four blocks that backbone and neck are made of.

Every ``conv`` handed to a block is a factory ``conv(in_channels, out_channels, kernel_size, ...)`` that returns
convolution + BatchNorm + activation, bound once by its owner with :func:`conv_factory`. The order of each
concatenation is the order of the original (RT-ODLab, MIT), so that its weights can be converted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

ConvFactory = Callable[..., nn.Module]
# The original's eps and momentum differ from PyTorch's defaults, with which converted weights would give other numbers.
DEFAULT_NORM_CFG = {'type': 'BN', 'eps': 1e-3, 'momentum': 0.03}
# PyTorch's own default for nn.Conv2d, spelled out because mmcv's ConvModule replaces it.
CONV_INIT_CFG = dict(
    type='Kaiming', layer='Conv2d', a=5**0.5, distribution='uniform', mode='fan_in', nonlinearity='leaky_relu'
)


class SiLU(nn.SiLU):
    """SiLU that overwrites its input only where no gradient needs it: elsewhere PyTorch would copy the input first."""

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        return nn.functional.silu(input, inplace=self.inplace and not input.requires_grad)


def conv_factory(norm_cfg: dict | None = None, act_cfg: dict | None = None) -> ConvFactory:
    """Bind norm and activation once: ``conv(in_channels, out_channels, kernel_size, stride=1, padding=0)``.

    Args:
        norm_cfg: Norm layer in mmcv's form; None is BatchNorm with the original's eps and momentum.
        act_cfg: Activation in mmcv's form; None is SiLU.
    """
    norm_cfg = dict(DEFAULT_NORM_CFG if norm_cfg is None else norm_cfg)
    act_cfg = dict(type=SiLU) if act_cfg is None else dict(act_cfg)
    return partial(ConvModule, norm_cfg=norm_cfg, act_cfg=act_cfg)


def conv3x3_chain(conv: ConvFactory, in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """``depth`` 3x3 convolutions in a row; only the first changes the number of channels."""
    return nn.Sequential(*(conv(in_channels if i == 0 else channels, channels, 3, padding=1) for i in range(depth)))


class ELAN(nn.Module):
    """Efficient layer aggregation of the backbone: two 1x1 branches, the second deepened twice.

    Args:
        conv: Factory of :func:`conv_factory`.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        ratio: Width of the branches relative to ``in_channels``.
        depth: 3x3 convolutions in each of the two deeper parts.
    """

    def __init__(self, conv: ConvFactory, in_channels: int, out_channels: int, ratio: float, depth: int) -> None:
        super().__init__()
        channels = int(in_channels * ratio)
        self.shortcut = conv(in_channels, channels, 1)
        self.main = conv(in_channels, channels, 1)
        self.deeper = conv3x3_chain(conv, channels, channels, depth)
        self.deepest = conv3x3_chain(conv, channels, channels, depth)
        self.fuse = conv(4 * channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        main = self.main(x)
        deeper = self.deeper(main)
        return self.fuse(torch.cat([self.shortcut(x), main, deeper, self.deepest(deeper)], 1))


class FPNELAN(nn.Module):
    """ELAN of the neck: more and thinner stages, with the output of each one kept.

    Args:
        conv: Factory of :func:`conv_factory`.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_stages: Stages chained after the second branch.
        depth: 3x3 convolutions in each stage.
    """

    def __init__(self, conv: ConvFactory, in_channels: int, out_channels: int, num_stages: int, depth: int) -> None:
        super().__init__()
        branch, thin = in_channels // 2, in_channels // 4
        self.shortcut = conv(in_channels, branch, 1)
        self.main = conv(in_channels, branch, 1)
        self.stages = nn.ModuleList(
            conv3x3_chain(conv, branch if i == 0 else thin, thin, depth) for i in range(num_stages)
        )
        self.fuse = conv(2 * branch + num_stages * thin, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        outs = [self.shortcut(x), self.main(x)]
        for stage in self.stages:
            outs.append(stage(outs[-1]))
        return self.fuse(torch.cat(outs, 1))


class Down(nn.Module):
    """Halve the resolution by max pooling and by a strided convolution side by side, for half of the channels each.

    Args:
        conv: Factory of :func:`conv_factory`.
        in_channels: Channels of the input.
        out_channels: Channels of the output, even.
    """

    def __init__(self, conv: ConvFactory, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.pool = nn.Sequential(nn.MaxPool2d(2, 2), conv(in_channels, half, 1))
        self.stride = nn.Sequential(conv(in_channels, half, 1), conv(half, half, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / 2, W / 2)."""
        return torch.cat([self.pool(x), self.stride(x)], 1)


class SPPF(nn.Module):
    """Spatial pyramid pooling: one 5x5 max pooling, applied up to three times, with every result kept.

    Args:
        conv: Factory of :func:`conv_factory`.
        channels: Channels of input and output.
    """

    def __init__(self, conv: ConvFactory, channels: int) -> None:
        super().__init__()
        self.reduce = conv(channels, channels, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.fuse = conv(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        outs = [self.reduce(x)]
        for _ in range(3):
            outs.append(self.pool(outs[-1]))
        return self.fuse(torch.cat(outs, 1))


class SPPFCSP(nn.Module):
    """SPPF between two 3x3 convolutions, beside a 1x1 shortcut.

    Args:
        conv: Factory of :func:`conv_factory`.
        in_channels: Channels of the input, even.
        out_channels: Channels of the output.
    """

    def __init__(self, conv: ConvFactory, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = in_channels // 2
        self.shortcut = conv(in_channels, half, 1)
        self.main = nn.Sequential(
            conv(in_channels, half, 1),
            conv(half, half, 3, padding=1),
            SPPF(conv, half),
            conv(half, half, 3, padding=1),
        )
        self.fuse = conv(2 * half, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.fuse(torch.cat([self.shortcut(x), self.main(x)], 1))
