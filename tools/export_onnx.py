"""Export a trained detector as one ONNX file of standard operators, and compare it with the model.

    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx

Input: images (N, 3, H, W) float32. Outputs: dets (N, K, 5), boxes xyxy in pixels of the input and score, best first,
and labels (N, K), -1 where an image has fewer than K. With --raw: boxes (N, P, 4) and scores (N, P, C), before NMS.
The file tells in its metadata how to prepare images; tools/detect.py reads that.
With --int8 or --fp16 the network has that precision, while decoding and NMS stay in float32. mAP on the validation
split and speed are then measured beside those of float32. Where mAP falls by more than 0.005, OUT.onnx is not written.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import installed  # noqa: F401

import numpy as np
import torch
from mmengine.config import Config
from numpy.typing import NDArray

from yolov7_simple.apis.inference import class_names, load_config, load_inferencer
from yolov7_simple.deploy.check import check_export
from yolov7_simple.deploy.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET, DeployGraph, ExportError, export_onnx
from yolov7_simple.deploy.metadata import build_metadata, default_size, read_preprocessing
from yolov7_simple.deploy.precision import (
    MIN_INT8_OPSET,
    compare_precisions,
    image_files,
    spread,
    write_float16,
    write_int8,
)
from yolov7_simple.runtime.errors import InputError, check_share, run_tool
from yolov7_simple.runtime.files import IMAGE_SUFFIXES, check_writable, find_inputs, replacing
from yolov7_simple.runtime.images import read_image
from yolov7_simple.runtime.onnx_detector import OnnxDetector
from yolov7_simple.utils.configs import innermost_dataset


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
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        '--int8',
        nargs='?',
        const='',
        metavar='IMAGES',
        help="quantise to 8 bits, calibrated on the images of a folder; default: on those of the config's training set",
    )
    precision.add_argument('--fp16', action='store_true', help='half the size, in float16')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT.onnx if it exists')
    return parser.parse_args()


def check_images(cfg: Config, given: list[str] | None) -> list[NDArray]:
    """Read two images to check with: of those given, or of the test dataset."""
    if given is None:
        dataset = innermost_dataset(cfg.test_dataloader.dataset)
        folder = Path(dataset.get('data_root') or '') / dataset.get('data_prefix', {}).get('img', '')
        if not folder.is_dir():
            raise InputError(f'{folder}: the folder of the test images is not there; pass some with --images')
        given = [str(folder)]
    paths = find_inputs(given, IMAGE_SUFFIXES)
    return [read_image(path) for path in (paths[0], paths[-1])]


def precision_images(args: argparse.Namespace) -> tuple[Config, list[Path], list[Path]]:
    """Load the config, and list the images to calibrate int8 with, and those of the validation split.

    Raises:
        InputError: There are none.
    """
    cfg = load_config(args.config)
    for name in ('val_dataloader', 'val_evaluator'):
        if cfg.get(name) is None:
            raise InputError(f'{args.config}: has no {name}, on which --int8 and --fp16 measure mAP')
    if args.fp16:
        calibration = []
    elif args.int8:
        calibration = find_inputs([args.int8], IMAGE_SUFFIXES)
    elif cfg.get('train_dataloader') is None:
        raise InputError(f'{args.config}: has no train_dataloader: name a folder of images after --int8')
    else:
        calibration = image_files(cfg.train_dataloader.dataset, 'train_dataloader.dataset')
    return cfg, spread(calibration), image_files(cfg.val_dataloader.dataset, 'val_dataloader.dataset')


def lower_precision(
    args: argparse.Namespace, path: Path, cfg: Config, calibration: list[Path], validation: list[Path]
) -> None:
    """Replace an exported file by one of lower precision, and print what that changes.

    Raises:
        ExportError: mAP falls by too much; the file then is beside OUT.onnx, under another name.
    """
    word = 'float16' if args.fp16 else 'int8'
    with TemporaryDirectory() as folder:
        lower = Path(folder) / f'{word}.onnx'
        if args.fp16:
            write_float16(path, lower)
        else:
            print(f'  calibrating int8 on {len(calibration)} images', flush=True)
            write_int8(path, lower, calibration)
        print(f'  measuring mAP of float32 and {word} on {len(validation)} images', flush=True)
        compared = compare_precisions(cfg, path, lower, validation[0])
        print(f'  mAP: float32 {compared.map_before:.3f}, {word} {compared.map_after:.3f}')
        print(f'  {compared.speed(word)}')
        if (fault := compared.fault()) is not None:
            refused = args.out.with_name(f'{args.out.stem}.refused.onnx')
            shutil.move(lower, refused)
            raise ExportError(f'{args.out} is not written: {fault}; the {word} file is {refused}')
        print(f'{args.out}: {lower.stat().st_size / 1e6:.1f} MB, {word}')
        shutil.move(lower, path)


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
    is_lower = args.int8 is not None or args.fp16
    if is_lower and args.raw:
        raise InputError('--raw: --int8 and --fp16 measure mAP, which needs the NMS that --raw leaves out')
    if args.int8 is not None and args.opset < MIN_INT8_OPSET:
        raise InputError(f'--opset {args.opset}: --int8 needs {MIN_INT8_OPSET} or later')
    if args.size is not None and any(side < 32 or side % 32 for side in args.size):
        raise InputError(f'--size {args.size[0]} {args.size[1]}: both must be multiples of 32, and above 0')

    inferencer = load_inferencer(args.config, args.checkpoint, 'cpu')
    images = check_images(inferencer.cfg, args.images)
    measured = precision_images(args) if is_lower else None
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
        name = args.out if measured is None else 'in float32'
        print(f'{name}: {temporary.stat().st_size / 1e6:.1f} MB, opset {args.opset}, input {shape_text(detector)}')
        for batch, difference in zip(batches, differences):
            print(
                f'  batch of {len(batch)}, {difference.count} boxes: ONNX Runtime differs from PyTorch by at most '
                f'{difference.box:.1e} pixels and {difference.score:.1e} in score'
            )
        if not any(difference.count for difference in differences):
            print(
                f'  The check proved little: no box has a score above {graph.score_threshold:g} on its images. Pass '
                'images of objects with --images, or a lower --score-thr'
            )
        if measured is not None:
            lower_precision(args, temporary, *measured)


def shape_text(detector: OnnxDetector) -> str:
    return ' x '.join(str(side) for side in detector.session.get_inputs()[0].shape)


if __name__ == '__main__':
    run_tool(main)
