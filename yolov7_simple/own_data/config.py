"""A config and a folder of one's own data -> a config for that data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from numpy.typing import NDArray

from ..apis.inference import load_config
from ..datasets.image_cache import CachePlan
from ..engine.without_gpu import join_processes
from ..runtime.errors import InputError
from ..runtime.files import make_folder, replacing
from ..utils.configs import innermost_dataset, type_name
from ..utils.shared_files import free_bytes
from .batch_size import AUTO, BATCH_SIZE
from .box_sizes import read_box_sizes
from .finetune import EPOCHS_SHARE, use_pretrained
from .folder import OwnData, read_own_data
from .image_size import all_sizes, training_size
from .kept_plan import KeptPlan
from .plan import AUGMENTATION, default_epochs, make_schedule, named
from .schedule import AS_BEFORE, AS_OPTIONS, apply_schedule, count_steps, read_limits, set_rate, total_batch
from .schedule import set_schedule as set_schedule  # where it was before
from .settings import fit_batch, fit_size, fit_time, plan_lines
from .tiles import Tiles, set_tiles
from .wall_time import WallTime

CACHE_SHARE = 0.25  # of the memory that is free


def own_config(
    config: str | Path,
    folder: str | Path,
    work_dir: Path,
    epochs: int | None = None,
    pretrained: str | None = None,
    options: Mapping[str, Any] | None = None,
    tile: int | Literal['auto'] | None = None,
    wall_time: WallTime | None = None,
    resumed: Path | None = None,
    launcher: str = 'none',
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
        wall_time: The time that the training may take, in the place of ``epochs``.
        resumed: Work dir of the run that goes on, by the plan of its first start; None: a new one.
        launcher: What started this process and others, with which it must agree on what is measured.

    Returns:
        Path of the config, the data, and the plan in lines.

    Raises:
        InputError: Config or data cannot be used, or the time is too short.
        CheckpointError: The config, or the weights, cannot be loaded.
        OptionError: An option that nothing would read.
    """
    options = dict(options or {})
    out_dir = Path(work_dir) / 'own_data'
    kept = KeptPlan.of_first_start(resumed, wall_time) if resumed else None
    batch_size = options.get(BATCH_SIZE)
    if batch_size == AUTO:
        del options[BATCH_SIZE]
    cfg = load_config(config, options)
    limits = read_limits(cfg)
    has_size = bool(options) and all_sizes(cfg) != all_sizes(load_config(config))  # of the user's
    epochs = epochs or options.get('train_cfg.max_epochs')
    data = read_own_data(folder, out_dir)
    ann_file = data.splits['train'].ann_file
    boxes = read_box_sizes(ann_file)
    set_data(cfg, data)
    why, tiles = fit_size(cfg, boxes, ann_file, tile, kept, has_size)
    num_samples = tiles.num_samples if tiles else len(boxes.images)
    set_augmentation(cfg)
    set_cache(cfg, boxes.images, tiles)
    join_processes(launcher, cfg)
    why['batch'] = fit_batch(cfg, batch_size, boxes, kept)
    steps = count_steps(cfg, num_samples)
    why['length'] = 'as asked for'
    if epochs is None:
        epochs, why['length'] = default_epochs(steps, limits), f'for {num_samples} {"windows" if tiles else "images"}'
        if pretrained is not None:
            epochs, why['length'] = math.ceil(EPOCHS_SHARE * epochs), f'{why["length"]} and trained weights'
        if kept and kept.epochs:
            epochs, why['length'] = kept.epochs, AS_BEFORE + (f', for --time {kept.time}' if kept.time else '')
    make_folder(out_dir)
    if pretrained is not None:
        why['start'] = use_pretrained(cfg, pretrained, data.classes, out_dir / 'pretrained.pth')
    elif resumed:
        why['start'] = 'where the run was stopped'

    def finish(cfg: Config) -> None:
        cfg.merge_from_dict(options)
        if tiles:
            set_tiles(cfg, tiles)

    if wall_time and not kept:
        before = training_size(cfg)
        plan = fit_time(cfg, wall_time, finish, steps, limits, has_size or tiles is not None)
        schedule, why['length'] = plan.schedule, f'for --time {wall_time.text}: {plan}'
        if plan.size != before:
            why['size'] = f'and not {named(before)}, at which --time {wall_time.text} is too short'
    else:
        schedule = make_schedule(steps, epochs, limits, kept.every if kept and kept.every else 1)
    apply_schedule(cfg, schedule)
    is_trained = pretrained is not None or bool(cfg.get('load_from'))
    has_rate = 'optim_wrapper.optimizer.lr' in options
    why['rate'] = AS_OPTIONS if has_rate else set_rate(cfg, schedule, is_trained, kept)
    finish(cfg)
    KeptPlan(
        cfg.train_cfg.max_epochs,
        training_size(cfg),
        cfg.train_dataloader.batch_size,
        tiles.side if tiles else 0,
        schedule.every,
        (cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.get('base_batch_size', total_batch(cfg))),
        kept.time if kept else wall_time and wall_time.text,
    ).write(out_dir)
    # mmengine names the config that it saves in the work dir after this one.
    path = out_dir / f'{Path(work_dir).resolve().name}.py'
    with replacing(path) as temporary:
        cfg.dump(temporary)
    return path, data, '\n'.join(plan_lines(cfg, boxes, steps, why))


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


def set_augmentation(cfg: Config) -> None:
    """Set the options of the recipe's mosaic."""
    for step in cfg.train_dataloader.dataset.get('pipeline') or ():
        if type_name(step) == 'MosaicAffineMixUp':
            step.update(AUGMENTATION)


def set_cache(cfg: Config, sizes: NDArray, tiles: Tiles | None = None) -> None:
    """Keep decoded images, of these widths and heights (N, 2), in memory.

    Only where the set takes at most :data:`CACHE_SHARE` of what is free.
    """
    dataset = cfg.train_dataloader.dataset
    mosaics = [step for step in dataset.get('pipeline', ()) if type_name(step) == 'MosaicAffineMixUp']
    is_fit = type_name(dataset) == 'SeededMixDataset' and len(mosaics) == 1 and 'cache_images' not in dataset
    if not is_fit or not hasattr(os, 'memfd_create'):
        return
    mosaic = TRANSFORMS.build(mosaics[0])
    sizes = [(int(width), int(height)) for width, height in sizes]
    views = tiles.views if tiles else None
    plan = CachePlan(list(map(str, range(len(sizes)))), sizes, mosaic.img_scale, mosaic.enlargement, views)
    plan.lay_out(shrink=True)
    if plan.num_bytes(len(sizes)) <= CACHE_SHARE * free_bytes(None):
        dataset.cache_images = 'ram'
