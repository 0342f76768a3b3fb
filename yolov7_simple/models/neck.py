"""ELANPAFPN, the neck: c3, c4, c5 -> p3, p4, p5 of one width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..utils.options import Count, OptionError, checked_options
from .layers import CONV_INIT_CFG, FPNELAN, SPPFCSP, Down, conv_factory


@MODELS.register_module()
@checked_options
class ELANPAFPN(BaseModule):
    """SPPF-CSP on c5, then a path-aggregation pyramid of ELANs: top-down, bottom-up.

    Source: RT-ODLab (MIT), ``yolov7_neck`` and ``yolov7_pafpn``.

    Args:
        in_channels: Channels of c3, c4, c5, as in the backbone's ``out_channels``.
        out_channels: Channels of every output, a multiple of 8 (the original: 128 for Tiny, 256, 320 for X).
        num_stages: Stages in each ELAN of the pyramid (2 for Tiny, 4).
        depth: 3x3 convolutions in each stage (2 for X, 1).
        norm_cfg: Norm layer; None is BatchNorm with eps 1e-3 and momentum 0.03.
        act_cfg: Activation; None is SiLU.
        init_cfg: Initialisation; None is PyTorch's default.

    Raises:
        ValueError: Channel lists that do not fit, here or in the inputs of ``forward``.
    """

    def __init__(
        self,
        in_channels: Sequence[Count],
        out_channels: int = 256,
        num_stages: Count = 4,
        depth: Count = 1,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=CONV_INIT_CFG if init_cfg is None else init_cfg)
        if len(in_channels) != 3 or in_channels[2] % 4:
            raise OptionError(
                f'ELANPAFPN: in_channels must be three numbers, for c3, c4 and c5 (a multiple of 4), got {in_channels}'
            )
        if out_channels < 8 or out_channels % 8:
            raise OptionError(f'ELANPAFPN: out_channels must be a multiple of 8, got {out_channels}')
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        conv = conv_factory(norm_cfg, act_cfg)
        c3, c4, c5 = in_channels
        # Names are those of the figure in docs/architecture.md; w3, w4, w5 are the widths inside the pyramid.
        q5, w3, w4, w5 = c5 // 2, out_channels // 2, out_channels, out_channels * 2

        def elan(in_width: int, out_width: int) -> FPNELAN:
            return FPNELAN(conv, in_width, out_width, num_stages, depth)

        self.spp = SPPFCSP(conv, c5, q5)
        self.upsample = nn.Upsample(scale_factor=2, mode='nearest')

        self.reduce_q5 = conv(q5, w4, 1)
        self.lateral_c4 = conv(c4, w4, 1)
        self.top_down_p4 = elan(2 * w4, w4)
        self.reduce_t4 = conv(w4, w3, 1)
        self.lateral_c3 = conv(c3, w3, 1)
        self.top_down_p3 = elan(2 * w3, w3)

        self.down_p3 = Down(conv, w3, w4)
        self.bottom_up_p4 = elan(2 * w4, w4)
        self.down_p4 = Down(conv, w4, w5)
        self.bottom_up_p5 = elan(w5 + q5, w5)

        self.out_p3, self.out_p4, self.out_p5 = (
            nn.Sequential(conv(width, 2 * width, 3, padding=1), conv(2 * width, out_channels, 1))
            for width in (w3, w4, w5)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse the levels.

        Args:
            inputs: c3, c4, c5, each (B, C, H / s, W / s) with s = 8, 16, 32.

        Returns:
            p3, p4, p5, each (B, out_channels, H / s, W / s).
        """
        channels = tuple(x.shape[1] for x in inputs)
        if channels != self.in_channels:
            raise OptionError(
                f'ELANPAFPN: built for in_channels={self.in_channels}, but the backbone gives {channels}; '
                'set neck.in_channels to what the backbone puts out'
            )
        c3, c4, c5 = inputs
        q5 = self.spp(c5)
        t4 = self.top_down_p4(torch.cat([self.upsample(self.reduce_q5(q5)), self.lateral_c4(c4)], 1))
        t3 = self.top_down_p3(torch.cat([self.upsample(self.reduce_t4(t4)), self.lateral_c3(c3)], 1))
        b4 = self.bottom_up_p4(torch.cat([self.down_p3(t3), t4], 1))
        b5 = self.bottom_up_p5(torch.cat([self.down_p4(b4), q5], 1))
        return self.out_p3(t3), self.out_p4(b4), self.out_p5(b5)
