"""ELANNet, the backbone: image -> c3, c4, c5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmdet.models.utils import make_divisible
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.checkpoint import check_weights
from ..utils.configs import type_name
from ..utils.options import OptionError, checked_options
from .layers import CONV_INIT_CFG, ELAN, Down, conv_factory


class ELANNetArch(NamedTuple):
    """One row of the table of backbones, before the multipliers.

    stem: (channels, stride) of each 3x3 of the stem. entry: channels of the strided 3x3 that opens stage 1.
    out_channels, ratios: those of each stage's ELAN. depth: 3x3 convolutions in each deeper part of an ELAN.
    pooled: whether stages 2 to 4 begin with a plain max pooling instead of :class:`Down`.
    """

    stem: tuple[tuple[int, int], ...]
    entry: int
    out_channels: tuple[int, int, int, int]
    ratios: tuple[float, float, float, float]
    depth: int
    pooled: bool


@MODELS.register_module()
@checked_options
class ELANNet(BaseModule):
    """The backbone of YOLOv7, without tricks, in three sizes.

    Source: RT-ODLab (MIT), ``yolov7_backbone``; after 'Designing Network Design Strategies Through Gradient Path
    Analysis'.

    Args:
        arch: 'tiny', 'large' (YOLOv7) or 'huge' (YOLOv7-X).
        deepen_factor: Multiplier of the number of 3x3 convolutions in each part of an ELAN, which keeps at least one.
        widen_factor: Multiplier of all channels, rounded up to a multiple of 8.
        out_indices: Which outputs to return: 0 is the stem (stride 2), 1 to 4 are the stages (stride 4 to 32).
        frozen_stages: Freeze the stem and the stages up to this one; 0 is the stem alone, -1 nothing.
        norm_eval: Keep all BatchNorms in evaluation mode while training.
        norm_cfg: Norm layer; None is BatchNorm with eps 1e-3 and momentum 0.03.
        act_cfg: Activation; None is SiLU.
        init_cfg: Initialisation, e.g. ``dict(type='Pretrained', checkpoint='rtodlab://elannet_large')``, with
            ``prefix='backbone.'`` from a detector's checkpoint; None is PyTorch's default.
        in_channels: Channels of the images: 3, which grey images and those with alpha are read as.

    Attributes:
        out_channels (tuple[int]): Channels of each returned output, for the neck's ``in_channels``.

    Raises:
        OptionError: An unknown ``arch``, other channels, or a multiplier or index out of range.
    """

    arch_settings = {
        'tiny': ELANNetArch(((32, 2),), 64, (64, 128, 256, 512), (0.5, 0.5, 0.5, 0.5), 1, True),
        'large': ELANNetArch(((32, 1), (64, 2), (64, 1)), 128, (256, 512, 1024, 1024), (0.5, 0.5, 0.5, 0.25), 2, False),
        'huge': ELANNetArch(((40, 1), (80, 2), (80, 1)), 160, (320, 640, 1280, 1280), (0.5, 0.5, 0.5, 0.25), 3, False),
    }

    def __init__(
        self,
        arch: str = 'large',
        deepen_factor: float = 1.0,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (2, 3, 4),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__(init_cfg=CONV_INIT_CFG if init_cfg is None else init_cfg)
        if arch not in self.arch_settings:
            raise OptionError(f'ELANNet: arch must be one of {sorted(self.arch_settings)}, got {arch!r}')
        if in_channels != 3:
            raise OptionError(
                f'ELANNet: in_channels must be 3, got {in_channels}: images are read and augmented as BGR. Leave it at '
                '3; grey images are read as three equal channels, and alpha is dropped. For other bands write three of '
                'them into image files'
            )
        if not (deepen_factor > 0 and widen_factor > 0):
            raise OptionError(
                f'ELANNet: deepen_factor and widen_factor must be above 0, got {deepen_factor} and {widen_factor}'
            )
        if not out_indices or any(i not in range(5) for i in out_indices):
            raise OptionError(f'ELANNet: out_indices must be out of 0 (stem) to 4 (stride 32), got {out_indices}')
        if frozen_stages not in range(-1, 5):
            raise OptionError(f'ELANNet: frozen_stages must be -1 (none) to 4 (all), got {frozen_stages}')
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        settings = self.arch_settings[arch]
        conv = conv_factory(norm_cfg, act_cfg)
        depth = max(1, round(settings.depth * deepen_factor))

        def scale(channels: int) -> int:
            return make_divisible(channels * widen_factor, 8)

        stem = []
        channels = in_channels
        for width, stride in settings.stem:
            stem.append(conv(channels, scale(width), 3, stride=stride, padding=1))
            channels = scale(width)
        self.stem = nn.Sequential(*stem)

        widths = [channels]
        for i, (width, ratio) in enumerate(zip(settings.out_channels, settings.ratios)):
            if i == 0:
                down = conv(channels, scale(settings.entry), 3, stride=2, padding=1)
                channels = scale(settings.entry)
            else:
                down = nn.MaxPool2d(2, 2) if settings.pooled else Down(conv, channels, channels)
            self.add_module(f'stage{i + 1}', nn.Sequential(down, ELAN(conv, channels, scale(width), ratio, depth)))
            channels = scale(width)
            widths.append(channels)
        self.layers = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        # DDP and the optimiser look at the parameters before the first train(), so the frozen ones are marked now.
        self.train(self.training)

    def init_weights(self) -> None:
        """Initialise.

        Raises:
            CheckpointError: Pretrained weights that are not of this backbone, which mmengine would load in part.
        """
        if isinstance(self.init_cfg, dict) and type_name(self.init_cfg) in ('Pretrained', 'PretrainedInit'):
            self.init_cfg = {**self.init_cfg, 'type': 'Pretrained'}  # the only name that mmengine loads last
            checkpoint, prefix = self.init_cfg['checkpoint'], self.init_cfg.get('prefix') or ''
            loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
            loaded = loaded.get('state_dict', loaded)
            prefix = f'{prefix.rstrip(".")}.' * bool(prefix)
            wanted = self.state_dict()
            found = {key: loaded[prefix + key] for key in wanted if prefix + key in loaded}
            check_weights(found, wanted, checkpoint, 'this ELANNet')
        super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            x: Images, (B, 3, H, W), H and W multiples of 32.

        Returns:
            The outputs named by ``out_indices``, each (B, C, H / s, W / s).
        """
        outs = []
        for i, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> ELANNet:
        """Set the mode, but keep what ``frozen_stages`` and ``norm_eval`` ask for."""
        super().train(mode)
        for name in self.layers[: self.frozen_stages + 1]:
            getattr(self, name).eval().requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
