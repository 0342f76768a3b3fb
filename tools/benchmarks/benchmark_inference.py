"""Time inference of one image at 640: PyTorch as it is, its faster forms, ONNX Runtime, OpenVINO and OpenCV.

    python tools/benchmarks/benchmark_inference.py --image PHOTO.jpg

Prints a Markdown table of medians for Tiny, YOLOv7 and X. `network` is from the input tensor to the raw predictions,
`pipeline` from a JPEG file to boxes in its pixels. The rate is compared with that of a product of two 2048 x 2048
float32 matrices, timed in the same rounds. Its convolutions alone are the share of the fast switch that the profiler
finds in them: with these kernels, no form of the network is faster. Weights are random and BatchNorms calibrated.
Random weights are the worst case for NMS, as every candidate passes the threshold.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from yolov7_simple import config_path  # before mmdet: it stands in for missing mmcv ops

# isort: split
import cv2
import mmcv.ops
import numpy as np
import onnxruntime
import torch
from mmdet.apis import DetInferencer
from timing import measure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from yolov7_simple.apis.inference import load_config, quiet
from yolov7_simple.deploy.export import DeployGraph, export_onnx
from yolov7_simple.deploy.metadata import build_metadata, read_preprocessing
from yolov7_simple.models.fast import speed_up
from yolov7_simple.ops.mmcv_ext import MissingOps
from yolov7_simple.ops.nms import nms
from yolov7_simple.runtime.images import read_image
from yolov7_simple.runtime.onnx_detector import OnnxDetector

CONFIGS = {
    'Tiny': 'yolov7_tiny_8xb16-300e_coco.py',
    'YOLOv7': 'yolov7_l_8xb16-300e_coco.py',
    'X': 'yolov7_x_8xb16-300e_coco.py',
}
SIZE = 640
THREADS = 2
MATRIX_SIDE = 2048
NUM_NMS_BOXES = 3000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument('--image', type=Path, help=f'a photograph, cropped to a {SIZE} x {SIZE} JPEG; default: noise')
    parser.add_argument('--rounds', type=int, default=20, help='default: 20')
    parser.add_argument('--no-compile', action='store_true', help='leave torch.compile out, which needs a compiler')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds}: must be at least 1')
    return args


def calibrate(model: nn.Module) -> None:
    """Give BatchNorms the statistics of noise. Without, signals would fade to denormal numbers, which are slow."""
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


def convolution_share(model: nn.Module, images: Tensor, rounds: int) -> float:
    """Profile the network, and return the share of its time that convolutions take."""
    with torch.no_grad():
        model(images, mode='tensor')
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(rounds):
                model(images, mode='tensor')
    ops = profiler.key_averages()
    convolutions = sum(op.cpu_time_total for op in ops if op.key == 'aten::convolution')
    return convolutions / sum(op.self_cpu_time_total for op in ops)


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
    """Measure one model; returns rows of the table."""
    with quiet():
        inferencer = DetInferencer(load_config(config_path(CONFIGS[name])), device='cpu', show_progress=False)
        inferencer.model.init_weights()
    calibrate(inferencer.model)
    plain = inferencer.model
    images = torch.from_numpy(np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32))
    gflop = count_gflop(plain, images)

    jpeg = folder / 'image.jpg'
    make_jpeg(args.image, jpeg)
    # OpenVINO only where it is installed. OpenCV before 5 loads no file with NMS, and its pipeline is not measured.
    engines = {'ONNX Runtime': 'onnxruntime', 'OpenVINO': 'openvino'}
    if importlib.util.find_spec('openvino') is None:
        del engines['OpenVINO']
    detectors = {}
    for with_nms in (True, False):
        graph = DeployGraph(plain, with_nms)
        path = folder / f'{name}_{with_nms}.onnx'
        metadata = build_metadata(graph, [str(i) for i in range(80)], read_preprocessing(inferencer.cfg))
        export_onnx(graph, path, (SIZE, SIZE), metadata=metadata)
        for label, engine in engines.items():
            detectors[label, with_nms] = OnnxDetector(path, THREADS, engine=engine)
    opencv = cv2.dnn.readNetFromONNX(str(path))  # the one without NMS

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
    batch = images.numpy()
    for label in engines:
        raw, whole = detectors[label, False], detectors[label, True]
        tasks[f'{label} network'] = lambda raw=raw: raw.engine.run(batch, ('boxes', 'scores'))
        tasks[f'{label} pipeline'] = lambda whole=whole: whole([read_image(jpeg)])

    def run_opencv() -> None:
        opencv.setInput(batch)
        opencv.forward(['boxes', 'scores'])

    tasks['OpenCV network'] = run_opencv
    seconds = measure(tasks, args.rounds)
    fast = 'PyTorch, fast switch'
    share = convolution_share(models[fast], images, args.rounds)
    seconds['its convolutions alone network'] = share * seconds[f'{fast} network']

    matrix_rate = 2 * MATRIX_SIDE**3 / 1e9 / seconds['matrix']
    rows = []
    labels = [*models, *engines, 'OpenCV']
    for label in (*labels, 'its convolutions alone'):
        network, pipeline = seconds[f'{label} network'], seconds.get(f'{label} pipeline')
        last = '| |' if pipeline is None else f'{pipeline * 1e3:.1f} | {pipeline / network - 1:+.0%} |'
        rows.append(
            f'| {name} | {label} | {network * 1e3:.1f} | {seconds["PyTorch network"] / network:.2f} | '
            f'{gflop / network:.0f} | {gflop / network / matrix_rate:.0%} of {matrix_rate:.0f} | {last}'
        )
    fastest = min(labels, key=lambda label: seconds[f'{label} network'])
    print(f'The fastest network of {name}: {fastest}', file=sys.stderr)
    return rows


def benchmark_nms(rounds: int) -> str:
    """Time our NMS and compiled mmcv's on boxes in 40 heaps, as detectors predict them."""
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
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    torch.manual_seed(0)
    print(
        f'torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {THREADS} threads, '
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
