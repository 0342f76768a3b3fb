"""Metadata of an exported file: how to prepare images, and what its outputs mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config, ConfigDict

from ..runtime.onnx_detector import METADATA_VERSION, PRODUCER
from ..runtime.tiles import Tiling
from ..utils.configs import tiling_of, type_name
from .export import DeployGraph, ExportError

# Steps of a test pipeline that do not change pixels.
NOT_PREPROCESSING = ('LoadImageFromFile', 'InferencerLoader', 'CheckImageFile', 'LoadAnnotations', 'PackDetInputs')


class Preprocessing(NamedTuple):
    """Steps between an image and the network, as in the config."""

    scale: tuple[int, int]  # the image is resized to fit in this width and height, or swapped ones
    mean: list[float]
    std: list[float]
    bgr_to_rgb: bool
    pad_value: float  # of the normalised image
    pad_size_divisor: int
    tiling: Tiling | None = None  # of TiledDetector, whose views are fitted into the scale


def read_preprocessing(cfg: Config) -> Preprocessing:
    """Read the test pipeline and the data preprocessor.

    Raises:
        ExportError: They do something that the metadata cannot express.
    """
    tiling, resize = tiling_of(cfg), None
    for transform in cfg.test_dataloader.dataset.pipeline:
        kind = type_name(transform)
        if kind == 'Resize':
            resize = transform
        elif kind not in NOT_PREPROCESSING:
            raise ExportError(f'test pipeline: {kind} is not known to the export, which knows Resize alone')
    if tiling:
        if resize:
            raise ExportError('test pipeline: has a Resize, but TiledDetector cuts windows out of full-size pictures')
        resize = ConfigDict(scale=(tiling.scale, tiling.scale), keep_ratio=True)
    if resize is None or not resize.get('keep_ratio') or 'scale' not in resize:
        raise ExportError('test pipeline: needs one dict(type="Resize", scale=(W, H), keep_ratio=True)')
    if resize.get('interpolation', 'bilinear') != 'bilinear' or resize.get('backend', 'cv2') != 'cv2':
        raise ExportError('test pipeline: Resize must be bilinear, with cv2')
    preprocessor = cfg.model.get('data_preprocessor', {})
    if preprocessor.get('rgb_to_bgr'):
        raise ExportError('data_preprocessor: rgb_to_bgr is not known to the export')
    return Preprocessing(
        scale=tuple(resize.scale),
        mean=[float(value) for value in preprocessor.get('mean') or [0.0] * 3],
        std=[float(value) for value in preprocessor.get('std') or [1.0] * 3],
        bgr_to_rgb=bool(preprocessor.get('bgr_to_rgb', False)),
        pad_value=float(preprocessor.get('pad_value', 0)),
        pad_size_divisor=int(preprocessor.get('pad_size_divisor', 1)),
        tiling=tiling,
    )


def padded_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of the network's input for an image's height and width, rounded as mmdet's Resize rounds."""
    if preprocessing.tiling:
        size = preprocessing.scale  # that of all views
    long, short = max(preprocessing.scale), min(preprocessing.scale)
    factor = min(long / max(size), short / min(size))
    divisor = preprocessing.pad_size_divisor
    height, width = (-(-int(side * factor + 0.5) // divisor) * divisor for side in size)
    return height, width


def default_size(cfg: Config, preprocessing: Preprocessing) -> tuple[int, int]:
    """Choose height and width for an input of fixed size.

    If all test images are padded to one size, it is that one, and the file gives the numbers of ``tools/test.py``; more
    padding would change scores near it. Otherwise it is Resize's scale, which every image fits in.
    """
    dataset = cfg.test_dataloader.dataset
    path = Path(dataset.get('data_root') or '') / dataset.get('ann_file', '')
    try:
        images = json.loads(path.read_text(encoding='utf-8'))['images']
        sizes = {padded_size((image['height'], image['width']), preprocessing) for image in images}
    except (OSError, ValueError, LookupError, TypeError):  # no dataset here, or not in COCO's form
        sizes = set()
    if len(sizes) == 1:
        return sizes.pop()
    divisor = preprocessing.pad_size_divisor
    width, height = (-(-side // divisor) * divisor for side in preprocessing.scale)
    return height, width


def build_metadata(graph: DeployGraph, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, str]:
    """Collect all that is needed to use the file; every value is JSON."""
    values = {
        'producer': PRODUCER,
        # Clients of before, which know no windows, must refuse a file that needs them, and no other.
        'version': METADATA_VERSION if preprocessing.tiling else 1,
        'outputs': 'detections' if graph.with_nms else 'raw',
        'classes': list(classes),
        'resize': {'long': max(preprocessing.scale), 'short': min(preprocessing.scale), 'interpolation': 'bilinear'},
        'channel_order': 'RGB' if preprocessing.bgr_to_rgb else 'BGR',
        'mean': preprocessing.mean,
        'std': preprocessing.std,
        'pad_value': preprocessing.pad_value,
        'pad_size_divisor': preprocessing.pad_size_divisor,
        'score_threshold': graph.score_threshold,
        'iou_threshold': graph.iou_threshold,
        'class_agnostic': graph.class_agnostic,
        'nms_pre': graph.nms_pre,
        'max_per_img': graph.max_per_img,
    }
    if preprocessing.tiling:
        values['tile'] = {'side': preprocessing.tiling.tile, 'overlap': preprocessing.tiling.overlap}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
