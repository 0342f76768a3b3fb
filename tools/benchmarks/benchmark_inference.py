"""Measure inference, one image at 640, side by side: PyTorch as it is, its faster forms, and ONNX Runtime.

    python tools/analysis_tools/benchmark_inference.py --image PHOTO.jpg

Prints a Markdown table for Tiny, YOLOv7 and X. All are measured in turns, round after round, so that a machine that
changes its pace changes it for all; medians count. `network` is the input tensor to the raw predictions, `pipeline` a
JPEG file to boxes in its pixels. The rate stands beside that of a matrix product of 2048 x 2048 float32, measured in
the same rounds. Weights are random and BatchNorms calibrated, unless --checkpoint is given; random weights are the
worst case for NMS, as every candidate passes the threshold.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yolov7_simple  # noqa: F401, I001  (before mmdet: it stands in for missing mmcv ops)
import cv2
import mmcv.ops
import numpy as np
import onnxruntime
import torch
from mmdet.apis import DetInferencer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from yolov7_simple.deploy.export import DeployGraph, export_onnx
from yolov7_simple.deploy.metadata import build_metadata, read_preprocessing
from yolov7_simple.models.fast import speed_up
from yolov7_simple.apis.inference import load_config, load_inferencer, quiet
from yolov7_simple.ops.mmcv_ext import MissingOps
from yolov7_simple.ops.nms import nms
from yolov7_simple.runtime.onnx_detector import OnnxDetector
from yolov7_simple.runtime.images import read_image

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    'Tiny': 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py',
    'YOLOv7': 'configs/yolov7/yolov7_l_8xb16-300e_coco.py',
    'X': 'configs/yolov7/yolov7_x_8xb16-300e_coco.py',
}
SIZE = 640
MATRIX_SIDE = 2048
NUM_NMS_BOXES = 3000
# Between two measurements: the threads of one library stop spinning before the other's begin.
PAUSE = 0.2  # seconds


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument('--checkpoint', help='trained weights, of the one model named')
    parser.add_argument('--image', type=Path, help=f'a photograph, cropped to a {SIZE} x {SIZE} JPEG; default: noise')
    parser.add_argument('--rounds', type=int, default=20, help='default: 20')
    parser.add_argument('--threads', type=int, default=2, help='default: 2')
    parser.add_argument('--no-compile', action='store_true', help='leave torch.compile out: it takes minutes to begin')
    args = parser.parse_args()
    if args.checkpoint and len(args.models) != 1:
        parser.error('--checkpoint: name its model with --models')
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds}: must be at least 1')
    return args


def measure(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run all tasks in turns, after two rounds to warm up, and give the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(rounds + 2):
        for name, task in tasks.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            task()
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def calibrate(model: nn.Module) -> None:
    """Give BatchNorms the statistics of noise: through random weights signals fade until numbers are denormal."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(torch.rand(2, 3, 256, 256), mode='tensor')
    model.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def count_gflop(model: nn.Module, images: Tensor) -> float:
    """Count the operations of the network, a multiply-add as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, mode='tensor')
    return counter.get_total_flops() / 1e9


def make_jpeg(image: Path | None, path: Path) -> None:
    """Write the middle of a photograph, or smooth noise, as a square JPEG of the size of the network."""
    if image is None:
        pixels = cv2.resize(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8), (SIZE, SIZE))
    else:
        pixels = read_image(image)
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        pixels = cv2.resize(pixels[top : top + side, left : left + side], (SIZE, SIZE))
    path.write_bytes(cv2.imencode('.jpg', pixels)[1].tobytes())


def benchmark_model(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """Measure one model; gives rows of the table."""
    config = ROOT / CONFIGS[name]
    if args.checkpoint:
        inferencer = load_inferencer(config, args.checkpoint, 'cpu')
    else:
        with quiet():
            inferencer = DetInferencer(load_config(config), device='cpu', show_progress=False)
            inferencer.model.init_weights()
        calibrate(inferencer.model)
    plain = inferencer.model
    images = torch.from_numpy(np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32))
    gflop = count_gflop(plain, images)

    jpeg = folder / 'image.jpg'
    make_jpeg(args.image, jpeg)
    detectors = {}
    for with_nms in (True, False):
        graph = DeployGraph(plain, with_nms)
        path = folder / f'{name}_{with_nms}.onnx'
        metadata = build_metadata(graph, [str(i) for i in range(80)], read_preprocessing(inferencer.cfg))
        export_onnx(graph, path, (SIZE, SIZE), metadata=metadata)
        detectors[with_nms] = OnnxDetector(path, args.threads)

    models = {'PyTorch': plain, 'PyTorch, fast switch': speed_up(plain)}
    if not args.no_compile:
        models['PyTorch, fast switch, compiled'] = speed_up(plain, compiled=True)

    def run_network(model: nn.Module) -> None:
        with torch.no_grad():
            model(images, mode='tensor')

    def run_pipeline(model: nn.Module) -> None:
        inferencer.model = model
        inferencer(str(jpeg), return_datasamples=True)

    left = torch.rand(MATRIX_SIDE, MATRIX_SIDE)
    tasks: dict[str, Callable[[], object]] = {'matrix': lambda: left @ left}
    for label, model in models.items():
        tasks[f'{label} network'] = lambda model=model: run_network(model)
        tasks[f'{label} pipeline'] = lambda model=model: run_pipeline(model)
    tasks['ONNX Runtime network'] = lambda: detectors[False].session.run(None, {'images': images.numpy()})
    tasks['ONNX Runtime pipeline'] = lambda: detectors[True]([read_image(jpeg)])
    seconds = measure(tasks, args.rounds)

    matrix_rate = 2 * MATRIX_SIDE**3 / 1e9 / seconds['matrix']
    rows = []
    for label in (*models, 'ONNX Runtime'):
        network, pipeline = seconds[f'{label} network'], seconds[f'{label} pipeline']
        rows.append(
            f'| {name} | {label} | {network * 1e3:.1f} | {seconds["PyTorch network"] / network:.2f} | '
            f'{gflop / network:.0f} | {gflop / network / matrix_rate:.0%} of {matrix_rate:.0f} | '
            f'{pipeline * 1e3:.1f} | {pipeline / network - 1:+.0%} |'
        )
    return rows


def benchmark_nms(rounds: int) -> str:
    """Measure our NMS beside compiled mmcv's, on boxes as a detector puts them: in heaps."""
    rng = np.random.default_rng(0)
    objects = rng.uniform(40, 600, (40, 2)).repeat(NUM_NMS_BOXES // 40, 0)
    centers = objects + rng.normal(0, 12, objects.shape)
    sizes = rng.uniform(20, 120, (40, 2)).repeat(NUM_NMS_BOXES // 40, 0) * rng.uniform(0.8, 1.25, objects.shape)
    boxes = torch.from_numpy(np.concatenate([centers - sizes / 2, centers + sizes / 2], 1).astype(np.float32))
    scores = torch.from_numpy(rng.random(len(boxes), np.float32))
    tasks = {'ours': lambda: nms(boxes, scores, 0.7)}
    compiled = not isinstance(sys.modules['mmcv._ext'], MissingOps)
    if compiled:
        tasks['mmcv'] = lambda: mmcv.ops.nms(boxes, scores, 0.7)
    seconds = measure(tasks, max(rounds, 20))
    line = f'NMS of {len(boxes)} boxes: ours in torch {seconds["ours"] * 1e3:.2f} ms'
    if not compiled:
        return line + '; this mmcv has no compiled ops to compare with'
    return line + f', compiled mmcv {seconds["mmcv"] * 1e3:.2f} ms: {seconds["ours"] / seconds["mmcv"]:.2f} times'


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    torch.manual_seed(0)
    print(
        f'torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {args.threads} threads, '
        f'{platform.processor() or platform.machine()}, medians of {args.rounds} rounds, one image of {SIZE} x {SIZE}\n'
    )
    print('| model | how | network, ms | times plain | GFLOP/s | of the matrix product | JPEG to boxes, ms | more |')
    print('| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |', flush=True)
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            print('\n'.join(benchmark_model(name, args, Path(folder))), flush=True)
    print(f'\n{benchmark_nms(args.rounds)}')


if __name__ == '__main__':
    main()
