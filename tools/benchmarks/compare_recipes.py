"""Train by several recipes on several small sets, with several seeds, and compare the mAP.

    python tools/benchmarks/compare_recipes.py DATA --sets bccd digits coco3 --recipes base ema_0.02 --seeds 0 1

DATA holds `bccd` and `coco_mini` as COCO files. The sets: blood cells; as many images of the demo's digits; coco_mini
with its three most frequent classes alone. A recipe is one row of RECIPES, several of them joined by `+`, or `yolox`,
mmdet's YOLOX-s, the peer. All have as many epochs (--epochs), or with --minutes as long a time.

The last epoch is evaluated on the validation split, and with --test, once the choice is made, on the test split. What
--work-dir has already is not repeated, and a training that was stopped goes on; its minutes count from there.
--screen is a third of the length, 224 pixels and half the width: one core makes fifteen of them in an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from yolov7_simple import config_path  # before mmdet: it stands in for missing mmcv ops

# isort: split

import matplotlib

matplotlib.use('Agg')
import numpy as np
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.runner import Runner

from yolov7_simple.apis.inference import load_config
from yolov7_simple.own_data.config import set_schedule
from yolov7_simple.runtime.files import make_folder, write_json

SPLITS = ('train', 'val', 'test')
# What all rows of RECIPES start from: the recipe by feel of configs/yolov7/yolov7_tiny_1xb8-40e_bccd.py, before it was
# measured. The rate is for a batch of 8 and follows it.
BEFORE = {
    'lr': 0.001,
    'decay': 0.05,
    'batch': 8,
    'mosaic': 1.0,
    'mixup': 0.0,
    'scale': (0.5, 1.5),
    'rotate': 10.0,
    'last': 0.3,
    'topk': 10,
    'radius': 2.5,
}
RECIPES: dict[str, dict[str, Any]] = {
    'base': {},
    'config': {'as_config': True},  # as the config is now
    # The average of the weights reaches over this share of the steps; over 0.018 in the recipe for COCO.
    'ema_0.02': {'ema': 0.02},
    'ema_0.05': {'ema': 0.05},
    'ema_0.1': {'ema': 0.1},
    'mosaic_0.75': {'mosaic': 0.75},
    'mosaic_0.5': {'mosaic': 0.5},
    'mosaic_0.25': {'mosaic': 0.25},
    'mosaic_0': {'mosaic': 0.0},
    'mixup_0.15': {'mixup': 0.15},
    'mixup_1': {'mixup': 1.0},
    'scale_narrow': {'scale': (0.8, 1.25)},
    'scale_wide': {'scale': (0.25, 1.75)},
    'straight': {'rotate': 0.0},
    'last_0.1': {'last': 0.1},
    'last_0.5': {'last': 0.5},
    'last_0.8': {'last': 0.8},
    'warmup_1': {'warmup': 1},
    'lr_0.5': {'lr': 0.0005},
    'lr_2': {'lr': 0.002},
    'lr_3': {'lr': 0.003},
    'lr_4': {'lr': 0.004},
    'lr_8': {'lr': 0.008},
    'decay_0.01': {'decay': 0.01},
    'decay_0.2': {'decay': 0.2},
    # Twice the steps; the rate follows the batch, or stays.
    'batch_4': {'batch': 4},
    'batch_4_same_lr': {'batch': 4, 'lr': 0.002},
    'no_l1': {'l1': False},
    'topk_5': {'topk': 5},
    'topk_20': {'topk': 20},
    'radius_1.5': {'radius': 1.5},
    'radius_4': {'radius': 4.0},
    'size_1.3': {'size': 1.3},
    'width_0.75': {'width': 0.75},
    'flat_hsv': {'hsv': False},
}
PEER = 'yolox'


class Data(NamedTuple):
    """A set in COCO's form: images below ``root``, a file of annotations for each split."""

    root: Path
    files: dict[str, Path]
    classes: tuple[str, ...]
    size: int | None = None  # of all its images, if that is not for us to choose


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('--sets', nargs='+', choices=SETS, default=list(SETS))
    parser.add_argument(
        '--recipes', nargs='+', default=list(RECIPES), help='the first one is compared with; default: all'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=40)
    parser.add_argument('--minutes', type=float, help='train as long as takes this time, by the pace of ten steps')
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('--width', type=float, default=1.0, help='relative to Tiny')
    parser.add_argument('--screen', action='store_true', help='13 epochs, 224 pixels, half the width')
    parser.add_argument('--test', action='store_true', help='evaluate the test split, too')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time, of one thread each')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_recipes'))
    args = parser.parse_args()
    if args.screen:
        args.epochs, args.size, args.width = 13, 224, 0.5
    for recipe in args.recipes:
        if unknown := [name for name in recipe.split('+') if name not in {*RECIPES, PEER}]:
            parser.error(f'--recipes {recipe}: there is no {unknown[0]}; there are {", ".join([*RECIPES, PEER])}')
    return args


def bccd(data: Path, _: Path) -> Data:
    """364 photographs of blood cells."""
    root = data / 'bccd/images'
    return Data(root, {name: data / f'bccd/annotations/{name}.json' for name in SPLITS}, ('RBC', 'WBC', 'Platelets'))


def digits(_: Path, folder: Path) -> Data:
    """The demo's handwritten digits on photographs, as many images as BCCD has."""
    path = Path(__file__).parents[1] / 'demo.py'
    spec = importlib.util.spec_from_file_location('demo', path)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.NUM_IMAGES = {'train': 205, 'val': 159}
    make_folder(folder)
    demo.make_data(folder)
    held_out = json.loads((folder / 'annotations/val.json').read_text())
    write_split(folder / 'annotations', held_out, {'val': range(87), 'test': range(87, 159)})
    files = {name: folder / f'annotations/{name}.json' for name in SPLITS}
    return Data(folder / 'images', files, tuple(map(str, range(10))), demo.IMAGE_SIZE)


def coco3(data: Path, folder: Path) -> Data:
    """COCO's photographs with their three most frequent classes, three fifths of them for training."""
    content: dict[str, list] = {'images': [], 'annotations': []}
    for split in ('train2017', 'val2017'):
        part = json.loads((data / f'coco_mini/annotations/instances_{split}.json').read_text())
        for image in part['images']:
            content['images'].append({**image, 'file_name': f'{split}/{image["file_name"]}'})
        content['annotations'] += part['annotations']
    counts = Counter(one['category_id'] for one in content['annotations'])
    wanted = [id_ for id_, _ in counts.most_common(3)]
    content['annotations'] = [one for one in content['annotations'] if one['category_id'] in wanted]
    content['categories'] = [one for one in part['categories'] if one['id'] in wanted]
    order = np.random.default_rng(0).permutation(len(content['images'])).tolist()
    first, second = len(order) * 3 // 5, len(order) * 4 // 5
    shares = {'train': order[:first], 'val': order[first:second], 'test': order[second:]}
    write_split(folder / 'annotations', content, shares)
    files = {name: folder / f'annotations/{name}.json' for name in SPLITS}
    return Data(data / 'coco_mini', files, tuple(one['name'] for one in content['categories']))


SETS = {'bccd': bccd, 'digits': digits, 'coco3': coco3}


def write_split(folder: Path, content: dict, shares: dict[str, Any]) -> None:
    """Write some of the images of a COCO file, by their positions, for each split."""
    make_folder(folder)
    for name, positions in shares.items():
        images = [content['images'][i] for i in positions]
        ids = {image['id'] for image in images}
        annotations = [one for one in content['annotations'] if one['image_id'] in ids]
        write_json(folder / f'{name}.json', {**content, 'images': images, 'annotations': annotations})


def find(configs: list[dict], type_: str) -> dict:
    """The one config of a type."""
    (found,) = (config for config in configs if config['type'] == type_)
    return found


def set_data(cfg: Config, data: Data) -> None:
    """Set images, annotations and classes, without worker processes."""
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        dataset = loader.dataset.dataset if split == 'train' else loader.dataset
        ann_file = str(data.files[split].resolve())
        dataset.update(
            data_root='',
            ann_file=ann_file,
            data_prefix={'img': f'{data.root.resolve()}/'},
            metainfo={'classes': data.classes},
        )
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = ann_file
    cfg.model.bbox_head.num_classes = len(data.classes)


def our_config(args: argparse.Namespace, changes: dict[str, Any], data: Data, epochs: int) -> Config:
    """Make the config of BCCD for any set, with the changes of a recipe."""
    cfg = load_config(config_path('yolov7_tiny_1xb8-40e_bccd.py'))
    set_data(cfg, data)
    side = 32 * round((data.size or args.size) * changes.get('size', 1) / 32)
    width = args.width * changes.get('width', 1)
    channels = [round(width * one) for one in (128, 256, 512)]
    cfg.model.backbone.widen_factor = width
    cfg.model.neck.update(in_channels=channels, out_channels=channels[0])
    cfg.model.bbox_head.in_channels = channels[0]
    cfg.model.data_preprocessor.batch_augments[0].random_size_range = (side, side)
    for split in ('val', 'test'):
        find(cfg[f'{split}_dataloader'].dataset.pipeline, 'Resize').scale = (side, side)

    is_flipped = not data.size  # digits are other signs then
    num_images = len(json.loads(data.files['train'].read_text())['images'])
    train = cfg.train_dataloader.dataset
    train.cache_images = 'ram'
    mosaic = find(train.pipeline, 'MosaicAffineMixUp')
    mosaic.update(img_scale=(side, side), flip_prob=0.5 * is_flipped)
    if changes.get('as_config'):
        set_schedule(cfg, num_images, epochs)
        return cfg

    row = BEFORE | changes
    cfg.train_dataloader.batch_size = row['batch']
    cfg.optim_wrapper.optimizer.update(lr=row['lr'], weight_decay=row['decay'])
    cfg.auto_scale_lr.base_batch_size = 8
    set_schedule(cfg, num_images, epochs)
    warmup, cosine = cfg.param_scheduler
    if 'warmup' in row:
        warmup.end = row['warmup']
        cosine.update(begin=warmup.end, T_max=epochs - warmup.end)
    average = find(cfg.custom_hooks, 'EMAHook')
    average.update(momentum=0.0002, gamma=2000, base_steps=None)
    if 'ema' in row:
        reach = max(row['ema'] * epochs * math.ceil(num_images / row['batch']), 2)
        average.update(momentum=1 / reach, gamma=max(1, round(0.4 * reach)))
    find(cfg.custom_hooks, 'LastStageHook').num_last_epochs = round(row['last'] * epochs)
    if not row.get('l1', True):
        cfg.model.bbox_head.loss_l1 = dict(type='L1Loss', reduction='sum', loss_weight=0.0)
    cfg.model.train_cfg.assigner.update(candidate_topk=row['topk'], center_radius=row['radius'])
    mosaic.update(
        mosaic_prob=row['mosaic'],
        mixup_prob=row['mixup'],
        scaling_ratio_range=row['scale'],
        max_rotate_degree=row['rotate'],
        max_shear_degree=row['rotate'] / 5,
    )
    if not row.get('hsv', True):
        train.pipeline.remove(find(train.pipeline, 'RandomHSVGain'))
    return cfg


def peer_config(args: argparse.Namespace, data: Data, epochs: int) -> Config:
    """Make the config of mmdet's YOLOX-s with the recipe of its own, shortened."""
    cfg = get_config('mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    ours = our_config(args, {}, data, epochs)
    side = data.size or args.size
    size = (side, side)
    cfg.model.bbox_head.num_classes = len(data.classes)
    cfg.model.data_preprocessor.batch_augments = []
    pad = dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))
    resize = dict(type='Resize', scale=size, keep_ratio=True)
    pipeline = [
        dict(type='Mosaic', img_scale=size, pad_val=114.0),
        dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-side // 2, -side // 2)),
        dict(type='MixUp', img_scale=size, ratio_range=(0.8, 1.6), pad_val=114.0),
        dict(type='YOLOXHSVRandomAug'),
        dict(type='RandomFlip', prob=0.0 if data.size else 0.5),
        resize,
        pad,
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
        dict(type='PackDetInputs'),
    ]
    load = dict(type='LoadImageFromFile')
    for split in SPLITS:
        loader = ours[f'{split}_dataloader']
        dataset = loader.dataset.dataset if split == 'train' else loader.dataset
        dataset.type = 'CocoDataset'
        if split == 'train':
            dataset.pipeline = [load, dict(type='LoadAnnotations', with_bbox=True)]
            loader.dataset = dict(type='MultiImageMixDataset', dataset=dataset, pipeline=pipeline)
        else:
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
            labels = dict(type='LoadAnnotations', with_bbox=True)
            dataset.pipeline = [load, resize, pad, labels, dict(type='PackDetInputs', meta_keys=keys)]
        cfg[f'{split}_dataloader'] = loader
        if split != 'train':
            cfg[f'{split}_evaluator'] = ours[f'{split}_evaluator']
    optimizer = dict(type='AdamW', lr=0.001, weight_decay=0.05)
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=optimizer,
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
        clip_grad=dict(max_norm=35),
    )
    by_step = dict(by_epoch=True, convert_to_iter_based=True)
    cosine = dict(type='CosineAnnealingLR', eta_min=0, begin=1, end=epochs, T_max=epochs - 1, **by_step)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, **by_step), cosine]
    average = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, gamma=2000, update_buffers=True)
    switch = dict(type='YOLOXModeSwitchHook', num_last_epochs=5, priority=48)
    cfg.custom_hooks = [switch, dict(average, priority=49)]
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=8)
    return cfg


def make_config(args: argparse.Namespace, data: Data, recipe: str, epochs: int, folder: Path, seed: int) -> Config:
    """Make the config of a recipe by name, which is evaluated after the training."""
    changes: dict[str, Any] = {}
    for name in recipe.split('+'):
        changes |= RECIPES.get(name, {})
    cfg = peer_config(args, data, epochs) if recipe == PEER else our_config(args, changes, data, epochs)
    cfg.train_cfg.update(val_interval=epochs + 1, dynamic_intervals=None)
    cfg.default_hooks.checkpoint.update(interval=max(1, epochs // 8), max_keep_ckpts=1, save_best=None)
    cfg.update(work_dir=str(folder), randomness=dict(seed=seed), log_level='WARNING', resume=True)
    return cfg


def epochs_in(args: argparse.Namespace, set_name: str, data: Data, recipe: str) -> int:
    """How many epochs --minutes have, by the second of two epochs, timed once for each set and recipe."""
    folder = args.work_dir / set_name / f'{recipe}_pace'
    file = folder / 'pace.json'
    if not file.exists():
        cfg = make_config(args, data, recipe, 8, folder, 0)
        cfg.resume = False
        runner = Runner.from_cfg(cfg)
        runner.register_hook(PaceHook(), priority='LOWEST')
        with contextlib.suppress(StopIteration):
            runner.train()
        write_json(file, {'seconds': PaceHook.seconds})
    return max(8, int(60 * args.minutes / json.loads(file.read_text())['seconds']))


class PaceHook(Hook):
    """Times the second epoch and stops the training."""

    seconds = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin."""
        self._begin = time.time()

    def after_train_epoch(self, runner: Runner) -> None:
        """Note the time, and raise StopIteration after the second epoch."""
        PaceHook.seconds = time.time() - self._begin
        if runner.epoch == 1:
            raise StopIteration


def run(args: argparse.Namespace, set_name: str, recipe: str, seed: int) -> dict[str, float]:
    """Train and evaluate once, unless that was done already.

    Returns:
        mAP and mAP50 of the splits, epochs and minutes of training.
    """
    folder = args.work_dir / set_name / f'{recipe}_seed{seed}'
    result = folder / 'result.json'
    scores = json.loads(result.read_text()) if result.exists() else {}
    splits = [split for split in ('val', 'test')[: 1 + args.test] if f'{split}_mAP' not in scores]
    if not splits:
        return scores
    torch.set_num_threads(1)
    data = SETS[set_name](args.data, args.work_dir / set_name / 'data')
    epochs = epochs_in(args, set_name, data, recipe) if args.minutes else args.epochs
    cfg = make_config(args, data, recipe, epochs, folder, seed)
    runner = Runner.from_cfg(cfg)
    begin = time.time()
    if 'val_mAP' not in scores:
        runner.train()
        scores |= {'epochs': epochs, 'minutes': (time.time() - begin) / 60}
    runner.load_checkpoint(str(folder / f'epoch_{epochs}.pth'))  # the average of the weights, as the hook saves it
    for split in splits:
        metrics = (runner.val_loop if split == 'val' else runner.test_loop).run()
        # Without any detection the metric has no numbers.
        scores |= {f'{split}_{name}': float(metrics.get(f'coco/bbox_{name}', 0)) for name in ('mAP', 'mAP_50')}
    write_json(result, scores)
    return scores


def print_table(scores: dict[tuple[str, str], dict[int, dict[str, float]]], args: argparse.Namespace) -> None:
    """Print mAP of each seed, mean and deviation, and the mean difference to the first recipe, paired by seed."""
    for split in ('val', 'test')[: 1 + args.test]:
        key = f'{split}_mAP'
        print(
            f'\n{split} split\n\n| set | recipe | epochs | minutes | mAP of seeds {args.seeds} | mean | deviation |',
            end='',
        )
        print(f' mAP50 | to {args.recipes[0]} |\n| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |')
        for name in args.sets:
            for recipe in args.recipes:
                of_seed = scores[name, recipe]
                if not of_seed:
                    continue
                values = [one[key] for one in of_seed.values()]
                first = next(iter(of_seed.values()))
                cells = [
                    name,
                    recipe,
                    str(first['epochs']),
                    f'{statistics.mean(one["minutes"] for one in of_seed.values()):.1f}',
                    ' '.join(f'{value:.3f}' for value in values),
                    f'{statistics.mean(values):.3f}',
                    f'{statistics.stdev(values):.3f}' if values[1:] else '',
                    f'{statistics.mean(one[f"{split}_mAP_50"] for one in of_seed.values()):.3f}',
                    ' ± '.join(f'{one:+.3f}' for one in difference(scores, name, recipe, args.recipes[0], key)),
                ]
                print(f'| {" | ".join(cells)} |')


def difference(scores: dict, name: str, recipe: str, base: str, key: str) -> tuple[float, ...]:
    """Mean difference to the base over the seeds that both have, and with three seeds its standard error."""
    pairs = [
        one[key] - scores[name, base][seed][key]
        for seed, one in scores[name, recipe].items()
        if seed in scores[name, base]
    ]
    if not pairs or recipe == base:
        return ()
    error = (statistics.stdev(pairs) / math.sqrt(len(pairs)),) if pairs[2:] else ()
    return (statistics.mean(pairs), *error)


def draw(scores: dict[tuple[str, str], dict[int, dict[str, float]]], args: argparse.Namespace) -> None:
    """Draw the differences to the first recipe, a dot a seed, a line at the mean, into ``recipes.png``."""
    base, *others = args.recipes
    figure, axes = plt.subplots(
        1, len(args.sets), figsize=(2 + 3 * len(args.sets), 1 + 0.28 * len(others)), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], args.sets):
        for row, recipe in enumerate(others):
            pairs = [
                one['val_mAP'] - scores[name, base][seed]['val_mAP']
                for seed, one in scores[name, recipe].items()
                if seed in scores[name, base]
            ]
            if pairs:
                mean = statistics.mean(pairs)
                axis.barh(row, mean, color='tab:green' if mean > 0 else 'tab:red', alpha=0.35)
                axis.plot(pairs, [row] * len(pairs), 'k.', markersize=4)
        axis.axvline(0, color='black', linewidth=0.8)
        values = [one['val_mAP'] for one in scores[name, base].values()]
        axis.set_title(f'{name}: {base} {statistics.mean(values):.3f}' if values else name, fontsize=10)
        axis.set_xlabel('difference in mAP, validation')
        axis.locator_params(axis='x', nbins=4)
        axis.grid(axis='x', alpha=0.3)
    axes[0][0].set_yticks(range(len(others)), others)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(args.work_dir / 'recipes.png', dpi=100)
    print(f'\n{args.work_dir / "recipes.png"}')


def main() -> None:
    args = parse_args()
    args.data, args.work_dir = args.data.resolve(), args.work_dir.resolve()
    for name in args.sets:
        SETS[name](args.data, args.work_dir / name / 'data')
    tasks = [(one, recipe, seed) for seed in args.seeds for recipe in args.recipes for one in args.sets]
    scores: dict[tuple[str, str], dict[int, dict[str, float]]] = {task[:2]: {} for task in tasks}
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.jobs, spawn, max_tasks_per_child=1) as pool:
        runs = {pool.submit(run, args, *task): task for task in tasks}
        for i, done in enumerate(as_completed(runs), 1):
            name, recipe, seed = runs[done]
            scores[name, recipe][seed] = done.result()
            values = {key: round(value, 3) for key, value in done.result().items()}
            print(f'{i} of {len(tasks)}: {name}, {recipe}, seed {seed}: {values}', flush=True)
    for of_seed in scores.values():
        of_seed.update(sorted(of_seed.items()))
    print_table(scores, args)
    draw(scores, args)


if __name__ == '__main__':
    main()
