"""Resuming a run: the config says how to train, the checkpoint how far the run is.

mmengine restores the schedule and the options of the optimiser from the checkpoint, so that what a user has changed in
the config since then (rate, weight decay, epochs, batch) would silently have no effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.optim import Optimizer

from ..utils.checkpoint import CheckpointError
from ..utils.config_differences import DifferenceRow, config_differences, table
from .branches import unwrapped_model
from .loops import INTERRUPTED, ResumableTrainLoop
from .optimizers import OF_THE_MACHINE, regroup_state
from .provenance import PROVENANCE, provenance_differences

GRADIENTS = 'accumulated_gradients'  # key of a checkpoint: {parameter: gradient} of steps that wait for an update


def restore_run(runner: Runner, checkpoint: dict, filename: str, now: dict[str, str]) -> None:
    """Change a checkpoint, before the runner reads it, so that the config rules and only the position is restored.

    Rates, weight decay and all other options are those that the config gives at the position of the checkpoint. Kept
    are the moments of the optimiser, the scale of the loss, the average of the weights and all counts. If an epoch has
    another number of batches now, the run goes on at the beginning of its epoch. What differs is logged in one table.

    Args:
        runner: With a built model, optimiser and schedule, before its first step.
        checkpoint: As :meth:`Runner.save_checkpoint` writes it; changed in place.
        filename: For messages.
        now: As of :func:`describe_run`.

    Raises:
        CheckpointError: It does not hold what resuming needs, or it was trained on other classes.
    """
    check_resumable(runner, checkpoint, filename)
    rows = config_differences(checkpoint['meta'].get('cfg'), runner.cfg.to_dict())
    rows += provenance_differences(checkpoint['meta'].get(PROVENANCE, {}), now)
    epoch, done = find_position(runner, checkpoint)
    restore_average(runner, checkpoint)
    if isinstance(runner.optim_wrapper, OptimWrapper):
        restore_optimizer(runner, checkpoint)
        rows += restore_schedule(runner, checkpoint, epoch, done)
    else:
        runner.logger.warning('Several optimisers: their rates and schedules are those of the checkpoint.')
    restore_gradients(runner, checkpoint)
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        checkpoint['meta']['iter'] = epoch * len(runner.train_dataloader) + done
    seed = runner._randomness_cfg.get('seed')
    if seed is not None:
        checkpoint['meta']['seed'] = seed
    sampler = runner.train_dataloader.batch_sampler.sampler
    if getattr(sampler, 'seed', None) == runner.seed:  # built before the seed of the checkpoint was known
        sampler.seed = checkpoint['meta'].get('seed', sampler.seed)
    # Noted before the checkpoint was loaded, and of the earlier run by now.
    known, noted = checkpoint['message_hub']['runtime_info'], runner.message_hub.runtime_info
    known.update((key, noted[key]) for key in ('cfg', 'experiment_name') if key in noted)
    if rows:
        runner.logger.warning(
            '\n'.join([f'{filename}: what differs from the checkpoint; what is of now rules.', *table(rows)])
        )
    if isinstance(runner.train_loop, EpochBasedTrainLoop) and epoch >= runner.max_epochs:
        runner.logger.warning(
            f'{filename} has trained {epoch} epochs, and the config asks for {runner.max_epochs}: nothing is left to '
            f'train. With train_cfg.max_epochs={2 * epoch}, for example, the run goes on.'
        )


def check_resumable(runner: Runner, checkpoint: dict, filename: str) -> None:
    """Refuse checkpoints that a run cannot go on from.

    Raises:
        CheckpointError: One of these.
    """
    lacking = [key for key in ('optimizer', 'message_hub', 'meta') if key not in checkpoint]
    if lacking:
        folder = Path(filename).parent
        others = sorted(folder.glob('epoch_*.pth'), key=lambda path: path.stat().st_mtime) if folder.is_dir() else ()
        raise CheckpointError(
            f'{filename}: a run cannot be resumed from it, as it holds no {" and no ".join(lacking)}; best_*.pth and '
            'published weights are such. '
            + (f'Resume from {others[-1]}, or start' if others else 'Start')
            + f' a new run from these weights: --cfg-options load_from={filename}, without --resume'
        )
    trained = (checkpoint['meta'].get('dataset_meta') or {}).get('classes')
    wanted = getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes')
    if trained and wanted and tuple(trained) != tuple(wanted):
        raise CheckpointError(
            f'{filename}: trained on other classes than the dataset has, or in another order: {tuple(trained)}, now '
            f'{tuple(wanted)}. Fine-tune instead: --cfg-options load_from={filename}, without --resume'
        )


def find_position(runner: Runner, checkpoint: dict) -> tuple[int, int]:
    """Epochs that a checkpoint has trained, and batches of the next one; for a loop without epochs 0 and batches."""
    epoch, iteration = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return 0, iteration
    # Only this loop skips the batches that an epoch has trained already.
    known = checkpoint['message_hub']['runtime_info'].get(INTERRUPTED)
    if known and isinstance(runner.train_loop, ResumableTrainLoop):
        interrupted, done, total = known
        if (interrupted, total) == (epoch, len(runner.train_dataloader)):
            return epoch, done
    return epoch, 0


def restore_average(runner: Runner, checkpoint: dict) -> None:
    """Give the weights themselves to a run without an EMA hook; its checkpoint holds the average in their place."""
    average = checkpoint.get('ema_state_dict')
    if average is None or any(isinstance(hook, EMAHook) for hook in runner.hooks):
        return
    runner.logger.warning('The checkpoint has an average of the weights (EMA), and the config none: it is dropped.')
    for name, value in average.items():
        if name.startswith('module.'):
            checkpoint['state_dict'][name.removeprefix('module.')] = value
    del checkpoint['ema_state_dict']


def state_names(optimizer: Optimizer) -> set[str] | None:
    """What an optimiser keeps for each parameter, found by a step of its own kind; None if that cannot be told."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    try:
        probe = type(optimizer)([weight], **optimizer.defaults)
        probe.step()
    except (TypeError, ValueError, RuntimeError):
        return None
    return set(probe.state[weight])


def restore_optimizer(runner: Runner, checkpoint: dict) -> None:
    """Give each parameter its moments, by name, where they fit the optimiser of the config."""
    saved, optimizer = checkpoint['optimizer'], runner.optim_wrapper.optimizer
    if not hasattr(runner.optim_wrapper, 'loss_scaler'):
        saved.pop('loss_scaler', None)
    kept = {name for state in saved['state'].values() for name in state}
    names = state_names(optimizer)
    if names is not None and kept and kept != names:
        runner.logger.warning(
            f'The config has another optimiser than the checkpoint: {type(optimizer).__name__} keeps '
            f'{", ".join(sorted(names)) or "nothing"} for each weight, the checkpoint has {", ".join(sorted(kept))}. '
            'What it keeps starts anew.'
        )
        saved['state'] = {}
        return
    model = unwrapped_model(runner)
    state, anew = regroup_state(saved, optimizer, model)
    if anew and state:
        runner.logger.warning(
            f'The checkpoint did not train {len(anew)} weights that this config trains, such as {anew[0]}: their '
            'moments start anew.'
        )
    saved['state'] = state


def restore_schedule(runner: Runner, checkpoint: dict, epoch: int, done: int) -> list[DifferenceRow]:
    """Walk the schedule of the config to the position, and put its values over those of the checkpoint.

    Walking repeats the arithmetic of the run, step by step, so that nothing changes if the config has not: the rate
    that a schedule gives depends on the one before.
    """
    schedulers, length = runner.param_schedulers or [], len(runner.train_dataloader)
    saved = checkpoint['optimizer']
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        return keep_schedule(runner, saved)
    by_step = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that a schedule is stepped without its optimiser
        for _ in range(epoch):
            walk(by_step, length)
            walk(by_epoch, 1)
        walk(by_step, done)
    checkpoint['param_schedulers'] = deepcopy([scheduler.state_dict() for scheduler in schedulers])

    live = runner.optim_wrapper.state_dict()
    rows = []
    for name in ('lr', 'weight_decay'):
        before, now = (sorted({group.get(name) for group in groups['param_groups']}) for groups in (saved, live))
        if before != now:
            rows.append((f'{name} at this step', numbers(before), numbers(now)))
    saved['param_groups'] = live['param_groups']
    if 'base_param_settings' in live:
        saved['base_param_settings'] = live['base_param_settings']
    return rows


def keep_schedule(runner: Runner, saved: dict) -> list[DifferenceRow]:
    """Keep the rates of the checkpoint, for a schedule that follows the validations and so cannot be repeated.

    Raises:
        CheckpointError: The config has other groups of parameters.
    """
    live = runner.optim_wrapper.state_dict()
    if len(saved['param_groups']) != len(live['param_groups']):
        raise CheckpointError(
            f'The schedule follows the validations, so its rates must come from the checkpoint, which has '
            f'{len(saved["param_groups"])} groups of parameters where the config has {len(live["param_groups"])}: '
            'resume with the config of that run'
        )
    runner.logger.warning('The schedule follows the validations: rates and schedule are those of the checkpoint.')
    for group, own in zip(saved['param_groups'], live['param_groups']):
        group.update((key, own[key]) for key in ('params', 'param_names', *OF_THE_MACHINE) if key in own)
    return []


def walk(schedulers: list, steps: int) -> None:
    """Step schedules as mmengine's ParamSchedulerHook does."""
    for _ in range(steps):
        for scheduler in schedulers:
            scheduler.step()


def keep_gradients(runner: Runner, checkpoint: dict) -> None:
    """Save the gradients of batches that wait for an update (``accumulative_counts``); each rank has its own."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapper) and not wrapper.should_update() and runner.world_size == 1:
        gradients = {name: weight.grad for name, weight in runner.model.named_parameters() if weight.grad is not None}
        checkpoint[GRADIENTS] = gradients


def restore_gradients(runner: Runner, checkpoint: dict) -> None:
    """Give the gradients of :func:`keep_gradients` back."""
    for name, gradient in checkpoint.pop(GRADIENTS, {}).items():
        runner.model.get_parameter(name).grad = gradient


def numbers(values: Iterable[float]) -> str:
    """Write numbers for the table."""
    return ', '.join(f'{value:.6g}' for value in values if value is not None)
