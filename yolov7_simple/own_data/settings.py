"""The plan put into a config, and told: sizes, batch, length for a time, and lines that say what was taken and why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from mmengine.config import Config

from ..runtime.errors import InputError
from ..utils.configs import type_name
from .batch_size import AUTO, find_batch
from .box_sizes import SMALLEST_SIDE, BoxSizes
from .finetune import EPOCHS_SHARE
from .image_size import set_size, training_size
from .kept_plan import KeptPlan
from .measure import agreed, measure_costs
from .plan import (
    MAX_TIMED_EPOCHS,
    MIN_IMAGE_SIDE,
    EpochSchedule,
    ImageSize,
    Limits,
    choose_size,
    make_schedule,
    named,
    num_below,
    scaled,
)
from .schedule import AS_BEFORE, AS_CONFIG, AS_OPTIONS, apply_schedule, total_batch
from .tiles import DIVISOR, Tiles, plan_tiles
from .wall_time import Costs, TimedPlan, WallTime, plan_time


def fit_size(
    cfg: Config,
    boxes: BoxSizes,
    ann_file: Path,
    tile: int | Literal['auto'] | None,
    kept: KeptPlan | None,
    has_size: bool,
) -> tuple[dict[str, str], Tiles | None]:
    """Set the size of the images, and decide on windows, with which it stays the config's.

    Args:
        cfg: With the data; it is changed.
        boxes: Of the training set.
        ann_file: Of the training set.
        tile: As of :func:`plan_tiles`.
        kept: Of the first start.
        has_size: Whether the options say the size.

    Returns:
        Why the size is that, and what there is to say of boxes at it, as ``size`` and ``boxes``; and the windows.

    Raises:
        InputError: Windows make no sense.
    """
    size, why = training_size(cfg), AS_OPTIONS if has_size else AS_CONFIG
    if kept and tile is None:
        tile = kept.tile or 0
    sized = cfg
    if size and not has_size and not (kept and kept.size is None):
        sized = copy.deepcopy(cfg)
        new, why = (kept.size, AS_BEFORE) if kept else choose_size(boxes, size)
        set_size(sized, new)
    tiles, note = plan_tiles(sized, ann_file, tile)
    if tiles and not kept and training_size(sized) != size:  # windows enlarge the boxes for less
        tiles, note = plan_tiles(cfg, ann_file, tile or 'auto')
        why = AS_CONFIG
    elif size:
        set_size(cfg, training_size(sized))
    return {'size': why, 'boxes': str(tiles or note)}, tiles


def fit_batch(cfg: Config, asked: int | str | None, boxes: BoxSizes, kept: KeptPlan | None) -> str:
    """Set the batch of each process; return why it is that.

    Args:
        cfg: With classes and size; it is changed.
        asked: What the options say: a number, which the config has already, 'auto', or None.
        boxes: Of the training set.
        kept: Of the first start.

    Raises:
        InputError: Not even one image fits the memory.
    """
    if asked not in (None, AUTO):
        return AS_OPTIONS
    if kept:
        cfg.train_dataloader.batch_size = kept.batch_size or cfg.train_dataloader.batch_size
        return AS_BEFORE if kept.batch_size else AS_CONFIG
    if not torch.cuda.is_available():
        return AS_CONFIG + (', since auto needs a GPU' if asked else '')
    before = cfg.train_dataloader.batch_size
    batch, is_largest = find_batch(cfg, boxes)
    cfg.train_dataloader.batch_size = batch
    if is_largest:
        return 'the most that the memory holds'
    return AS_CONFIG if batch == before else 'the most that leaves enough steps, and the learning rate in bounds'


def fit_time(
    cfg: Config,
    wall_time: WallTime,
    finish: Callable[[Config], None],
    steps: int,
    limits: Limits,
    is_fixed: bool,
) -> TimedPlan:
    """Measure what training costs, and find size and length that fit a time; the size is set.

    Args:
        cfg: Complete but for its length and what ``finish`` does; it is changed.
        wall_time: The time.
        finish: Puts the options into a config, and the windows.
        steps: Of an epoch.
        limits: Of the config.
        is_fixed: Whether the size must stay.

    Raises:
        InputError: The time is too short.
    """
    size = training_size(cfg)
    if size is None:
        raise InputError(f'{cfg.filename}: --time needs a train pipeline with one MosaicAffineMixUp; use --epochs')
    least = max(MIN_IMAGE_SIDE, max(size) // 2)
    smaller = [] if is_fixed else [scaled(size, side) for side in range(max(size) - DIVISOR, least - 1, -DIVISOR)]

    def schedule_of(epochs: int, every: int) -> EpochSchedule:
        return make_schedule(steps, epochs, limits, every)

    def measure(one: ImageSize, seconds: float, known: Costs | None) -> Costs:
        trial = copy.deepcopy(cfg)
        set_size(trial, one)
        apply_schedule(trial, schedule_of(MAX_TIMED_EPOCHS, 1))
        finish(trial)
        return measure_costs(trial, seconds, known)

    plan = plan_time(wall_time, [size, *smaller], schedule_of, measure, agreed)
    set_size(cfg, plan.size)
    return plan


def plan_lines(cfg: Config, boxes: BoxSizes, steps: int, why: Mapping[str, str]) -> list[str]:
    """The plan in five lines, as the config has it in the end.

    Args:
        cfg: With all options.
        boxes: Of the training set.
        steps: Of an epoch.
        why: Reasons of ``size``, ``batch``, ``rate``, ``length`` and perhaps ``start``; what to say of ``boxes``.
    """
    size = training_size(cfg)
    lines = [f'size: {why["size"]}']
    if size:
        below = num_below(boxes, SMALLEST_SIDE, size)
        lost = f'{below} of {len(boxes.sides)} boxes ({below / max(len(boxes.sides), 1):.0%})'
        said = why['boxes'] or f'{lost} are then below {SMALLEST_SIDE:g} pixels'
        lines = [f'size: {named(size)}, {why["size"]}; {said}']
    loader, schedulers, total = cfg.train_dataloader, cfg.param_scheduler, total_batch(cfg)
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    base = cfg.auto_scale_lr.get('base_batch_size') if cfg.auto_scale_lr.get('enable') else None
    rate = cfg.optim_wrapper.optimizer.lr * (total / base if base else 1)
    of_all = f'; {total} images an update' if total != loader.batch_size else ''
    lines.append(
        f'batch: {loader.batch_size} images, {why["batch"]}'
        + (f', {counts} of them accumulated' if counts > 1 else '')
        + f'{of_all}; learning rate {rate:.3g}, {why["rate"]}'
    )
    epochs, warmup = cfg.train_cfg.max_epochs, schedulers[0].get('end', 0)
    lines.append(f'length: {epochs} epochs of {steps} steps, {why["length"]}; {warmup} of them warm-up')
    mosaic = next((one for one in loader.dataset.get('pipeline') or () if type_name(one) == 'MosaicAffineMixUp'), None)
    hooks = cfg.get('custom_hooks') or []
    last = max((hook.get('num_last_epochs', 0) for hook in hooks if type_name(hook) == 'LastStageHook'), default=0)
    augmentation = "the config's"
    if mosaic:
        low, high = mosaic.get('scaling_ratio_range', (0.1, 2.0))
        augmentation = f'mosaics, scaled {low:g} to {high:g} times, {mosaic.get("mixup_prob", 1.0):.0%} with mixup'
    lines.append(f'augmentation: {augmentation}, the last {last} epochs without')
    lines.append(f'start: {why.get("start") or start_of(cfg)}')
    return lines


def start_of(cfg: Config) -> str:
    """What a config starts from, in words."""
    if cfg.get('load_from'):
        return f'from {cfg.load_from}'
    backbone = cfg.model.get('backbone', {}).get('init_cfg')
    if backbone:
        return f'from a backbone of {backbone.get("checkpoint", "its init_cfg")}'
    share = f'{EPOCHS_SHARE:.0%} of the epochs'
    return f'from random weights; --pretrained starts from those for COCO, and needs {share}'
