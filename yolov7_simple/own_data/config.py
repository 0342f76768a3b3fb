"""A config and a folder of one's own data -> a config for that data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmdet.registry import TRANSFORMS
from mmengine.config import Config

from ..apis.inference import load_config
from ..datasets.image_cache import CachePlan
from ..runtime.errors import InputError
from ..runtime.files import make_folder, replacing
from ..utils.configs import innermost_dataset, type_name
from ..utils.shared_files import free_bytes
from .finetune import EPOCHS_SHARE, LEARNING_RATE_SHARE, use_pretrained
from .folder import OwnData, read_own_data
from .tiles import Tiles, plan_tiles, set_tiles

# A small set is seen more often. Enough steps to learn something, and no fewer epochs than a fine-tuning needs.
MIN_STEPS = 5000
MIN_EPOCHS = 50
MIN_WARMUP_STEPS = 100
MAX_WARMUP_SHARE = 0.1
LAST_STAGE_SHARE = 0.3
CACHE_SHARE = 0.25  # of the memory that is free


def own_config(
    config: str | Path,
    folder: str | Path,
    work_dir: Path,
    epochs: int | None = None,
    pretrained: str | None = None,
    options: Mapping[str, Any] | None = None,
    tile: int | Literal['auto'] | None = None,
) -> tuple[Path, OwnData, str]:
    """Write a config for one's own data.

    Args:
        config: Config to start from.
        folder: The data, as :func:`read_own_data` takes it.
        work_dir: Folder of the run; the config and the annotations that are made go to ``own_data/`` in it.
        epochs: Length of the training; None: from the size of the set, and shorter with ``pretrained``.
        pretrained: Weights to start from, as :func:`use_pretrained` takes them; None: what the config says.
        options: Dotted key -> value of the config, which the plan counts with, and which win over it.
        tile: Side of windows in which large pictures are seen, as :func:`plan_tiles` takes it.

    Returns:
        Path of the config, the data, and the schedule in words.

    Raises:
        InputError: Config or data cannot be used.
        CheckpointError: The config, or the weights, cannot be loaded.
        OptionError: An option that nothing would read.
    """
    options = dict(options or {})
    out_dir = Path(work_dir) / 'own_data'
    cfg = load_config(config, options)
    if epochs is None:
        epochs = options.get('train_cfg.max_epochs')
    data = read_own_data(folder, out_dir)
    set_data(cfg, data)
    tiles, note = plan_tiles(cfg, data.splits['train'].ann_file, tile)
    set_cache(cfg, data.splits['train'].ann_file, tiles)
    num_images = tiles.num_samples if tiles else data.splits['train'].num_images
    schedule = set_schedule(cfg, num_images, epochs)
    make_folder(out_dir)
    if pretrained is not None:
        if epochs is None:
            schedule = set_schedule(cfg, num_images, math.ceil(EPOCHS_SHARE * cfg.train_cfg.max_epochs))
        lr_share = 1.0 if 'optim_wrapper.optimizer.lr' in options else LEARNING_RATE_SHARE
        schedule += f'; {use_pretrained(cfg, pretrained, data.classes, out_dir / "pretrained.pth", lr_share)}'
    cfg.merge_from_dict(options)
    if tiles:
        set_tiles(cfg, tiles)
    schedule += ''.join(f'\n  {text}' for text in (tiles, note) if text)
    # mmengine names the config that it saves in the work dir after this one.
    path = out_dir / f'{Path(work_dir).resolve().name}.py'
    with replacing(path) as temporary:
        cfg.dump(temporary)
    return path, data, schedule


def set_data(cfg: Config, data: OwnData) -> None:
    """Set data, classes and metric.

    Raises:
        InputError: The config has not the parts that this needs.
    """
    if 'num_classes' not in cfg.model.get('bbox_head', {}):
        raise InputError(f'{cfg.filename}: has no model.bbox_head.num_classes, which --data sets')
    cfg.model.bbox_head.num_classes = len(data.classes)
    test = data.splits.get('test', data.splits['val'])
    for stage, split in (('train', data.splits['train']), ('val', data.splits['val']), ('test', test)):
        loader = cfg[f'{stage}_dataloader']
        # More workers than cores only get into each other's way.
        loader.num_workers = min(loader.num_workers, os.cpu_count() or 1)
        dataset = innermost_dataset(loader.dataset)
        dataset.update(
            data_root=f'{data.root}/',
            ann_file=str(split.ann_file),
            data_prefix={'img': split.img_dir},
            metainfo={'classes': data.classes},
        )
        if split.has_copies:
            dataset.allow_outside = True
        if stage != 'train':
            cfg[f'{stage}_evaluator'].update(ann_file=str(split.ann_file), classwise=True)


def set_cache(cfg: Config, ann_file: Path, tiles: Tiles | None = None) -> None:
    """Keep decoded images in memory where the set takes at most :data:`CACHE_SHARE` of what is free."""
    dataset = cfg.train_dataloader.dataset
    mosaics = [step for step in dataset.get('pipeline', ()) if type_name(step) == 'MosaicAffineMixUp']
    is_fit = type_name(dataset) == 'SeededMixDataset' and len(mosaics) == 1 and 'cache_images' not in dataset
    if not is_fit or not hasattr(os, 'memfd_create'):
        return
    sizes = [(image['width'], image['height']) for image in json.loads(ann_file.read_text())['images']]
    mosaic = TRANSFORMS.build(mosaics[0])
    views = tiles.views if tiles else None
    plan = CachePlan(list(map(str, range(len(sizes)))), sizes, mosaic.img_scale, mosaic.enlargement, views)
    plan.lay_out(shrink=True)
    if plan.num_bytes(len(sizes)) <= CACHE_SHARE * free_bytes(None):
        dataset.cache_images = 'ram'


def set_schedule(cfg: Config, num_images: int, epochs: int | None) -> str:
    """Fit learning rate and schedule to the batch and the size of the set.

    Args:
        cfg: A config whose schedule is a warm-up and a cosine, counted in epochs.
        num_images: Images to train on.
        epochs: Length of the training; None: enough for :data:`MIN_STEPS` steps and :data:`MIN_EPOCHS`, but no more
            than the config has.

    Returns:
        The schedule in words.

    Raises:
        InputError: The config's schedule is of another kind.
    """
    schedulers = cfg.get('param_scheduler', [])
    kinds = [type_name(one) for one in schedulers]
    if kinds not in (['LinearLR', 'CosineToEndLR'], ['LinearLR', 'CosineAnnealingLR']):
        raise InputError(f'{cfg.filename}: --data needs a param_scheduler of LinearLR and CosineToEndLR')
    world_size = int(os.environ.get('WORLD_SIZE') or os.environ.get('SLURM_NTASKS') or 1)
    steps = math.ceil(num_images / (cfg.train_dataloader.batch_size * world_size))
    max_epochs = cfg.train_cfg.max_epochs
    if epochs is None:
        epochs = min(max_epochs, max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps)))
    warmup = max(1, min(math.ceil(MIN_WARMUP_STEPS / steps), int(MAX_WARMUP_SHARE * epochs)))
    hooks = [hook for hook in cfg.get('custom_hooks', []) if type_name(hook) == 'LastStageHook']
    last = min([round(LAST_STAGE_SHARE * epochs), *(hook['num_last_epochs'] for hook in hooks)])

    schedulers[0].update(begin=0, end=warmup)
    # Never of length 0, also where there is but one epoch.
    schedulers[1].update(begin=warmup, end=max(epochs, warmup + 1), T_max=max(epochs - warmup, 1))
    for hook in hooks:
        hook['num_last_epochs'] = last
    interval = max(1, min(cfg.train_cfg.get('val_interval', 1), epochs // 20))
    cfg.train_cfg.update(max_epochs=epochs, val_interval=interval, dynamic_intervals=[(epochs - last, 1)])
    # Twice an epoch, or more often.
    cfg.default_hooks.logger.interval = min(cfg.default_hooks.logger.get('interval', 10), max(1, steps // 2))
    cfg.auto_scale_lr.enable = True  # from the real batch, of all GPUs and all that is accumulated
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    return (
        f'{epochs} epochs of {steps} steps, {warmup} of them warm-up, the last {last} without mosaic; '
        'learning rate for the batch' + (f', {counts} of them accumulated' if counts > 1 else '')
    )
