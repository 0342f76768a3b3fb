"""Check a detection set before training on it, and draw what is in it.

    python tools/check_dataset.py CONFIG                       the sets of a config: train, val and test
    python tools/check_dataset.py [CONFIG] --data DIR          a folder, as tools/train.py CONFIG --data DIR reads it
    python tools/check_dataset.py --ann FILE --images FOLDER   one set in the form of COCO

Annotations are read as training does. Then every image is read, whole, and what would spoil training or evaluation is
told, one line a kind: the same image in two splits, or nearly the same; boxes or images twice; boxes too small for the
size of the config, next to lines, or cut off at the border; classes without a box; images of one colour. In
OUT_DIR/index.html is all of it, with histograms of the boxes, and images in which errors show. The exit status is 0, 1
if there are warnings, and 2 if a set cannot be trained on or could not be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import installed  # noqa: F401

import yolov7_simple
from yolov7_simple.apis.inference import load_config
from yolov7_simple.datasets.annotation_checks import read_json
from yolov7_simple.doctor.doctor import Examination, describe, examine, refusal
from yolov7_simple.doctor.doctor_page import doctor_page
from yolov7_simple.doctor.image_sets import dataset_configs
from yolov7_simple.own_data.config import set_data
from yolov7_simple.own_data.folder import read_own_data
from yolov7_simple.runtime.errors import UserError
from yolov7_simple.runtime.files import make_folder, replacing

# For a small set, which most are, and for a large one: where no config is named, boxes are held against both sizes.
DEFAULT_CONFIGS = ('yolov7_tiny_1xb8-40e_bccd.py', 'yolov7_tiny_8xb16-300e_coco.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config whose sets to check; with --data, whose size of image')
    parser.add_argument('--data', help='folder of images and labels in any form that tools/train.py --data reads')
    parser.add_argument('--ann', help='annotation file in the form of COCO, in place of a config')
    parser.add_argument('--images', help='the folder that its file names are relative to')
    parser.add_argument('--out-dir', type=Path, default=Path('dataset_check'), help='default: dataset_check')
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes that read images')
    parser.add_argument('--json', action='store_true', help='print what was found as JSON')
    args = parser.parse_args()
    is_named = args.config is not None or args.data is not None
    if is_named == (args.ann is not None) or (args.ann is None) != (args.images is None):
        parser.error('name a config, or --data, or --ann and --images')
    if args.workers < 1:
        parser.error(f'--workers {args.workers}: must be at least 1')
    return args


def run(args: argparse.Namespace) -> Examination:
    """Read and check what the command line names.

    Raises:
        UserError: It cannot be read.
    """
    names = [args.config] if args.config else map(yolov7_simple.config_path, DEFAULT_CONFIGS)
    cfgs = [load_config(name) for name in names]
    remarks: list[str] = []
    if args.ann is not None:
        content = read_json(args.ann)
        categories = content.get('categories') if isinstance(content, dict) else None
        classes = [one.get('name') for one in categories or () if isinstance(one, dict)]
        dataset = {'ann_file': args.ann, 'data_prefix': {'img': args.images}, 'metainfo': {'classes': classes}}
        configs = {Path(args.ann).stem: {'type': 'CheckedCocoDataset', **dataset}}
        dataset_configs(cfgs[0])  # sets mmdet's scope
    else:
        if args.data is not None:
            data = read_own_data(args.data, args.out_dir / 'own_data')
            set_data(cfgs[0], data)
            remarks = describe(data)
        configs = dataset_configs(cfgs[0])
    make_folder(args.out_dir)
    return examine(remarks, configs, cfgs, args.workers, sys.stderr)


def main() -> int:
    args = parse_args()
    page = args.out_dir / 'index.html'
    try:
        found = run(args)
        with replacing(page) as temporary:
            title = f'Check of {args.data or args.ann or args.config}'
            temporary.write_text(doctor_page(title, found).render(), encoding='utf-8')
    except UserError as error:
        found, page = refusal(error), None
    if args.json:
        print(json.dumps({**found.content(), 'page': page and str(page)}, ensure_ascii=False, indent=1))
    elif page:
        print(*found.lines(), page, sep='\n')
    else:
        print(*found.problems, sep='\n', file=sys.stderr)
    return found.status


if __name__ == '__main__':
    sys.exit(main())
