"""Convert a YOLOv7 checkpoint of RT-ODLab into one for this package.

Example: ``python tools/model_converters/rtodlab_to_mmdet.py yolov7_tiny_coco.pth yolov7_tiny.pth``
"""

import argparse
import runpy
from pathlib import Path

# ruff: noqa: E402
runpy.run_path(str(Path(__file__).resolve().parents[1] / 'installed.py'))  # a folder up, where imports do not look

import torch

import yolov7_simple
from yolov7_simple.models.rtodlab import as_checkpoint, convert_state_dict, find_size, load_original
from yolov7_simple.runtime.errors import run_tool
from yolov7_simple.runtime.files import check_writable, replacing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, help='checkpoint of the original: Tiny, YOLOv7 or X, any number of classes')
    parser.add_argument('dst', type=Path, help='where to write the converted checkpoint; must not exist')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_writable(args.dst)
    original = load_original(args.src)
    state_dict = convert_state_dict(original)
    checkpoint = as_checkpoint(state_dict)
    checkpoint['meta']['yolov7_simple_version'] = yolov7_simple.__version__
    with replacing(args.dst) as temporary:
        torch.save(checkpoint, temporary)
    size, num_classes = find_size(original), len(state_dict['bbox_head.cls_preds.0.bias'])
    print(f'{args.dst}: {len(state_dict)} tensors, {num_classes} classes, for configs/yolov7/{size.config}')


if __name__ == '__main__':
    run_tool(main)
