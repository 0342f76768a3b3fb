"""Measure how long it takes, and how much memory, to read and check a large annotation file in the form of COCO.

    python tools/benchmarks/benchmark_annotations.py

A set is drawn at random: 480,000 boxes on 20,000 images of one colour, each box with a polygon of 40 points, 0.5 GB of
JSON in all. mmdet's CocoDataset, which checks nothing, CheckedCocoDataset, and what ``train.py --data`` does with the
folder then read it, each in a process of its own. Peak memory is that of the process, with torch and mmdet in it, whose
share is in the first row.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, NUM_POINTS, NUM_CLASSES = 640, 480, 40, 80
READERS = ('imports alone', 'CocoDataset', 'CheckedCocoDataset', 'read_own_data')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--boxes', type=int, default=480_000, help='default: 480000')
    parser.add_argument('--images', type=int, default=20_000, help='default: 20000')
    parser.add_argument('--folder', type=Path, help='to keep the set in; default: a temporary one')
    parser.add_argument('--reader', choices=READERS, help='read once in this process, which the others are started for')
    args = parser.parse_args()
    if min(args.boxes, args.images) < 2:
        parser.error('--boxes and --images must be at least 2')
    return args


def write_set(folder: Path, num_images: int, num_boxes: int) -> None:
    """Write train.json, a small val.json and their images."""
    rng = np.random.default_rng(0)
    pixels = io.BytesIO()
    Image.new('RGB', (WIDTH, HEIGHT), (90, 90, 90)).save(pixels, 'PNG')
    categories = [{'id': i, 'name': f'class {i}', 'supercategory': 'thing'} for i in range(1, NUM_CLASSES + 1)]
    for split, images, boxes in (('train', num_images, num_boxes), ('val', 100, 1000)):
        (folder / split).mkdir(parents=True)
        records = []
        for i in range(images):
            (folder / split / f'{i:08d}.png').write_bytes(pixels.getvalue())
            records.append({'id': i, 'file_name': f'{i:08d}.png', 'width': WIDTH, 'height': HEIGHT})
        with (folder / f'{split}.json').open('w') as file:
            file.write(f'{{"images": {json.dumps(records)}, "categories": {json.dumps(categories)}, "annotations": [')
            for i in range(boxes):
                sides = rng.uniform(8, 200, 2)
                corner = rng.uniform(0, (WIDTH, HEIGHT) - sides)
                points = corner + sides * rng.random((NUM_POINTS, 2))
                low, high = points.min(0), points.max(0)
                annotation = {
                    'id': i + 1,
                    'image_id': i % images,
                    'category_id': int(rng.integers(1, NUM_CLASSES + 1)),
                    'bbox': np.concatenate([low, high - low]).tolist(),
                    'area': float(np.prod(high - low) / 2),
                    'iscrowd': 0,
                    'segmentation': [points.round(6).ravel().tolist()],
                }
                file.write((', ' if i else '') + json.dumps(annotation))
            file.write(']}')


def read(reader: str, folder: Path) -> float:
    """Read the set; return the seconds, without imports."""
    import yolov7_simple  # noqa: F401, I001  (before mmdet: it stands in for missing mmcv ops)
    from mmdet.registry import DATASETS

    from yolov7_simple.own_data.folder import read_own_data

    start = time.perf_counter()
    if reader == 'read_own_data':
        with tempfile.TemporaryDirectory() as out_dir:
            read_own_data(folder, Path(out_dir))
    elif reader != READERS[0]:
        DATASETS.build(
            {
                'type': reader,
                'data_root': f'{folder}/',
                'ann_file': 'train.json',
                'data_prefix': {'img': 'train/'},
                'metainfo': {'classes': [f'class {i}' for i in range(1, NUM_CLASSES + 1)]},
                'pipeline': [],
            }
        )
    return time.perf_counter() - start


def main() -> int:
    args = parse_args()
    if args.reader:
        seconds = read(args.reader, args.folder)
        print(f'\n{seconds:.1f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}')
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / 'train.json').is_file():
            write_set(folder, args.images, args.boxes)
        print(f'{(folder / "train.json").stat().st_size / 1e6:.0f} MB\n')
        print('| read by | seconds | peak memory [GB] |\n| --- | ---: | ---: |')
        for reader in READERS:
            command = [sys.executable, __file__, '--folder', str(folder), '--reader', reader]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f'| {reader} | {" | ".join(result.stdout.split()[-2:])} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
