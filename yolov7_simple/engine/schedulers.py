"""The learning rate over a run."""

from __future__ import annotations

from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim import CosineAnnealingLR
from mmengine.optim.scheduler.param_scheduler import INF


@PARAM_SCHEDULERS.register_module()
class CosineToEndLR(CosineAnnealingLR):
    """mmengine's CosineAnnealingLR from ``begin`` to the last step of the run, however long that is.

    The runner fills ``end`` in with ``train_cfg.max_epochs``, and ``T_max`` follows from it, so neither is set in a
    config. A run may end before ``begin``, within the warm-up: the cosine is then never reached, whereas mmengine's own
    class refuses to be built.

    Args:
        args: As of CosineAnnealingLR.
        begin: First epoch, or step.
        end: Last epoch, or step.
        kwargs: As of CosineAnnealingLR.
    """

    def __init__(self, *args, begin: int = 0, end: int = INF, **kwargs) -> None:
        super().__init__(*args, begin=begin, end=max(end, begin + 1), **kwargs)
