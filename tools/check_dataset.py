"""Check a detection set before training on it, and draw what is in it.

    python tools/check_dataset.py CONFIG                       the sets of a config: train, val and test
    python tools/check_dataset.py --ann FILE --images FOLDER   one set

Annotations are checked as for training (yolov7_simple/datasets/annotation_checks.py). Then every image is read, and its
size compared with the annotated one. Each set gets a printed summary and a picture in OUT_DIR: boxes of each class,
sizes and shapes of boxes, boxes of each image. The exit status is 1 if a set cannot be used as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import installed  # noqa: F401

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmengine.utils import track_parallel_progress

from yolov7_simple.apis.inference import load_config
from yolov7_simple.datasets.annotation_checks import read_json
from yolov7_simple.datasets.coco import CheckedCocoDataset
from yolov7_simple.datasets.loading import decode_image
from yolov7_simple.runtime.errors import DamagedImageError, InputError, UserError, run_tool
from yolov7_simple.runtime.files import make_folder

MAX_BARS = 30
SMALL, LARGE = 32, 96  # sides of COCO's small and large objects, in pixels
BLUE, GREY = '#2f6fb3', '#9aa5b1'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config whose sets to check')
    parser.add_argument('--ann', help='annotation file in the form of COCO, in place of a config')
    parser.add_argument('--images', help='the folder that its file names are relative to')
    parser.add_argument('--out-dir', type=Path, default=Path('dataset_check'), help='default: dataset_check')
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes that read images')
    args = parser.parse_args()
    if (args.config is None) == (args.ann is None) or (args.ann is None) != (args.images is None):
        parser.error('name a config, or --ann and --images')
    if args.workers < 1:
        parser.error(f'--workers {args.workers}: must be at least 1')
    return args


def set_configs(args: argparse.Namespace) -> dict[str, dict]:
    """Configs of the sets to check, by name; a set that serves as val and as test is listed once."""
    if args.ann is not None:
        content = read_json(args.ann)
        categories = content.get('categories') if isinstance(content, dict) else None
        names = [one.get('name') for one in categories or () if isinstance(one, dict)]
        dataset = {'ann_file': args.ann, 'data_prefix': {'img': args.images}, 'metainfo': {'classes': names}}
        return {Path(args.ann).stem: {'type': 'CheckedCocoDataset', **dataset}}
    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    configs = {}
    for name in ('train', 'val', 'test'):
        dataset = (cfg.get(f'{name}_dataloader') or {}).get('dataset')
        if dataset is None:
            continue
        while 'dataset' in dataset:  # of wrappers
            dataset = dataset['dataset']
        if dataset['type'] not in ('CheckedCocoDataset', CheckedCocoDataset):
            raise InputError(f'{args.config}: {name} is a {dataset["type"]}; only CheckedCocoDataset can be checked')
        if dict(dataset, pipeline=[]) not in configs.values():
            configs[name] = dict(dataset, pipeline=[])
    return configs


def image_problem(item: tuple[str, int, int], backend_args: dict | None) -> str | None:
    """Read an image; return what is wrong with it, or None."""
    path, width, height = item
    try:
        found = decode_image(path, backend_args=backend_args).shape[1::-1]
    except DamagedImageError as error:
        return str(error)
    if found != (width, height):
        return f'{path} is {found[0]} x {found[1]} pixels, annotated as {width} x {height}'
    return None


def check_images(dataset: BaseDataset, workers: int) -> list[str]:
    """Read all images of a set, with a progress bar; return what is wrong."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    items = [(info['img_path'], info['width'], info['height']) for info in infos]
    check = partial(image_problem, backend_args=dataset.backend_args)
    problems = track_parallel_progress(check, items, workers, chunksize=8, file=sys.stderr)
    print(file=sys.stderr)
    return [problem for problem in problems if problem]


def read_boxes(dataset: BaseDataset) -> dict[str, np.ndarray]:
    """Sides in pixels (N, 2) and labels (N,) of all boxes, and the number of boxes in each image."""
    instances = [dataset.get_data_info(i)['instances'] for i in range(len(dataset))]
    boxes = np.array([one['bbox'] for image in instances for one in image], float).reshape(-1, 4)
    labels = np.array([one['bbox_label'] for image in instances for one in image], int)
    return {'sides': boxes[:, 2:] - boxes[:, :2], 'labels': labels, 'per_image': np.array(list(map(len, instances)))}


def print_summary(dataset: BaseDataset, found: dict[str, np.ndarray]) -> None:
    classes = dataset.metainfo['classes']
    side = np.sqrt(found['sides'].prod(1))
    print(f'  {len(dataset)} images, {(found["per_image"] == 0).sum()} without a box; {len(side)} boxes')
    for what, count in dataset.repairs.items():
        print(f'  {count} {what}')
    width = max([len('class'), *map(len, classes)])
    print(f'  {"class":{width}}   boxes  small  medium  large  median side')
    for label, name in enumerate(classes):
        own = side[found['labels'] == label]
        parts = [(own < SMALL).sum(), ((own >= SMALL) & (own < LARGE)).sum(), (own >= LARGE).sum()]
        median = f'{np.median(own):8.1f} px' if len(own) else '          -'
        print(f'  {name:{width}} {len(own):7d} {parts[0]:6d} {parts[1]:7d} {parts[2]:6d}  {median}')


def draw(title: str, classes: list[str], found: dict[str, np.ndarray], path: Path) -> None:
    """Draw boxes of each class, sides and shapes of boxes, and boxes of each image."""
    sides, counts = found['sides'], np.bincount(found['labels'], minlength=len(classes))
    order = np.argsort(-counts, kind='stable')[:MAX_BARS]
    figure, axes = plt.subplot_mosaic(
        [['classes', 'scatter', 'side'], ['classes', 'scatter', 'per_image']], figsize=(15, 7), layout='constrained'
    )
    figure.suptitle(title, fontsize=13, x=0.01, ha='left', fontweight='bold')

    left = axes['classes']
    bars = left.barh([str(classes[i]) for i in order], counts[order], color=BLUE)
    left.bar_label(bars, [f'{count:,}' for count in counts[order]], padding=3, fontsize=8)
    left.invert_yaxis()
    left.margins(x=0.15, y=0.01)
    rest = f', {MAX_BARS} most frequent of {len(classes)}' if len(classes) > MAX_BARS else ''
    left.set(title=f'Boxes of each class{rest}', xlabel='boxes')

    middle = axes['scatter']
    if len(sides):
        limits = np.array([max(1, sides.min() / 1.2), sides.max() * 1.2])
        bins = np.geomspace(*limits, int(np.clip(len(sides) ** 0.5, 12, 60)))
        counted = middle.hist2d(sides[:, 0], sides[:, 1], bins=[bins, bins], cmin=1, cmap='viridis_r')
        figure.colorbar(counted[3], ax=middle, label='boxes', shrink=0.6)
        for side in (SMALL, LARGE):
            middle.plot(bins, side**2 / bins, color=GREY, linestyle='--', linewidth=1)
        middle.set(xscale='log', yscale='log', xlim=limits, ylim=limits, aspect='equal')
    middle.set(
        title=f'Sides of boxes; dashed: areas of {SMALL}² and {LARGE}²', xlabel='width [px]', ylabel='height [px]'
    )

    right = axes['side']
    if len(sides):
        side = np.sqrt(sides.prod(1))
        right.hist(side, bins=np.geomspace(side.min(), side.max() * 1.001, 41), color=BLUE)
        right.set_xscale('log')
        for edge in (SMALL, LARGE):
            right.axvline(edge, color=GREY, linestyle='--', linewidth=1)
    right.set(title='Size of boxes', xlabel='square root of the area [px]', ylabel='boxes')

    below = axes['per_image']
    most = int(found['per_image'].max(initial=0))
    below.hist(found['per_image'], bins=np.arange(0, most + 2, max(1, most // 40)) - 0.5, color=BLUE)
    below.set(title='Boxes of each image', xlabel='boxes', ylabel='images')
    for ax in (left, right, below):
        ax.spines[['top', 'right']].set_visible(False)
    for ax in (axes['scatter'], right):
        ax.xaxis.set_major_formatter('{x:g}')
    axes['scatter'].yaxis.set_major_formatter('{x:g}')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def check(name: str, config: dict, out_dir: Path, workers: int) -> bool:
    """Check one set; return whether it can be used as it is."""
    print(f'=== {name}: {config["ann_file"]}', flush=True)
    try:
        dataset = DATASETS.build(dict(config, lazy_init=False))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return False
    found = read_boxes(dataset)
    print_summary(dataset, found)
    path = out_dir / f'{name}.png'
    title = f'{name}: {len(dataset):,} images, {len(found["labels"]):,} boxes'
    draw(title, dataset.metainfo['classes'], found, path)
    problems = check_images(dataset, workers)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    print(f'  {len(problems)} of {len(dataset)} images are missing, damaged, or of another size than annotated')
    print(f'  {path}', flush=True)
    return not problems


def main() -> int:
    args = parse_args()
    configs = set_configs(args)
    make_folder(args.out_dir)
    results = [check(name, config, args.out_dir, args.workers) for name, config in configs.items()]
    return 0 if all(results) else 1


if __name__ == '__main__':
    run_tool(main)
