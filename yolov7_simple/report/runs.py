"""Read what a run left in its folder (config, checkpoint, logs), and the learning rate that its config plans."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from mmdet.registry import PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..engine.kept_step import STEP_STEM
from ..engine.loops import resolve_intervals
from ..runtime.errors import InputError
from ..utils.configs import type_name

POINTS_PER_EPOCH = 20  # of the learning rate, enough to show the shortest warm-up


class Run(NamedTuple):
    """A folder of a run: its newest config, a checkpoint, and the logged records.

    ``train`` holds the training records by step (``iter``, ``epoch``, ``lr``, ``loss`` ...), ``val`` those of
    validations (``step``, which is the epoch, and the metrics).
    """

    config: Path
    checkpoint: Path
    train: list[dict]
    val: list[dict]


def read_run(work_dir: Path, checkpoint: Path | None = None) -> Run:
    """Find config, checkpoint and logs of a run.

    Args:
        work_dir: Folder that training wrote.
        checkpoint: Checkpoint to use; None: the best one, or the last one if none was evaluated.

    Raises:
        InputError: No folder, or one without config, checkpoint or log.
    """
    if not work_dir.is_dir():
        raise InputError(f'{work_dir}: there is no such folder; name the work dir of a run, such as work_dirs/NAME')

    def newest(pattern: str) -> Path | None:
        files = (path for path in work_dir.glob(pattern) if not path.name.startswith(STEP_STEM))
        return max(files, key=lambda path: path.stat().st_mtime, default=None)

    config = newest('*.py')
    if config is None:
        raise InputError(f'{work_dir}: has no config (*.py), so it is not the work dir of a run')
    if checkpoint is None:
        last = work_dir / 'last_checkpoint'
        checkpoint = newest('best_*.pth') or (Path(last.read_text().strip()) if last.is_file() else newest('*.pth'))
        if checkpoint is not None and not checkpoint.is_file():
            checkpoint = work_dir / checkpoint.name  # the folder was moved
    if checkpoint is None:
        raise InputError(f'{work_dir}: has no checkpoint (*.pth) yet; train first, or name one with --checkpoint')
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise InputError(f'{work_dir}: has no log (*/vis_data/scalars.json, which LocalVisBackend writes)')
    return Run(config, checkpoint, *read_logs(logs))


def read_logs(logs: list[Path]) -> tuple[list[dict], list[dict]]:
    """Read the logs of a run and of its resumed parts; returns training and validation records.

    Raises:
        InputError: A line is not a record. The last line of a log is exempt, since a killed run may have cut it.
    """
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for log in logs:
        lines = [line for line in log.read_text(encoding='utf-8').splitlines() if line.strip()]
        is_first = {'train': True, 'val': True}
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                kind, key = ('train', record['iter']) if 'loss' in record else ('val', record['step'])
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise InputError(f'{log}, line {number}: not a record of a log: {error!r}') from error
            known = train if kind == 'train' else val
            if is_first[kind]:
                # This part repeats what an earlier one logged after the point that it was resumed from.
                for old in [one for one in known if one >= key]:
                    del known[old]
                is_first[kind] = False
            known[key] = record
    return [train[key] for key in sorted(train)], [val[key] for key in sorted(val)]


def metric_key(val: list[dict], name: str) -> str | None:
    """Logged name of a metric, with any prefix, such as ``coco/bbox_mAP`` for ``bbox_mAP``; None if not logged."""
    pattern = re.compile(rf'(.*/)?{re.escape(name)}')
    return next((key for record in val for key in record if pattern.fullmatch(key)), None)


class Schedule(NamedTuple):
    """The planned learning rate, and when warm-up, last stage and validations are, in epochs."""

    epochs: list[float]
    lrs: list[float]
    warmup: float
    last_stage: float | None
    validations: list[int]


def plan_schedule(cfg: Config) -> Schedule:
    """Compute the learning rate over the epochs with the schedulers that training uses, without data.

    Raises:
        InputError: The config has no schedule in epochs.
    """
    train_cfg, wrapper = cfg.get('train_cfg') or {}, cfg.get('optim_wrapper') or {}
    max_epochs, lr = train_cfg.get('max_epochs'), wrapper.get('optimizer', {}).get('lr')
    if not max_epochs or lr is None:
        raise InputError(f'{cfg.filename}: has no train_cfg.max_epochs and optim_wrapper.optimizer.lr to draw')
    configs = cfg.get('param_scheduler') or []
    configs = [dict(one) for one in (configs if isinstance(configs, list) else [configs])]
    for one in configs:
        if not one.get('by_epoch', True):
            raise InputError(
                f'{cfg.filename}: {type_name(one)} counts steps (by_epoch=False); only epochs can be drawn'
            )
    scaling = cfg.get('auto_scale_lr') or {}
    if scaling.get('enable'):
        batch_size = cfg.train_dataloader.batch_size * wrapper.get('accumulative_counts', 1)
        lr *= batch_size / scaling['base_batch_size']

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr, momentum=0.9)
    schedulers = []
    for one in configs:
        one.setdefault('end', max_epochs)
        defaults = {'optimizer': optimizer, 'epoch_length': POINTS_PER_EPOCH}
        schedulers.append(PARAM_SCHEDULERS.build(one, default_args=defaults))
    lrs = []
    for step in range(max_epochs * POINTS_PER_EPOCH):
        lrs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()  # changes nothing; mmengine wants it before the schedulers
        for scheduler in schedulers:
            if not scheduler.by_epoch or (step + 1) % POINTS_PER_EPOCH == 0:
                scheduler.step()
    last = [hook['num_last_epochs'] for hook in cfg.get('custom_hooks') or [] if type_name(hook) == 'LastStageHook']
    return Schedule(
        [step / POINTS_PER_EPOCH for step in range(len(lrs))],
        lrs,
        max([one['end'] for one in configs if type_name(one) == 'LinearLR' and not one.get('begin')], default=0),
        max(0, max_epochs - last[0]) if last and last[0] else None,
        validation_epochs(train_cfg, max_epochs),
    )


def validation_epochs(train_cfg: dict, max_epochs: int) -> list[int]:
    """The epochs after which mmengine's loop validates."""
    milestones = [(0, train_cfg.get('val_interval', 1))]
    milestones += resolve_intervals(train_cfg.get('dynamic_intervals'), max_epochs)
    epochs = []
    for epoch in range(1, max_epochs + 1):
        interval = [value for start, value in milestones if start <= epoch + 1][-1]
        if epoch >= train_cfg.get('val_begin', 1) and (epoch % interval == 0 or epoch == max_epochs):
            epochs.append(epoch)
    return epochs
