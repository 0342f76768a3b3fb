"""Measure what windows give for small objects in large pictures: photographs alone, and joined into large pictures.

    python tools/benchmarks/compare_tiles.py BCCD --work-dir work_dirs/tiles

Sixteen photographs at a time are joined into pictures of four by four of them. A detector is trained in the same number
of steps on the photographs, and on the pictures with windows as large as a photograph and without, as tools/train.py
--data does, and evaluated on the test split. One run after another has a process of its own, with one thread; started
again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

SIDE = 4  # photographs in a row, and rows
CONFIG = 'yolov7_tiny_1xb8-40e_bccd.py'
PAD = 114
# Name -> of the joined pictures, and whether they are seen in windows.
RUNS = {'photographs': (False, False), 'windows': (True, True), 'whole pictures': (True, False)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder of BCCD: images/, and annotations/ of train, val and test')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/tiles'))
    parser.add_argument('--scale', type=int, default=160, help="side of the network's input; default: 160")
    parser.add_argument('--steps', type=int, default=1000, help='of each training; default: 1000')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--run', nargs=2, metavar=('NAME', 'SEED'), help='this one alone, in this process')
    return parser.parse_args()


def join(data: Path, folder: Path) -> None:
    """Write the large pictures of all splits, with their annotations, unless they are there."""
    for split in ('train', 'val', 'test'):
        target = folder / f'annotations/{split}.json'
        if target.exists():
            continue
        (folder / 'images').mkdir(parents=True, exist_ok=True)
        content = json.loads((data / f'annotations/{split}.json').read_text())
        boxes: dict[int, list[dict]] = {}
        for one in content['annotations']:
            boxes.setdefault(one['image_id'], []).append(one)
        width, height = (max(one[key] for one in content['images']) for key in ('width', 'height'))
        joined = {'images': [], 'annotations': [], 'categories': content['categories']}
        for start in range(0, len(content['images']), SIDE * SIDE):
            picture = np.full((SIDE * height, SIDE * width, 3), PAD, np.uint8)
            image_id = len(joined['images']) + 1
            for i, one in enumerate(content['images'][start : start + SIDE * SIDE]):
                x, y = i % SIDE * width, i // SIDE * height
                photograph = cv2.imread(str(data / 'images' / one['file_name']))
                picture[y : y + one['height'], x : x + one['width']] = photograph
                for box in boxes.get(one['id'], []):
                    left, top, *sides = box['bbox']
                    own = {'id': len(joined['annotations']) + 1, 'image_id': image_id}
                    joined['annotations'].append({**box, **own, 'bbox': [left + x, top + y, *sides]})
            name = f'{split}_{image_id}.jpg'
            cv2.imwrite(str(folder / 'images' / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
            joined['images'].append({'id': image_id, 'file_name': name, 'width': SIDE * width, 'height': SIDE * height})
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(joined))


def options_of(args: argparse.Namespace, seed: int) -> dict:
    """Half the width of Tiny, at the size that was asked for, evaluated at the end only."""
    size = (args.scale, args.scale)
    return {
        'model.backbone.widen_factor': 0.5,
        'model.neck.in_channels': [64, 128, 256],
        'model.neck.out_channels': 64,
        'model.bbox_head.in_channels': 64,
        'model.data_preprocessor.batch_augments.0.random_size_range': size,
        'train_dataloader.dataset.pipeline.0.img_scale': size,
        **{f'{split}_dataloader.dataset.pipeline.2.scale': size for split in ('val', 'test')},
        **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
        **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
        'randomness.seed': seed,
        'train_cfg.val_interval': 10**6,
        'train_cfg.val_begin': 10**6,
        'train_cfg.dynamic_intervals': None,
        'default_hooks.checkpoint.save_best': None,
    }


def run(args: argparse.Namespace, name: str, seed: int) -> None:
    """Train and evaluate once."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from yolov7_simple.own_data.config import own_config
    from yolov7_simple.utils.configs import config_path

    folder = args.work_dir / f'{name.replace(" ", "_")}_{args.scale}_{args.steps}_seed{seed}'
    is_joined, has_windows = RUNS[name]
    data = args.work_dir / 'joined' if is_joined else args.data
    tile = json.loads((args.data / 'annotations/train.json').read_text())['images'][0]['width'] if has_windows else 0
    options = options_of(args, seed)
    config, *_ = own_config(config_path(CONFIG), data, folder, 1, None, options, tile)
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    steps = len(Runner.build_dataloader(cfg.train_dataloader))
    epochs = max(1, round(args.steps / steps))
    config, _, plan = own_config(config_path(CONFIG), data, folder, epochs, None, options, tile)
    print(plan, flush=True)
    cfg = Config.fromfile(config)
    cfg.update(work_dir=str(folder), resume=True, log_level='WARNING')
    cfg.default_hooks.checkpoint.interval = max(1, epochs // 4)
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.load_checkpoint(str(folder / f'epoch_{epochs}.pth'))
    metrics = runner.test_loop.run()
    found = {key.removeprefix('coco/'): float(value) for key, value in metrics.items() if key.startswith('coco/')}
    (folder / 'result.json').write_text(json.dumps({'steps': epochs * steps, **found}))


def main() -> None:
    args = parse_args()
    args.data, args.work_dir = args.data.resolve(), args.work_dir.resolve()
    if args.run:
        run(args, args.run[0], int(args.run[1]))
        return
    join(args.data, args.work_dir / 'joined')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    rows = []
    for seed in args.seeds:
        for name in RUNS:
            folder = args.work_dir / f'{name.replace(" ", "_")}_{args.scale}_{args.steps}_seed{seed}'
            if not (folder / 'result.json').exists():
                command = [sys.executable, *sys.argv, '--run', name, str(seed)]
                subprocess.run(['nice', '-n', '5', *command], env=environment, check=True)
            rows.append((name, seed, json.loads((folder / 'result.json').read_text())))
            print(name, seed, rows[-1][2], flush=True)
    print('\n| trained and tested on | seed | steps | mAP | mAP50 |\n| --- | ---: | ---: | ---: | ---: |')
    for name, seed, found in rows:
        print(f'| {name} | {seed} | {found["steps"]} | {found["bbox_mAP"]:.3f} | {found["bbox_mAP_50"]:.3f} |')


if __name__ == '__main__':
    main()
