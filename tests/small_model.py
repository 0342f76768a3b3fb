"""A small detector with config and checkpoint, for tests that need a trained one."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from yolov7_simple.apis.detect import TorchDetector
from yolov7_simple.apis.inference import load_config
from yolov7_simple.deploy.export import DeployGraph, export_onnx
from yolov7_simple.deploy.metadata import build_metadata, read_preprocessing
from yolov7_simple.runtime import OnnxDetector

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ('circle', 'square', 'star')
CONFIG = """
_base_ = {base!r}
metainfo = dict(classes={classes})
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
model = dict(
    backbone=dict(arch='tiny', widen_factor=0.125),
    neck=dict(in_channels=[16, 32, 64], out_channels=16, num_stages=2),
    bbox_head=dict(in_channels=16, num_classes={num_classes}),
    test_cfg=dict(score_thr=0.6, nms=dict(type='nms', iou_threshold=0.5), max_per_img={max_per_img}),
)
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root={data_root!r},
        ann_file='annotations.json',
        data_prefix=dict(img=''),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(ann_file={data_root!r} + 'annotations.json')
"""


def write_config(path: Path, data_root: str = '', num_classes: int = 3, max_per_img: int = -1) -> Path:
    path.write_text(
        CONFIG.format(
            base=str(ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'),
            classes=CLASSES,
            data_root=data_root,
            num_classes=num_classes,
            max_per_img=max_per_img,
        )
    )
    return path


def build_model(config: Path) -> torch.nn.Module:
    """Random weights that find something: scores and sizes are spread as a trained detector's."""
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    head = model.bbox_head
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.05)
                module.running_var.uniform_(0.25, 0.4)  # keeps signals from fading
        outputs = model(torch.rand(8, 3, 128, 128), mode='tensor')
        for preds, levels, spread in zip((head.cls_preds, head.reg_preds, head.obj_preds), outputs, (1.5, 0.3, 1.5)):
            for pred, level in zip(preds, levels):
                pred.weight.mul_(spread / level.std())
                pred.bias.sub_(level.mean()).mul_(spread / level.std())
        for pred in head.reg_preds:
            pred.bias[2:] += 0.7
    return model


def write_model(folder: Path, data_root: str = '', max_per_img: int = -1) -> tuple[Path, Path]:
    """Write a config and a checkpoint as mmengine does."""
    config = write_config(folder / 'small.py', data_root, max_per_img=max_per_img)
    checkpoint = folder / 'small.pth'
    cfg = Config.fromfile(config)
    meta = {'dataset_meta': {'classes': CLASSES}, 'cfg': cfg.pretty_text}
    torch.save({'state_dict': build_model(config).state_dict(), 'meta': meta}, checkpoint)
    return config, checkpoint


def export(
    model: torch.nn.Module, path: Path, config: Path, size: tuple = (96, 128), **options
) -> tuple[DeployGraph, OnnxDetector]:
    """Write an ONNX file; returns the graph that is in it, and the detector that it is."""
    graph = DeployGraph(model, options.pop('with_nms', True))
    metadata = build_metadata(graph, CLASSES, read_preprocessing(load_config(config)))
    export_onnx(graph, path, size, metadata=metadata, **options)
    return graph, OnnxDetector(path, 1)


def write_images(folder: Path, shapes: tuple = ((96, 128), (120, 90), (200, 260))) -> list[Path]:
    """Images with something in them, of these heights and widths."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = []
    for i, (height, width) in enumerate(shapes):
        image = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(5):
            center = rng.integers(0, (width, height)).tolist()
            cv2.circle(image, center, int(rng.integers(5, 30)), rng.integers(0, 255, 3).tolist(), -1)
        paths.append(folder / f'image{i}.png')
        cv2.imwrite(str(paths[-1]), image)
    return paths


def write_truth(images: list[Path], detector) -> None:
    """Write annotations.json beside images: some of the boxes that a detector finds in them, moved by a pixel."""
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES)]
    content = {'images': [], 'annotations': [], 'categories': categories}
    for i, path in enumerate(images):
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        content['images'].append({'id': i, 'file_name': path.name, 'height': height, 'width': width})
        boxes, _, labels = detector([image])[0]
        for box, label in list(zip((boxes + np.array([1, 0, 2, 1])).tolist(), labels.tolist()))[:20:2]:
            x1, y1, x2, y2 = box
            box = [x1, y1, x2 - x1, y2 - y1]
            content['annotations'].append(
                {'id': len(content['annotations']) + 1, 'image_id': i, 'category_id': label, 'bbox': box}
                | {'area': box[2] * box[3], 'iscrowd': 0}
            )
    (images[0].parent / 'annotations.json').write_text(json.dumps(content))


def write_evaluated(folder: Path) -> tuple[Path, TorchDetector]:
    """Write a config, a checkpoint, and images whose boxes the detector has found itself; returns config and detector.

    The images are in ``images/``.
    """
    images = write_images(folder / 'images')
    config, checkpoint = write_model(folder, f'{folder}/images/')
    detector = TorchDetector(config, checkpoint, 'cpu', fast=False)
    write_truth(images, detector)
    return config, detector
