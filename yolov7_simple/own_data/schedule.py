"""Learning rate and schedule of a config, fitted to the batch and the length."""

from __future__ import annotations

import math
import os

from mmengine.config import Config

from ..runtime.errors import InputError
from ..utils.configs import type_name
from .finetune import LEARNING_RATE_SHARE
from .kept_plan import KeptPlan
from .plan import SHORT_RUN, EpochSchedule, Limits, default_epochs, learning_rate, make_schedule

AS_CONFIG = 'as in the config'
AS_OPTIONS = 'as --cfg-options say'
AS_BEFORE = 'as at the first start'


def num_processes() -> int:
    """How many processes train, as torchrun or slurm says before they are joined."""
    return int(os.environ.get('WORLD_SIZE') or os.environ.get('SLURM_NTASKS') or 1)


def count_steps(cfg: Config, num_images: int) -> int:
    """Steps of an epoch."""
    return math.ceil(num_images / (cfg.train_dataloader.batch_size * num_processes()))


def total_batch(cfg: Config) -> int:
    """Images of an update, of all processes and all batches that are accumulated."""
    return cfg.train_dataloader.batch_size * num_processes() * cfg.optim_wrapper.get('accumulative_counts', 1)


def read_limits(cfg: Config) -> Limits:
    """What a config says of the length.

    Raises:
        InputError: Its schedule is not a warm-up and a cosine.
    """
    kinds = [type_name(one) for one in cfg.get('param_scheduler', [])]
    if kinds not in (['LinearLR', 'CosineToEndLR'], ['LinearLR', 'CosineAnnealingLR']):
        raise InputError(f'{cfg.filename}: --data needs a param_scheduler of LinearLR and CosineToEndLR')
    hooks = [hook for hook in cfg.get('custom_hooks', []) if type_name(hook) == 'LastStageHook']
    return Limits(
        cfg.train_cfg.max_epochs,
        min((hook['num_last_epochs'] for hook in hooks), default=None),
        cfg.train_cfg.get('val_interval', 1),
    )


def apply_schedule(cfg: Config, schedule: EpochSchedule) -> None:
    """Set a length and all that follows from it."""
    epochs, steps, warmup, last, interval, every = schedule
    schedulers = cfg.param_scheduler
    schedulers[0].update(begin=0, end=warmup)
    # Never of length 0, also where there is but one epoch.
    schedulers[1].update(begin=warmup, end=max(epochs, warmup + 1), T_max=max(epochs - warmup, 1))
    for hook in cfg.get('custom_hooks', []):
        if type_name(hook) == 'LastStageHook':
            hook['num_last_epochs'] = last
    cfg.train_cfg.update(max_epochs=epochs, val_interval=interval, dynamic_intervals=[(epochs - last, every)])
    # Twice an epoch, or more often.
    cfg.default_hooks.logger.interval = min(cfg.default_hooks.logger.get('interval', 10), max(1, steps // 2))
    cfg.auto_scale_lr.enable = True  # from the real batch, of all GPUs and all that is accumulated


def set_rate(cfg: Config, schedule: EpochSchedule, is_trained: bool, kept: KeptPlan | None) -> str:
    """Set the learning rate; return why it is that.

    Args:
        cfg: With batch and length; its rate is for its ``auto_scale_lr.base_batch_size``.
        schedule: Its length.
        is_trained: Whether it starts from a detector's trained weights.
        kept: Of the first start; of one before there were plans, the rate is the config's.
    """
    optimizer = cfg.optim_wrapper.optimizer
    if kept and kept.rate:
        optimizer.lr, cfg.auto_scale_lr.base_batch_size = kept.rate
        return AS_BEFORE
    if not kept and type_name(optimizer) == 'AdamW' and schedule.epochs * schedule.steps <= SHORT_RUN:
        optimizer.lr = learning_rate(total_batch(cfg), is_trained)
        cfg.auto_scale_lr.base_batch_size = total_batch(cfg)
        return 'as measured for ' + ('trained weights' if is_trained else 'random weights')
    if is_trained:
        optimizer.lr *= LEARNING_RATE_SHARE
        return f'{LEARNING_RATE_SHARE:g} times that of the config, for trained weights'
    return AS_CONFIG


def set_schedule(cfg: Config, num_images: int, epochs: int | None) -> EpochSchedule:
    """Fit learning rate and schedule to the batch and the size of the set.

    Args:
        cfg: A config whose schedule is a warm-up and a cosine, counted in epochs.
        num_images: Images to train on.
        epochs: Length of the training; None: as :func:`default_epochs` has it.

    Returns:
        The schedule.

    Raises:
        InputError: The config's schedule is of another kind.
    """
    limits, steps = read_limits(cfg), count_steps(cfg, num_images)
    schedule = make_schedule(steps, epochs or default_epochs(steps, limits), limits)
    apply_schedule(cfg, schedule)
    return schedule
