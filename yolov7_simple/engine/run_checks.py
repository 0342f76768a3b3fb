"""What a config asks for that a run would only fail at later, or never say: refused before training starts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.samplers import MultiSourceSampler
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.engine.hooks import YOLOXModeSwitchHook
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner, ValLoop
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..datasets.coco import CheckedCocoDataset
from ..models.backbone import ELANNet
from ..utils.options import OptionError
from .branches import walk_transforms
from .hooks import find_mosaics
from .loops import LossValLoop
from .without_gpu import ranks_of_this_machine

SHARED_MEMORY = Path('/dev/shm')
BOX_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # of CocoMetric


def check_run(runner: Runner) -> None:
    """Check all of this module.

    Args:
        runner: About to train, with its loops built.

    Raises:
        OptionError: One of the checks fails.
    """
    check_steps(runner.train_dataloader)
    check_shared_memory(runner.train_dataloader)
    check_compile(runner)
    check_mode_switch(runner)
    check_best(runner)
    loaders = {'train_dataloader': runner.train_dataloader}
    if isinstance(runner.val_loop, ValLoop):
        loaders['val_dataloader'] = runner.val_loop.dataloader
    for name, loader in loaders.items():
        check_masks(name, loader.dataset)
        check_channels(name, loader.dataset, runner.model)


def check_steps(loader: DataLoader) -> None:
    """Check that an epoch has a step.

    Raises:
        OptionError: ``drop_last`` leaves none.
    """
    batches = loader.batch_sampler
    # These have no end, whatever their length.
    if len(loader) or isinstance(batches.sampler, (InfiniteSampler, MultiSourceSampler)):
        return
    ranks = get_world_size()
    share = f'{len(batches.sampler)} images' + (f' on each of {ranks} ranks' if ranks > 1 else '')
    raise OptionError(
        f'train_dataloader: {share} are no batch of {batches.batch_size}, and drop_last=True leaves them out, so there '
        'is no step to train: set train_dataloader.drop_last=False, or a smaller train_dataloader.batch_size'
    )


def check_shared_memory(loader: DataLoader) -> None:
    """Check that the batches of all workers fit into ``/dev/shm``, which has 64 MB in containers by default.

    Raises:
        OptionError: They do not, and a worker would die of a bus error.
    """
    sizes = [mosaic.img_scale for mosaic in find_mosaics(loader.dataset)]
    if not sizes or not loader.num_workers or not SHARED_MEMORY.is_dir():
        return
    one = 3 * int(max(size.prod() for size in sizes)) * loader.batch_size
    # Each worker has its batches in there, and another one is in use.
    ranks = ranks_of_this_machine()
    needed = one * (loader.num_workers * loader.prefetch_factor + 1) * ranks
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        fitting = max(0, (free // ranks // one - 1) // loader.prefetch_factor)
        raise OptionError(
            f'train_dataloader: {loader.num_workers} workers keep batches of {needed / 1e6:.0f} MB in {SHARED_MEMORY}, '
            f'which has {free / 1e6:.0f} MB free: start the container with --shm-size={math.ceil(needed / 1e9)}g or '
            f'more, or set train_dataloader.num_workers={fitting}'
            + (' and train_dataloader.persistent_workers=False' if not fitting else '')
        )


def check_compile(runner: Runner) -> None:
    """Check that a step that is compiled has no activation checkpointing, which the compiler cannot read.

    Raises:
        OptionError: It has.
    """
    if runner.cfg.get('activation_checkpointing') and runner.cfg.get('compile'):
        raise OptionError('compile and activation_checkpointing exclude each other: leave one of them out')


def check_mode_switch(runner: Runner) -> None:
    """Check that mmdet's hook for the last epochs of YOLOX has a mosaic of mmdet's to close.

    Raises:
        OptionError: It would leave ours open, or fail in one of the last epochs.
    """
    dataset = runner.train_dataloader.dataset
    hook = next((hook for hook in runner.hooks if isinstance(hook, YOLOXModeSwitchHook)), None)
    if hook and (any(find_mosaics(dataset)) or not hasattr(dataset, 'update_skip_type_keys')):
        raise OptionError(
            "YOLOXModeSwitchHook cannot close this dataset's augmentation: write "
            f"dict(type='LastStageHook', num_last_epochs={hook.num_last_epochs}, priority=48) in its place"
        )


def check_best(runner: Runner) -> None:
    """Check that the evaluation gives what ``save_best`` asks for, as far as that is known.

    Raises:
        OptionError: No metric gives one of the keys.
    """
    loop = runner.val_loop
    # Others may change the keys, as mmdet's TeacherStudentValLoop does, and so may hooks that are not the host's.
    if type(loop) not in (ValLoop, LossValLoop) or any(map(_may_add_keys, runner.hooks)):
        return
    metrics = loop.evaluator.metrics
    for hook in runner.hooks:
        for key in (isinstance(hook, CheckpointHook) and hook.save_best) or ():
            if key == 'auto' or 'loss' in key or any(_may_give(metric, key) for metric in metrics):
                continue
            offers = [(type(metric).__name__, _known_keys(metric), metric.prefix) for metric in metrics]
            found = [
                f'{name} gives {", ".join(keys) or "none"}'
                if keys is not None
                else f'those of {name} begin with {start}/'
                for name, keys, start in offers
            ]
            best = next((keys[0] for _, keys, _ in offers if keys), 'None')
            raise OptionError(
                f'{type(hook).__name__}: save_best={key} is no key of val_evaluator: {"; ".join(found)}. Set, for '
                f'example, default_hooks.checkpoint.save_best={best}'
            )


def _may_add_keys(hook: Hook) -> bool:
    package = type(hook).__module__.partition('.')[0]
    return type(hook).after_val_epoch is not Hook.after_val_epoch and package not in (
        'mmengine',
        'mmdet',
        'yolov7_simple',
    )


def _known_keys(metric: BaseMetric) -> list[str] | None:
    """All keys that a metric gives, without those of single classes; None if they are not known."""
    if type(metric) not in (CocoMetric, *map(METRICS.get, ('ExactFasterCocoMetric', 'WholePictureCocoMetric'))):
        return None
    if not {*metric.metrics} <= {'bbox', 'segm'}:
        return None
    items = metric.metric_items or BOX_ITEMS
    return [f'{metric.prefix}/{kind}_{item}' for kind in metric.metrics for item in items if not metric.format_only]


def _may_give(metric: BaseMetric, key: str) -> bool:
    if metric.prefix and not key.startswith(f'{metric.prefix}/'):
        return False
    keys = _known_keys(metric)
    return keys is None or key in keys or (metric.classwise and key.endswith('_precision'))


def check_masks(name: str, dataset: Dataset) -> None:
    """Check that no masks are loaded where there are none, or where they would be left behind by the boxes.

    Raises:
        OptionError: They are.
    """
    has_mosaic = any(find_mosaics(dataset))
    for owner, transform in walk_transforms(dataset):
        if not isinstance(transform, LoadAnnotations) or not (transform.with_mask or transform.with_seg):
            continue
        if has_mosaic or isinstance(owner, CheckedCocoDataset):
            option = 'with_mask' if transform.with_mask else 'with_seg'
            raise OptionError(
                f'{name}: LoadAnnotations({option}=True) in the pipeline of {type(owner).__name__}, but a detector is '
                f'trained on boxes, and masks are not read: set {option}=False there'
            )


def check_channels(name: str, dataset: Dataset, model: nn.Module) -> None:
    """Check that images are loaded as the backbone takes them.

    Raises:
        OptionError: With other channels, or as other numbers than in training.
    """
    if not any(isinstance(module, ELANNet) for module in model.modules()):
        return
    for owner, transform in walk_transforms(dataset):
        if not isinstance(transform, LoadImageFromFile):
            continue
        for option, value, fits in (
            ('color_type', transform.color_type, transform.color_type.startswith('color')),
            ('imdecode_backend', transform.imdecode_backend, transform.imdecode_backend != 'tifffile'),
        ):
            if not fits:
                raise OptionError(
                    f'{name}: LoadImageFromFile({option}={value!r}) in the pipeline of {type(owner).__name__}, but '
                    'ELANNet takes images of 3 channels and 8 bits: leave it out; grey images are then read as three '
                    'equal channels, and alpha is dropped'
                )
