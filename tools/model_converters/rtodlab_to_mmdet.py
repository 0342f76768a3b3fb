"""Convert a YOLOv7 checkpoint of RT-ODLab into one for this package.

Example: ``python tools/model_converters/rtodlab_to_mmdet.py yolov7_tiny_coco.pth yolov7_tiny.pth``
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import yolov7_simple
from yolov7_simple.models.rtodlab import convert_state_dict, find_size, load_original


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, help='checkpoint of the original: Tiny, YOLOv7 or X, any number of classes')
    parser.add_argument('dst', type=Path, help='where to write the converted checkpoint; must not exist')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.dst.exists():
        sys.exit(f'{args.dst} exists: remove it, or choose another name')
    if not args.dst.parent.is_dir():
        sys.exit(f'{args.dst.parent} is no folder to write to')
    try:
        original = load_original(args.src)
        state_dict = convert_state_dict(original)
    except ValueError as error:
        sys.exit(f'Nothing was written. {error}')

    num_classes = len(state_dict['bbox_head.cls_preds.0.bias'])
    meta = {'source': 'RT-ODLab', 'yolov7_simple_version': yolov7_simple.__version__}
    if num_classes == 80:
        from mmdet.datasets import CocoDataset

        meta['dataset_meta'] = {key: CocoDataset.METAINFO[key] for key in ('classes', 'palette')}
    # Written beside the target and then renamed, so that the target is never half a file.
    partial = args.dst.with_name(f'.{args.dst.name}.{os.getpid()}')
    try:
        torch.save({'state_dict': state_dict, 'meta': meta}, partial)
        partial.replace(args.dst)
    finally:
        partial.unlink(missing_ok=True)
    size = find_size(original)
    print(f'{args.dst}: {len(state_dict)} tensors, {num_classes} classes, for configs/yolov7/{size.config}')


if __name__ == '__main__':
    main()
