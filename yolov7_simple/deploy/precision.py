"""Exported files of lower precision, int8 or float16, and what that costs in mAP and gains in speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from numpy.typing import NDArray

from ..apis.inference import quiet
from ..runtime.cpu import has_vnni
from ..runtime.images import read_image
from ..runtime.onnx_detector import OnnxDetector
from ..utils.configs import innermost_dataset
from .export import ExportError
from .exported import ExportedRunner

MAX_MAP_LOSS = 0.005
NUM_CALIBRATION_IMAGES = 128
MIN_SPEED_UP = 1.05  # less is no more than a machine's own changes of pace
MIN_INT8_OPSET = 13  # the first whose DequantizeLinear has a scale for each channel
ROUNDS, WARM_UP = 15, 3
PAUSE = 0.1  # in seconds, in which the threads of one session stop spinning before those of the other start


class Comparison(NamedTuple):
    """A file of lower precision beside that of float32: mAP, and median seconds for one image, NMS included."""

    map_before: float
    map_after: float
    seconds_before: float
    seconds_after: float

    def speed(self, word: str) -> str:
        """Say how fast the file is, whose precision is called so, and whether that is faster."""
        before, after = self.seconds_before, self.seconds_after
        times = f'{before * 1e3:.1f} ms an image in float32, {after * 1e3:.1f} ms in {word}'
        if before > MIN_SPEED_UP * after:
            return f'{times}: {before / after:.2f} times as fast on this machine'
        why = ', whose processor has no VNNI instructions' if word == 'int8' and not has_vnni() else ''
        return f'{times}: {word} is not faster on this machine{why}'

    def fault(self) -> str | None:
        """Say why the file is not fit for use, if it is not."""
        if not self.map_before > 0:
            return f'mAP is {self.map_before:.3f} in float32 already, so that nothing is known of the loss'
        if not self.map_before - self.map_after <= MAX_MAP_LOSS:
            return f'mAP falls from {self.map_before:.3f} to {self.map_after:.3f}, by more than {MAX_MAP_LOSS}'
        return None


def image_files(dataset: ConfigDict, name: str) -> list[Path]:
    """List the images of a dataset of a config.

    Args:
        dataset: Its dict; of a dataset around another the inner one counts.
        name: What it is called in the config, for the message.

    Raises:
        ExportError: It has none, or is none of mmdet's.
    """
    dataset = innermost_dataset(dataset)
    if 'pipeline' not in dataset:
        raise ExportError(f'{name} has no pipeline: give it a single dataset')
    with quiet():
        images = DATASETS.build({**dataset, 'pipeline': []})
        paths = [Path(images.get_data_info(i)['img_path']) for i in range(len(images))]
    if not paths:
        raise ExportError(f'{name} has no images')
    return paths


def spread(paths: Sequence[Path], count: int = NUM_CALIBRATION_IMAGES) -> list[Path]:
    """Pick so many, from beginning to end."""
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)]


def float_nodes(path: Path) -> list[str]:
    """Names of the nodes of a file that stay in float32: its last convolutions, the decoding of boxes, and NMS.

    All others are before some convolution.
    """
    import onnx

    nodes = onnx.load(str(path)).graph.node
    producers = {output: node for node in nodes for output in node.output}
    before: set[str] = set()
    waiting = [node for node in nodes if node.op_type == 'Conv']
    while waiting:
        for name in waiting.pop().input:
            node = producers.get(name)
            if node is not None and node.name not in before:
                before.add(node.name)
                waiting.append(node)
    return [node.name for node in nodes if node.name not in before]


def write_int8(source: Path, target: Path, images: Sequence[Path]) -> None:
    """Quantise the convolutions and what is between them: weights for each channel, activations for each tensor.

    Args:
        source: Exported file.
        target: File to write.
        images: Images by which the range of each tensor is measured.
    """
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    detector = OnnxDetector(source)

    class Images(CalibrationDataReader):
        """The images, one by one, as the detector prepares them."""

        def __init__(self) -> None:
            self.batches: Iterator[NDArray] = (
                detector.preprocess([pick_view(detector, read_image(path), i)])[0] for i, path in enumerate(images)
            )

        def get_next(self) -> dict[str, NDArray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {'images': batch}

    with quiet():
        quantize_static(
            str(source),
            str(target),
            Images(),
            per_channel=True,
            # Without VNNI, two products of 8 bits overflow the 16 bits that they are added up in.
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=float_nodes(source),
        )


def pick_view(detector: OnnxDetector, image: NDArray[np.uint8], i: int) -> NDArray[np.uint8]:
    """An image as the network sees it: of one that is looked at in windows the i-th, and sometimes the whole."""
    if detector.tiling is None:
        return image
    views = detector.tiling.views(*image.shape[:2])
    x1, y1, x2, y2 = views[i % len(views)].tolist()
    return image[y1:y2, x1:x2]


def write_float16(source: Path, target: Path) -> None:
    """Store and compute the network in float16; input and outputs stay float32.

    Args:
        source: Exported file.
        target: File to write.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        model = convert_float_to_float16(
            onnx.load(str(source)), keep_io_types=True, node_block_list=float_nodes(source)
        )
    onnx.save(model, str(target))


def measure_map(cfg: Config, path: Path) -> float:
    """Measure the mAP of a file on the validation split of a config, as ``tools/test.py`` would.

    Raises:
        ExportError: The metric of the config measures none.
    """
    cfg = deepcopy(cfg)
    cfg.pop('visualizer', None)  # which would go on to write into the folder of the first file
    with TemporaryDirectory() as folder, quiet():
        cfg.update(
            load_from=str(path),
            work_dir=folder,
            experiment_name=f'{path.stem}_{time.time_ns()}',
            custom_hooks=[],
            test_dataloader=cfg.val_dataloader,
            test_evaluator=cfg.val_evaluator,
        )
        metrics = ExportedRunner.from_cfg(cfg).test()
    for name, value in metrics.items():
        if name.rpartition('/')[2] in ('bbox_mAP', 'mAP'):
            return float(value)
    raise ExportError(f'val_evaluator measures no mAP, but {", ".join(metrics) or "nothing"}')


def measure_seconds(paths: Sequence[Path], image: Path) -> list[float]:
    """Median seconds that each file takes for one image, from the input of the network to its detections, in turns."""
    tasks: list[Callable[[], object]] = []
    for path in paths:
        detector = OnnxDetector(path)
        batch = detector.preprocess([read_image(image)])[0]
        tasks.append(lambda session=detector.session, batch=batch: session.run(None, {'images': batch}))
    times: list[list[float]] = [[] for _ in tasks]
    for i in range(WARM_UP + ROUNDS):
        for task, own in zip(tasks, times):
            time.sleep(PAUSE)
            start = time.perf_counter()
            task()
            if i >= WARM_UP:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def compare_precisions(cfg: Config, before: Path, after: Path, image: Path) -> Comparison:
    """Measure a file of float32 and one of lower precision.

    Args:
        cfg: Config of the model; its validation split gives the mAP.
        before: File of float32.
        after: That of lower precision.
        image: One to measure the speed with.
    """
    return Comparison(measure_map(cfg, before), measure_map(cfg, after), *measure_seconds((before, after), image))
