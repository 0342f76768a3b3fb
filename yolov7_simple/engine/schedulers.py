"""The learning rate over a run."""

from __future__ import annotations

from mmdet.registry import PARAM_SCHEDULERS, RUNNERS
from mmengine.optim import (
    ConstantParamScheduler,
    CosineAnnealingLR,
    LinearParamScheduler,
    OptimWrapper,
    _ParamScheduler,
)
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import Runner

from .run_checks import check_steps


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


@RUNNERS.register_module()
class FittedRateRunner(Runner):
    """mmengine's Runner, whose learning rate also fits accumulated batches and the shortest runs.

    - ``auto_scale_lr`` counts the images of an update: those of a batch, of all ranks, and of all batches that
      ``optim_wrapper.accumulative_counts`` accumulates; mmengine's counts a batch alone.
    - A warm-up of one step is left out. mmengine's would leave the rate where the warm-up begins, for the whole run.
    """

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate by the images of an update."""
        counts = (self.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
        base = (auto_scale_lr or {}).get('base_batch_size')
        if base and counts > 1 and auto_scale_lr.get('enable'):
            self.logger.info(f'{counts} batches are accumulated, so the LR is for {counts} times the images of one.')
            auto_scale_lr = {**auto_scale_lr, 'base_batch_size': base / counts}
        super().scale_lr(optim_wrapper, auto_scale_lr)

    def build_param_scheduler(self, scheduler: dict | list) -> list[_ParamScheduler] | dict[str, list[_ParamScheduler]]:
        """Build the schedulers, without warm-ups of one step.

        Raises:
            OptionError: An epoch has no step.
        """
        check_steps(self.train_dataloader)  # mmengine asserts that there are some
        built = super().build_param_scheduler(scheduler)
        for own in built.values() if isinstance(built, dict) else [built]:
            for one in [one for one in own if self._has_one_step(one)]:
                own.remove(one)
                end_warmup(one)
                self.logger.warning(f'{type(one).__name__}: a warm-up of one step is left out.')
        return built

    def _has_one_step(self, scheduler: _ParamScheduler) -> bool:
        """Whether a warm-up has but its first value, which then would stay."""
        if isinstance(scheduler, ConstantParamScheduler):
            return scheduler.factor < 1 and scheduler.end <= scheduler.begin + 1
        if not isinstance(scheduler, LinearParamScheduler) or scheduler.start_factor >= scheduler.end_factor:
            return False
        length = self.max_epochs if scheduler.by_epoch else self.max_iters
        return min(scheduler.end, length) <= scheduler.begin + 1


def end_warmup(scheduler: _ParamScheduler) -> None:
    """Give the parameter that a warm-up has just begun to change the value of its end."""
    if isinstance(scheduler, LinearParamScheduler):
        first, last = scheduler.start_factor, scheduler.end_factor
    else:
        first, last = scheduler.factor, 1.0
    if scheduler.last_step < 0:  # it begins later
        return
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_values):
        value = group[scheduler.param_name]
        group[scheduler.param_name] = value * last / first if first else base * last
