"""Evaluate an exported file on the test images of a config, with the config's metric."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.registry import MODELS, RUNNERS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from ..models.prediction import TestOptions
from ..runtime.errors import InputError, examples
from ..runtime.onnx_detector import OnnxDetector
from ..utils.configs import innermost_dataset, type_name
from .metadata import Preprocessing, padded_size, read_preprocessing

SUFFIXES = ('.onnx',)


@MODELS.register_module()
class ExportedDetector(BaseModel):
    """A file of ``tools/export_onnx.py`` in the place of a config's model. It can be tested, and not trained.

    Args:
        path: Exported file, with NMS.
        engine: What runs it, as in :class:`OnnxDetector`.

    Attributes:
        detector (OnnxDetector): What runs it.

    Raises:
        InputError: The file cannot be used, or was exported with ``--raw``.
    """

    def __init__(self, path: str, engine: str = 'onnxruntime') -> None:
        super().__init__()
        self.detector = OnnxDetector(path, engine=engine)
        self.detector.check_nms()

    def __deepcopy__(self, memo: dict) -> ExportedDetector:
        """The same, which has no weights that could change: hooks copy a model, and a session has no copies."""
        return self

    def forward(
        self, inputs: list[Tensor], data_samples: list[DetDataSample], mode: str = 'predict'
    ) -> list[DetDataSample]:
        """Detect; the file says how images are resized and scaled.

        Args:
            inputs: Images as they are in their files, BGR, (3, H, W) each.
            data_samples: One of each image.
            mode: Of mmengine's models, and only ``'predict'`` here.

        Returns:
            The data samples, with ``pred_instances`` in pixels of these images.
        """
        if mode != 'predict':
            raise InputError(f'ExportedDetector: an exported file only detects, and has no mode {mode!r}')
        images = [np.ascontiguousarray(image.byte().permute(1, 2, 0).cpu().numpy()) for image in inputs]
        for sample, found in zip(data_samples, self.detector(images)):
            boxes, scores, labels = map(torch.from_numpy, found)
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        samplelist_boxtype2tensor(data_samples)  # as a data preprocessor does with the truth
        return data_samples

    def test_step(self, data: dict[str, Any]) -> list[DetDataSample]:
        """Detect in a batch of the dataloader, which stays on the CPU."""
        return self(**data)


@RUNNERS.register_module()
class ExportedRunner(Runner):
    """mmengine's Runner, which tests an exported file: ``load_from`` names it, all else is as with a checkpoint.

    The images are read as the test pipeline reads them, and prepared as the file says. How the file differs from the
    config is logged as a warning. The config is not saved, since it is not that of a model.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> ExportedRunner:
        """Put the file in the place of the model.

        Raises:
            InputError: The file cannot be used, or what it is asked for is for checkpoints alone.
            ExportError: The test pipeline does what no exported file does.
        """
        cfg = deepcopy(cfg)
        path, model = cfg.pop('load_from'), cfg.model
        if 'module' in model:
            raise InputError(f'{path}: --tta is for checkpoints; an exported file is tested as it is')
        if cfg.get('launcher', 'none') != 'none':
            raise InputError(f'{path}: --launcher is for checkpoints; one process tests an exported file')
        dataset = innermost_dataset(cfg.test_dataloader.dataset)
        if 'pipeline' not in dataset:
            raise InputError(f'{path}: test_dataloader.dataset of the config has no pipeline: give it a single dataset')
        preprocessing = read_preprocessing(Config({'model': model, 'test_dataloader': {'dataset': dataset}}))
        dataset.pipeline = [step for step in dataset.pipeline if type_name(step) != 'Resize']
        cfg.model = ConfigDict(type='mmdet.ExportedDetector', path=path, engine=cfg.pop('engine', 'onnxruntime'))
        cfg.resume = False
        runner = super().from_cfg(cfg)
        runner.exported, runner.preprocessing = Path(path), preprocessing
        runner.test_options = TestOptions.from_cfg(model.get('test_cfg') or {})
        return runner

    def dump_config(self) -> None:
        """Leave the config that is in the folder, which is that of a checkpoint."""

    def load_or_resume(self) -> None:
        """Check, in the place of loading, that the file is for this dataset, and say how it differs from the config.

        Raises:
            InputError: It has other classes.
        """
        detector, dataset = self.model.detector, self.test_dataloader.dataset
        check_same_classes(self.exported, detector.classes, dataset.metainfo.get('classes', detector.classes))
        infos = map(dataset.get_data_info, range(len(dataset)))
        sizes = {padded_size((info['height'], info['width']), self.preprocessing) for info in infos if 'height' in info}
        sizes = sizes or {padded_size(self.preprocessing.scale[::-1], self.preprocessing)}
        for difference in find_differences(detector, self.preprocessing, sizes, self.test_options):
            self.logger.warning(f'{self.exported.name}: {difference}')


def check_same_classes(path: Path, own: list[str], wanted: list[str]) -> None:
    """Compare the classes of a file with those of a dataset.

    Raises:
        InputError: They differ.
    """
    if list(own) == list(wanted):
        return
    what = f'has {len(own)} classes ({examples(own)}), and the test dataset {len(wanted)} ({examples(wanted)})'
    if len(own) == len(wanted):
        i = next(i for i, (name, other) in enumerate(zip(own, wanted)) if name != other)
        what = f'calls class {i} {own[i]!r}, and the test dataset {wanted[i]!r}'
    raise InputError(
        f'{path} {what}: use the config that it was exported with, or its names and their order in '
        'metainfo=dict(classes=...) of test_dataloader.dataset'
    )


def find_differences(
    detector: OnnxDetector, config: Preprocessing, sizes: set[tuple[int, int]], options: TestOptions
) -> list[str]:
    """Say why a file gives other numbers than a checkpoint would.

    Args:
        detector: The file.
        config: What the config does with images.
        sizes: Heights and widths that the config pads the images to.
        options: The config's ``test_cfg``.
    """
    found = []
    least = TestOptions().score_thr
    if detector.score_threshold > least:
        found.append(
            f'its NMS drops what scores below {detector.score_threshold:g}, which cuts mAP: to measure it, export with '
            f'--score-thr {least:g}'
        )
    if detector.input_size is not None and sizes != {detector.input_size}:
        own, *others = (f'{height} x {width}' for height, width in (detector.input_size, *sorted(sizes)))
        found.append(
            f'it is tested at its own height and width, {own}; a checkpoint would be at {examples(others)}: to compare '
            'the two, export with --dynamic'
        )
    for name, own, other in (
        ('score threshold', detector.score_threshold, options.score_thr),
        ('IoU threshold', detector.iou_threshold, options.iou_threshold),
        ('limit of detections of an image', max(detector.max_per_img, 0), max(options.max_per_img, 0)),
        (
            'side of windows (0: none)',
            detector.tiling.tile if detector.tiling else 0,
            config.tiling.tile if config.tiling else 0,
        ),
        (
            'overlap of windows',
            detector.tiling.overlap if detector.tiling else 0,
            config.tiling.overlap if config.tiling else 0,
        ),
        ('scale of the images', detector.resize, (max(config.scale), min(config.scale))),
        ('mean', detector.mean.tolist(), config.mean),
        ('std', detector.std.tolist(), config.std),
        ('swap to RGB', detector.is_rgb, config.bgr_to_rgb),
        ('value of padding', detector.pad_value, config.pad_value),
    ):
        if not np.allclose(own, other):
            found.append(f'its {name} is {own}, and that of the config {other}')
    return found
