"""A detector in an ONNX file, with nothing but numpy, OpenCV and onnxruntime, or OpenVINO.

B images, N detections of an image, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .engines import load_engine
from .errors import InputError
from .images import check_pixels
from .numpy_nms import numpy_nms
from .tiles import Tiling, detect_in_views, fit_view

PRODUCER = 'yolov7_simple'
METADATA_VERSION = 2  # of the metadata that are read here; a file without one is of before, and one of 2 has tiles
KEYS = (
    'outputs',
    'classes',
    'resize',
    'channel_order',
    'mean',
    'std',
    'pad_value',
    'pad_size_divisor',
    'score_threshold',
    'iou_threshold',
)


class Detections(NamedTuple):
    """Detections of one image, best first: boxes (N, 4), xyxy in its pixels; scores (N,); labels (N,)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


class OnnxDetector:
    """Run a file written by ``tools/export_onnx.py``, which describes itself in its metadata.

    Args:
        path: ONNX file, exported with NMS.
        num_threads: Threads of the engine; None: one for each core.
        agnostic_nms: Whether to keep one box of an object, whatever its class, also where the file was exported without
            ``--agnostic-nms``.
        engine: ``'onnxruntime'``, or ``'openvino'``, which gives the same detections.

    Attributes:
        engine (Engine): What runs the file.
        session: Its ``InferenceSession`` of onnxruntime, or ``CompiledModel`` of OpenVINO.
        classes (list[str]): Names of the classes, in the order of the labels.
        score_threshold (float): Lowest score of a detection.
        iou_threshold (float): Largest IoU of two detections of a class.
        agnostic_nms (bool): Whether it is that of any two detections.
        max_per_img (int): Most detections of an image; below 1: no limit.
        tiling (Tiling | None): How large pictures are looked at in windows, if the model was trained so.

    Raises:
        InputError: The file is not there, or was not written by that tool or by a later version of it, or
            the engine is missing.
    """

    def __init__(
        self,
        path: str | Path,
        num_threads: int | None = None,
        agnostic_nms: bool = False,
        engine: str = 'onnxruntime',
    ) -> None:
        self.engine = load_engine(engine, Path(path), num_threads)
        self.session = self.engine.session
        self.path = path
        metadata = self.engine.metadata
        try:
            if json.loads(metadata['producer']) != PRODUCER:
                raise KeyError('producer')
            version = int(json.loads(metadata.get('version', '0')))
            if version > METADATA_VERSION:
                raise InputError(
                    f'{path}: its metadata are of version {version}, and this yolov7_simple reads {METADATA_VERSION}: '
                    'update yolov7_simple, or export the file with this one'
                )
            # Tools that change files add metadata of their own, in any form.
            values = {key: json.loads(metadata[key]) for key in KEYS}
            self.classes: list[str] = values['classes']
            self.resize = (values['resize']['long'], values['resize']['short'])
            self.is_rgb = values['channel_order'] == 'RGB'
            self.mean = np.array(values['mean'], np.float32)
            self.std = np.array(values['std'], np.float32)
            self.pad_value = values['pad_value']
            self.pad_size_divisor = values['pad_size_divisor']
            self.score_threshold = values['score_threshold']
            self.iou_threshold = values['iou_threshold']
            self.agnostic_nms = agnostic_nms or json.loads(metadata.get('class_agnostic', 'false'))
            self.max_per_img = int(json.loads(metadata.get('max_per_img', '-1')))
            self.has_nms = values['outputs'] == 'detections'
            tile = json.loads(metadata.get('tile', 'null'))
            self.tiling = tile and Tiling(tile['side'], tile['overlap'], values['resize']['long'])
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}: was not written by tools/export_onnx.py: no usable metadata {error}') from error
        self.input_size = self.engine.input_size

    def check_nms(self) -> None:
        """Make sure that the file gives detections.

        Raises:
            InputError: It was exported with ``--raw``.
        """
        if not self.has_nms:
            raise InputError(
                f'{self.path} was exported with --raw: its boxes have not been through NMS; export without'
            )

    def preprocess(self, images: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Resize, pad and scale images, as in training and testing.

        Args:
            images: BGR, (H, W, 3) each, of any sizes.

        Returns:
            The input of the network, (B, 3, H, W), and the factors by which width and height of each image were
            multiplied, (B, 2).

        Raises:
            InputError: These are no such images.
        """
        images = check_pixels(images)
        resized = [self._resize(image) for image in images]
        if self.input_size is None:
            height, width = np.max([image.shape[:2] for image in resized], 0)
            if self.tiling:
                height = width = self.tiling.scale  # all inputs are of one size, whatever is in the batch
            divisor = self.pad_size_divisor
            height, width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
        else:
            height, width = self.input_size
        batch = np.full((len(images), 3, height, width), self.pad_value, np.float32)
        for i, image in enumerate(resized):
            # Planes are copied one by one, ten times as fast as interleaved pixels.
            planes = cv2.split(image)
            for channel, plane in enumerate(planes[::-1] if self.is_rgb else planes):
                target = batch[i, channel, : image.shape[0], : image.shape[1]]
                np.subtract(plane, self.mean[channel], out=target)
                target /= self.std[channel]
        factors = [(new.shape[1] / old.shape[1], new.shape[0] / old.shape[0]) for new, old in zip(resized, images)]
        return batch, np.array(factors, np.float32)

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit an image into the configured size, up or down, keeping its aspect ratio."""
        height, width = image.shape[:2]
        factor = min(self.resize[0] / max(height, width), self.resize[1] / min(height, width))
        if self.input_size is not None:
            factor = min(factor, self.input_size[0] / height, self.input_size[1] / width)
        if self.tiling:
            return fit_view(image, factor)
        size = (max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1))
        return image if size == (width, height) else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detect.

        Args:
            images: BGR, (H, W, 3) each.

        Returns:
            The detections of each image.

        Raises:
            InputError: The file was exported with ``--raw``, or these are no such images.
        """
        self.check_nms()
        images = check_pixels(images)
        if self.tiling:
            options = (self.iou_threshold, self.agnostic_nms, self.max_per_img)
            return [Detections(*detect_in_views(image, self.tiling, self._detect, *options)) for image in images]
        return self._detect(images) if images else []

    def _detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detect in images, each seen as a whole."""
        batch, factors = self.preprocess(images)
        dets, labels = self.engine.run(batch, ('dets', 'labels'))
        results = []
        for image, image_dets, image_labels, factor in zip(images, dets, labels, factors):
            found = image_labels >= 0
            image_dets, image_labels = image_dets[found], image_labels[found]
            height, width = image.shape[:2]
            boxes = (image_dets[:, :4] / np.tile(factor, 2)).clip(0, np.array([width, height] * 2, np.float32))
            detections = Detections(boxes, image_dets[:, 4], image_labels)
            if self.agnostic_nms:
                kept = numpy_nms(*detections[:2], np.zeros_like(image_labels), self.iou_threshold)
                detections = Detections(*(values[kept] for values in detections))
            results.append(detections)
        return results
