"""Train with mmdet's data path and with ours, same seeds and budget, and compare the mAP.

    python tools/benchmarks/compare_accuracy.py [CONFIG] [--epochs 20] [--seeds 0 1 2] [--jobs 2]

Each run sees the same set with the same mosaic, affine, mixup, flip and colours: by mmdet's chain of transforms, by
ours, or by ours with decoded images kept in memory, which gives the same mAP where no image is shrunk. The last epoch
is evaluated on the validation and the test split. Results that --work-dir already holds are not computed again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from yolov7_simple import config_path  # before mmdet: it stands in for missing mmcv ops

# isort: split

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from yolov7_simple.apis.inference import load_config
from yolov7_simple.own_data.config import set_schedule
from yolov7_simple.runtime.files import replacing

NAMES = {'mmdet': "mmdet's chain", 'ours': 'ours', 'ram': "ours, cache_images='ram'"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', type=Path, default=config_path('yolov7_tiny_1xb8-40e_bccd.py'))
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time, of one thread each')
    parser.add_argument('--paths', nargs='+', choices=NAMES, default=list(NAMES), help='default: all')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='for all runs')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_accuracy'))
    return parser.parse_args()


def find(configs: list[dict], type_: str) -> dict:
    """The one config of a type."""
    (found,) = (config for config in configs if config['type'] == type_)
    return found


def use_mmdet(cfg: Config, ours: dict) -> None:
    """Put mmdet's transforms, with the parameters of ours, in place of ours, and its own hook for the last stage."""
    size = tuple(ours['img_scale'])
    # mmdet's YOLOXHSVRandomAug has narrower ranges, which are not what is compared.
    colours = find(cfg.train_dataloader.dataset.pipeline, 'RandomHSVGain')
    inner = cfg.train_dataloader.dataset.dataset
    inner.pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    border = (-size[0] // 2, -size[1] // 2)
    cfg.train_dataloader.dataset = dict(
        type='MultiImageMixDataset',
        dataset=inner,
        pipeline=[
            dict(type='Mosaic', img_scale=size, pad_val=114.0),
            dict(type='RandomAffine', scaling_ratio_range=tuple(ours['scaling_ratio_range']), border=border),
            dict(type='MixUp', img_scale=size, ratio_range=tuple(ours['mixup_ratio_range']), pad_val=114.0),
            colours,
            dict(type='RandomFlip', prob=0.5),
            dict(type='Resize', scale=size, keep_ratio=True),
            dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
            dict(type='PackDetInputs'),
        ],
    )
    # mmdet's hook begins one epoch earlier than its option says.
    hook = find(cfg.custom_hooks, 'LastStageHook')
    last = hook.pop('num_last_epochs') - 1
    hook.update(type='YOLOXModeSwitchHook', num_last_epochs=last, priority=48)


def make_config(args: argparse.Namespace, name: str, seed: int, folder: Path) -> Config:
    """Make the config of one run."""
    cfg = load_config(args.config, args.cfg_options)
    ann_file = Path(cfg.data_root) / cfg.train_dataloader.dataset.dataset.ann_file
    set_schedule(cfg, len(json.loads(ann_file.read_text())['images']), args.epochs)
    cfg.train_cfg.update(val_interval=args.epochs, dynamic_intervals=None)
    cfg.default_hooks.checkpoint.update(interval=args.epochs, save_best=None)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].num_workers = 1
    ours = find(cfg.train_dataloader.dataset.pipeline, 'MosaicAffineMixUp')
    ours.update(mixup_prob=1.0, mixup_ratio_range=(0.5, 1.5))
    if name == 'ram':
        cfg.train_dataloader.dataset.cache_images = 'ram'
    if name == 'mmdet':
        use_mmdet(cfg, ours)
    cfg.update(work_dir=str(folder), randomness=dict(seed=seed), log_level='WARNING')
    return cfg


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Train and evaluate once, unless that was done already.

    Returns:
        mAP on the validation and on the test split.
    """
    folder = args.work_dir / f'{name}_seed{seed}'
    result = folder / 'result.json'
    if not result.exists():
        torch.set_num_threads(1)
        runner = Runner.from_cfg(make_config(args, name, seed, folder))
        runner.train()
        scores = {'val': runner.message_hub.get_scalar('val/coco/bbox_mAP').current()}
        scores['test'] = runner.test()['coco/bbox_mAP']
        with replacing(result) as temporary:
            temporary.write_text(json.dumps(scores))
    return json.loads(result.read_text())


def main() -> None:
    args = parse_args()
    scores: dict[str, dict[int, dict[str, float]]] = {name: {} for name in args.paths}
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.jobs, spawn, max_tasks_per_child=1) as pool:
        runs = {pool.submit(run, args, name, seed): (name, seed) for seed in args.seeds for name in args.paths}
        for done in as_completed(runs):
            name, seed = runs[done]
            scores[name][seed] = done.result()
            print(f'{NAMES[name]}, seed {seed}: {scores[name][seed]}', flush=True)

    print(f'\nmAP after {args.epochs} epochs\n\n| data path | ' + ' | '.join(f'seed {s}' for s in args.seeds), end='')
    print(' | mean, val | mean, test | mean of both |\n| --- ' + '| ---: ' * (len(args.seeds) + 3) + '|')
    for name, of_seed in scores.items():
        pairs = [f'{of_seed[seed]["val"]:.3f}, {of_seed[seed]["test"]:.3f}' for seed in args.seeds]
        means = [statistics.mean(of_seed[seed][split] for seed in args.seeds) for split in ('val', 'test')]
        print(f'| {NAMES[name]} | {" | ".join(pairs)} | {means[0]:.3f} | {means[1]:.3f} | {sum(means) / 2:.3f} |')


if __name__ == '__main__':
    main()
