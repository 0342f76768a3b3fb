"""The average of the weights, with all tensors moved at once."""

from __future__ import annotations

import torch
from mmdet.models.layers import ExpMomentumEMA
from mmdet.registry import MODELS
from torch import nn


@MODELS.register_module()
class ForeachExpMomentumEMA(ExpMomentumEMA):
    """mmdet's ExpMomentumEMA with the same options and numbers, but a few kernels a step instead of two a tensor.

    A tensor that the model holds under several names is averaged once a step.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.steps = self.steps.cpu()  # read at each step
        tensors = self.module.state_dict(keep_vars=True)
        unique = {id(tensors[name]): name for name, tensor in self.avg_parameters.items() if tensor.is_floating_point()}
        self.averaged_names = list(unique.values())

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model; the first call copies the model."""
        if self.steps == 0 or self.steps % self.interval:
            super().update_parameters(model)  # averages nothing
            return
        # How far the base's rule moves a tensor of 0 towards 1.
        share = torch.zeros((), dtype=torch.float64)
        self.avg_func(share, torch.ones_like(share), self.steps)
        momentum = share.item()

        sources = model.state_dict() if self.update_buffers else dict(model.named_parameters())
        averages = [self.avg_parameters[name] for name in self.averaged_names]
        sources = [sources[name].to(average.device) for name, average in zip(self.averaged_names, averages)]
        torch._foreach_mul_(averages, 1 - momentum)
        torch._foreach_add_(averages, sources, alpha=momentum)
        if not self.update_buffers:
            for average, source in zip(self.module.buffers(), model.buffers()):
                average.copy_(source)
        self.steps += 1
