"""Export a trained detector as one ONNX file of standard operators, and compare it with the model.

    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx

Input: images (N, 3, H, W) float32. Outputs: dets (N, K, 5), boxes xyxy in pixels of the input and score, best first,
and labels (N, K), -1 where an image has fewer than K. With --raw: boxes (N, P, 4) and scores (N, P, C), before NMS.
The file tells in its metadata how to prepare images; tools/detect.py reads that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import installed  # noqa: F401

import numpy as np
import torch
from mmengine.config import Config
from numpy.typing import NDArray

from yolov7_simple.apis.inference import class_names, load_inferencer
from yolov7_simple.deploy.check import check_export
from yolov7_simple.deploy.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET, DeployGraph, ExportError, export_onnx
from yolov7_simple.deploy.metadata import build_metadata, default_size, read_preprocessing
from yolov7_simple.runtime.errors import InputError, check_share, run_tool
from yolov7_simple.runtime.files import IMAGE_SUFFIXES, check_writable, find_inputs, replacing
from yolov7_simple.runtime.images import read_image
from yolov7_simple.runtime.onnx_detector import OnnxDetector


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config that the model was trained with')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('out', type=Path, help='file to write, OUT.onnx')
    parser.add_argument('--raw', action='store_true', help='leave NMS out')
    parser.add_argument('--dynamic', action='store_true', help='take any height and width (multiples of 32)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='input size in pixels; default: that of the test images if it is one, or of the test pipeline',
    )
    parser.add_argument('--opset', type=int, default=DEFAULT_OPSET, help='version of the ONNX operators')
    parser.add_argument('--score-thr', type=float, help='leave out detections below; default: test_cfg.score_thr')
    parser.add_argument('--iou-thr', type=float, help='of NMS; default: test_cfg.nms.iou_threshold')
    parser.add_argument(
        '--agnostic-nms',
        action='store_true',
        help='one object, one box, whatever its class; default: test_cfg.nms.class_agnostic',
    )
    parser.add_argument(
        '--max-per-img', type=int, help='most detections of an image (K); default: test_cfg.max_per_img, or all'
    )
    parser.add_argument(
        '--images', nargs='+', help="images, folders or patterns for the check; default: the test dataset's"
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT.onnx if it exists')
    return parser.parse_args()


def check_images(cfg: Config, given: list[str] | None) -> list[NDArray]:
    """Read two images to check with: of those given, or of the test dataset."""
    if given is None:
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        folder = Path(dataset.get('data_root') or '') / dataset.get('data_prefix', {}).get('img', '')
        if not folder.is_dir():
            raise InputError(f'{folder}: the folder of the test images is not there; pass some with --images')
        given = [str(folder)]
    paths = find_inputs(given, IMAGE_SUFFIXES)
    return [read_image(path) for path in (paths[0], paths[-1])]


def main() -> None:
    args = parse_args()
    if args.out.suffix != '.onnx':
        raise InputError(f'{args.out}: the name must end with .onnx')
    check_writable(args.out, args.overwrite)
    if not MIN_OPSET <= args.opset <= MAX_OPSET:
        raise ExportError(f'--opset {args.opset}: must be {MIN_OPSET} to {MAX_OPSET}')
    for name in ('score_thr', 'iou_thr'):
        if (value := getattr(args, name)) is not None:
            check_share(f'--{name.replace("_", "-")}', value)
    if args.size is not None and any(side < 32 or side % 32 for side in args.size):
        raise InputError(f'--size {args.size[0]} {args.size[1]}: both must be multiples of 32, and above 0')

    inferencer = load_inferencer(args.config, args.checkpoint, 'cpu')
    images = check_images(inferencer.cfg, args.images)
    test_cfg = inferencer.model.bbox_head.test_cfg
    if args.score_thr is not None:
        test_cfg.score_thr = args.score_thr
    if args.iou_thr is not None:
        test_cfg.nms = {**test_cfg.get('nms', {}), 'iou_threshold': args.iou_thr}
    if args.agnostic_nms:
        test_cfg.nms = {**test_cfg.get('nms', {}), 'class_agnostic': True}
    if args.max_per_img is not None:
        test_cfg.max_per_img = args.max_per_img
    graph = DeployGraph(inferencer.model, with_nms=not args.raw)
    preprocessing = read_preprocessing(inferencer.cfg)
    metadata = build_metadata(graph, class_names(inferencer.model), preprocessing)
    size = tuple(args.size) if args.size else default_size(inferencer.cfg, preprocessing)

    with replacing(args.out) as temporary:
        export_onnx(graph, temporary, size, args.dynamic, args.opset, metadata)
        detector = OnnxDetector(temporary)
        batches = [images[:1], images]
        if args.dynamic:  # of another height and width, too
            batches[1] = [np.rot90(image) for image in images]
        differences = check_export(
            graph, detector, [torch.from_numpy(detector.preprocess(batch)[0]) for batch in batches]
        )
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, opset {args.opset}, input {shape_text(detector)}')
    for batch, difference in zip(batches, differences):
        print(
            f'  batch of {len(batch)}, {difference.count} boxes: ONNX Runtime differs from PyTorch by at most '
            f'{difference.box:.1e} pixels and {difference.score:.1e} in score'
        )
    if not any(difference.count for difference in differences):
        print(
            f'  The check proved little: no box has a score above {graph.score_threshold:g} on its images. Pass images '
            'of objects with --images, or a lower --score-thr'
        )


def shape_text(detector: OnnxDetector) -> str:
    return ' x '.join(str(side) for side in detector.session.get_inputs()[0].shape)


if __name__ == '__main__':
    run_tool(main)
