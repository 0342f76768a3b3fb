"""Weights with their channels last in memory."""

from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.optim import Optimizer

from ..utils.options import checked_options


@HOOKS.register_module()
@checked_options
class MemoryFormatHook(Hook):
    """Put the weights, and so all activations, into memory with their channels last, on CPU and CUDA.

    Convolutions are faster so; only their rounding changes. A checkpoint loads into either order.

    Args:
        channels_last: False leaves the model as it is.
    """

    priority = 'VERY_HIGH'  # before the EMA hook, which copies the model

    def __init__(self, channels_last: bool = True) -> None:
        self.channels_last = channels_last

    def before_run(self, runner: Runner) -> None:
        """Convert the model."""
        if self.channels_last and {parameter.device.type for parameter in runner.model.parameters()} <= {'cpu', 'cuda'}:
            runner.model.to(memory_format=torch.channels_last)


def match_memory_format(optimizer: Optimizer) -> None:
    """Lay out the states of an optimiser in memory like their parameters, as fused optimisers need them.

    torch leaves a loaded state as it was saved. On a CPU a fused AdamW would then take each number for that of another
    weight, without a word.

    Args:
        optimizer: Its states are replaced.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                like_parameter = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                state[name] = like_parameter.copy_(value)
