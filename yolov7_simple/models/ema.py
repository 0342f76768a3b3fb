"""The average of the weights, with all tensors moved at once."""

from __future__ import annotations

import torch
from mmdet.models.layers import ExpMomentumEMA
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from torch import nn

from ..utils.options import OptionError

RECIPE = 0.0002, 2000  # momentum and gamma for 300 epochs of COCO,
RECIPE_STEPS = 250_000  # which have about so many steps
MAX_MOMENTUM = 0.5  # in a run of but a few steps


@MODELS.register_module()
class ForeachExpMomentumEMA(ExpMomentumEMA):
    """mmdet's ExpMomentumEMA with the same options and numbers, but a few kernels a step instead of two a tensor.

    A tensor that the model holds under several names is averaged once a step.

    The recipe's momentum of 0.0002 and gamma of 2000 are for 300 epochs of COCO. In a run of fewer steps they follow
    its length, so that the average reaches over the same share of it. Other numbers are taken as they are.

    Args:
        base_steps: Length from which on the recipe's two numbers are as they are; None: in any run.
        args, kwargs: As of ExpMomentumEMA.
    """

    def __init__(self, *args, base_steps: int | None = RECIPE_STEPS, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if base_steps is not None and base_steps < 1:
            raise OptionError(f'ForeachExpMomentumEMA: base_steps must be at least 1, got {base_steps}')
        self.base_steps = base_steps
        self.follows = base_steps is not None and (self.momentum, self.gamma) == RECIPE
        self.steps = self.steps.cpu()  # read at each step
        tensors = self.module.state_dict(keep_vars=True)
        unique = {id(tensors[name]): name for name, tensor in self.avg_parameters.items() if tensor.is_floating_point()}
        self.averaged_names = list(unique.values())

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model; the first call copies the model."""
        self._fit_to_run()
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

    def _fit_to_run(self) -> None:
        """Set momentum and gamma for the length of the run, which mmengine tells in its message hub."""
        num_steps = MessageHub.get_current_instance().get_info('max_iters')
        if self.follows and num_steps:
            momentum, gamma = RECIPE
            share = min(1.0, num_steps / self.base_steps)
            self.momentum, self.gamma = max(momentum, min(MAX_MOMENTUM, momentum / share)), max(1, gamma * share)
