"""Faster inference for those who stay in PyTorch: the same detections from the same weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from .options import checked_options


def speed_up(model: nn.Module, compiled: bool = False) -> nn.Module:
    """Make a detector that only detects, faster.

    BatchNorm is folded into the convolutions, and weights are laid out with channels last, which the activations
    follow. Both only change the rounding.

    Args:
        model: A detector; left as it is.
        compiled: Also compile backbone, neck and head with ``torch.compile``. The first image of each new size takes
            up to minutes.

    Returns:
        A copy, in evaluation mode.
    """
    model = fuse_conv_bn(deepcopy(model).eval()).to(memory_format=torch.channels_last).requires_grad_(False)
    if compiled:
        detector = getattr(model, 'module', model)  # of a model for test-time augmentation
        for part in (detector.backbone, detector.neck, detector.bbox_head):
            part.compile()
    return model


@HOOKS.register_module()
@checked_options
class FastInferenceHook(Hook):
    """Test with :func:`speed_up`; ``tools/test.py`` with ``custom_hooks=[dict(type='FastInferenceHook')]``.

    The model of the runner is another one during the test, and the same as before after it: what training goes on
    with, and the average that the EMA hook swaps in and out, are not touched.

    Args:
        compiled: As in :func:`speed_up`.
    """

    # After the EMA hook has put its average into the model, which is copied then.
    priority = 'LOWEST'

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self._original: nn.Module | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Put the faster copy in place."""
        self._original = runner.model
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        runner.model = speed_up(model, self.compiled)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the model back."""
        runner.model, self._original = self._original, None
