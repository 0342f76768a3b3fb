"""What a training costs, measured: a few steps of the real run, a part of its validation, and a checkpoint."""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import RUNNERS
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..apis.inference import quiet
from ..engine.run_checks import check_run
from ..utils.configs import innermost_dataset, type_name
from .image_size import training_size
from .tiles import DIVISOR
from .wall_time import Costs

# Epochs of a few steps, so that the first, in which images are read anew and kernels are made, is left out.
STEPS_AN_EPOCH = 8
MIN_STEPS_MEASURED, MAX_STEPS_MEASURED = 6, 60
MIN_VALIDATED, VALIDATION_SHARE = 4, 0.15  # batches, and share of the time for steps; the metric takes longer than that
BEST_SHARE = 0.4  # of a checkpoint, without the optimiser


class _Measured(Exception):
    """Ends the training that is measured."""


class Stopwatch(Hook):
    """Notes when steps end and which sizes they had, and ends the run.

    Args:
        seconds: That the steps may take.
    """

    priority = 'LOWEST'

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ends: list[float] = []
        self.areas: list[float] = []
        self.is_first: list[bool] = []  # of an epoch

    def before_train(self, runner: Runner) -> None:
        """Refuse what the real run would refuse, before it takes long."""
        check_run(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Note a step."""
        wait()
        self.ends.append(time.perf_counter())
        self.is_first.append(batch_idx == 0)
        sizes = runner.message_hub.log_scalars.get('train/img_size')
        self.areas.append(sizes.current() ** 2 if sizes else 1.0)
        passed = self.ends[-1] - self.ends[0]
        few = MIN_STEPS_MEASURED if passed < 3 * self.seconds else MIN_STEPS_MEASURED // 2
        is_long = len(self.ends) > few and passed >= self.seconds
        if agreed(is_long or len(self.ends) >= STEPS_AN_EPOCH + MAX_STEPS_MEASURED):
            raise _Measured

    def step_and_epoch(self, mean_area: float) -> tuple[float, float]:
        """Seconds of a step, at the mean of the areas that are drawn, and what is added between two epochs."""
        taken, areas = np.diff(self.ends), np.array(self.areas[1:])
        is_first = np.array(self.is_first[1:])
        skip = min(STEPS_AN_EPOCH, len(taken) // 2)
        inner = ~is_first
        inner[:skip] = False
        if not inner.any():  # epochs of one step
            return float(taken[skip:].mean()), 0.0
        step = at_area(taken[inner], areas[inner], mean_area)
        borders = is_first & (np.arange(len(taken)) >= skip)
        if not borders.any():
            return step, 0.0
        extra = taken[borders].mean() - at_area(taken[inner], areas[inner], areas[borders].mean())
        return step, max(float(extra), 0.0)


def at_area(seconds: np.ndarray, areas: np.ndarray, area: float) -> float:
    """Mean of seconds (N,), moved to a mean area by a line through them that falls neither nor begins below 0."""
    spread = areas - areas.mean()
    slope = (spread * seconds).sum() / (spread**2).sum() if spread.any() else 0.0
    slope = min(max(slope, 0.0), seconds.mean() / areas.mean())
    return float(seconds.mean() + slope * (area - areas.mean()))


def mean_area(cfg: Config) -> float | None:
    """Mean of the squared longer side over the sizes that BatchMultiScale draws; None without it."""
    width, height = training_size(cfg) or (1, 1)
    for one in cfg.model.get('data_preprocessor', {}).get('batch_augments') or ():
        if type_name(one) == 'BatchMultiScale':
            low, high = one['random_size_range']
            heights = np.arange(low, high + 1, one.get('size_divisor', DIVISOR))
            return float((heights**2).mean()) * max(width / height, 1) ** 2
    return None


def wait() -> None:
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def agreed(value):
    """The main rank's value, on all ranks."""
    if get_world_size() == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def short_config(cfg: Config, folder: str) -> Config:
    """A copy of a config for a run that is measured: few images an epoch, nothing written but into a folder."""
    cfg = copy.deepcopy(cfg)
    name = f'measured_{time.monotonic_ns()}'
    cfg.update(work_dir=folder, experiment_name=name, resume=False, launcher='pytorch' if is_distributed() else 'none')
    cfg.default_hooks.update(checkpoint=None, logger=None)  # of mmengine's own
    cfg.default_hooks.pop('visualization', None)
    if cfg.get('visualizer'):
        cfg.visualizer.update(name=name, vis_backends=[])
    batch = cfg.train_dataloader.batch_size * get_world_size()
    innermost_dataset(cfg.train_dataloader.dataset)['indices'] = STEPS_AN_EPOCH * batch
    cfg.train_cfg.update(val_begin=10**9)
    return cfg


def measure_costs(cfg: Config, seconds: float, known: Costs | None = None) -> Costs:
    """Train a few steps of a config, evaluate a few images and save a checkpoint.

    All ranks do so together, and get the numbers of the main one.

    Args:
        cfg: Complete, as it would be trained with.
        seconds: About how long the steps may take; some are always done.
        known: Of a run that differs in its steps alone.

    Raises:
        UserError: What the run itself would be refused for.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with tempfile.TemporaryDirectory(prefix='measure_') as folder, quiet():
        short = short_config(cfg, folder)
        begin = time.perf_counter()
        watch = Stopwatch(seconds)
        runner = RUNNERS.build(short) if 'runner_type' in short else Runner.from_cfg(short)
        runner.register_hook(watch)
        with suppress(_Measured):
            runner.train()
        step, border = watch.step_and_epoch(mean_area(cfg) or float(np.mean(watch.areas)))
        if known is None:
            saved = save_seconds(runner, folder)
            every = (cfg.default_hooks.get('checkpoint') or {}).get('interval', 1)
            validation = BEST_SHARE * saved + validation_seconds(runner, seconds) if runner.val_loop else 0.0
            known = Costs(0.0, 0.0, border + saved / max(every, 1), validation)
        costs = known._replace(start=max(watch.ends[0] - begin - step, 0.0), step=step)
    del runner, watch
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return agreed(costs)


def save_seconds(runner: Runner, folder: str) -> float:
    """Seconds of a checkpoint."""
    if not is_main_process():
        return 0.0
    begin = time.perf_counter()
    runner.save_checkpoint(folder, 'measured.pth', by_epoch=False)
    (Path(folder) / 'measured.pth').unlink()
    return time.perf_counter() - begin


@torch.no_grad()
def validation_seconds(runner: Runner, seconds: float) -> float:
    """Seconds of a whole validation, by a part of it: its images, and its metrics at half and at all of the part."""
    loop = runner.val_loop
    runner.model.eval()
    ends, begin = [], time.perf_counter()
    for i, batch in enumerate(loop.dataloader):
        loop.run_iter(i, batch)
        wait()
        ends.append(time.perf_counter())
        if agreed(len(ends) > MIN_VALIDATED and ends[-1] - begin > VALIDATION_SHARE * seconds):
            break
    runner.model.train()
    total, done = len(loop.dataloader), len(ends)
    images = total * float(np.mean(np.diff(ends))) if done > 1 else total * (ends[0] - begin)
    metrics = loop.evaluator.metrics
    kept = [list(metric.results) for metric in metrics]
    taken = []
    for part in dict.fromkeys([max(done // 2, 1), done]) if done < total else [done]:
        for metric, results in zip(metrics, kept):
            metric.results = results[: max(len(results) * part // done, 1)]
        start = time.perf_counter()
        loop.evaluator.evaluate(len(loop.dataloader.dataset))
        taken.append(time.perf_counter() - start)
    slope = max(taken[-1] - taken[0], 0.0) / max(done - done // 2, 1)
    return images + taken[-1] + slope * (total - done)
