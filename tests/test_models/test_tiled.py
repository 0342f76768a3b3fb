"""A detector that looks at large pictures in windows, from a checkpoint and from an ONNX file."""

import json

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from small_model import export, write_images, write_model, write_truth
from tool_runs import metric, tool

from yolov7_simple.apis.detect import SlicedDetector, TorchDetector
from yolov7_simple.apis.inference import load_config, load_inferencer
from yolov7_simple.deploy.exported import find_differences
from yolov7_simple.deploy.metadata import read_preprocessing
from yolov7_simple.models.fast import speed_up
from yolov7_simple.models.prediction import TestOptions
from yolov7_simple.runtime import InputError, OnnxDetector, onnx_detector, read_image
from yolov7_simple.runtime.tiles import Tiling
from yolov7_simple.utils.options import OptionError

CONFIG = """
_base_ = './small.py'
model = dict(type='TiledDetector', tile=192, scale=128, overlap=0.25)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = test_dataloader
"""
SIZES = ((400, 600), (150, 180), (100, 500))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model with windows, one without, and images/ with the boxes that the first one finds."""
    folder = tmp_path_factory.mktemp('tiled')
    images = write_images(folder / 'images', SIZES)
    write_model(folder, f'{folder}/images/')
    (folder / 'tiled.py').write_text(CONFIG)
    write_truth(images, TorchDetector(folder / 'tiled.py', folder / 'small.pth', 'cpu', fast=False))
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return load_inferencer(folder / 'tiled.py', folder / 'small.pth', 'cpu').model


def pictures(folder):
    return [read_image(path) for path in sorted((folder / 'images').glob('*.png'))]


def same_detections(given, wanted):
    assert len(given) == len(wanted)
    for one, other in zip(given, wanted):
        assert len(one.scores) == len(other.scores) > 10
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.02)
        assert (one.labels == other.labels).all()


def test_weights_are_those_of_a_detector_without_windows(folder, model):
    plain = load_inferencer(folder / 'small.py', folder / 'small.pth', 'cpu').model
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_each_window_is_seen_as_a_picture_of_its_own(folder):
    """What is found inside of a window is what the detector without windows finds in it."""
    checkpoint = folder / 'small.pth'
    tiled, plain = (TorchDetector(folder / f'{name}.py', checkpoint, 'cpu', fast=False) for name in ('tiled', 'small'))
    picture = pictures(folder)[0]
    found = tiled([picture])[0]
    _, *windows = tiled.inferencer.model.tiling.views(*picture.shape[:2]).tolist()
    assert len(windows) == 12
    num_found = 0
    for x1, y1, x2, y2 in windows:
        boxes, scores, _ = plain([np.ascontiguousarray(picture[y1:y2, x1:x2])])[0]
        for box, score in zip(boxes + np.array([x1, y1, x1, y1]), scores):
            num_found += bool((np.abs(found.boxes - box).max(1) < 0.01)[np.isclose(found.scores, score)].any())
    assert num_found > 0.5 * len(found.scores)  # those of the whole picture, and merged ones, are the others


def test_a_file_finds_what_its_checkpoint_finds(folder, model, tmp_path):
    images = pictures(folder)
    wanted = TorchDetector(folder / 'tiled.py', folder / 'small.pth', 'cpu')(images)
    for options in ({'size': (128, 128)}, {'size': (128, 128), 'dynamic_size': True}):
        _, detector = export(model, tmp_path / 'a.onnx', folder / 'tiled.py', **options)
        assert detector.tiling == Tiling(192, 0.25, 128)
        same_detections(detector(images), wanted)
        assert detector([]) == []


def test_a_client_of_before_refuses_such_a_file(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_detector, 'METADATA_VERSION', 1)
    with pytest.raises(InputError, match='its metadata are of version 2, and this yolov7_simple reads 1: update'):
        export(model, tmp_path / 'a.onnx', folder / 'tiled.py', (128, 128))
    plain = load_inferencer(folder / 'small.py', folder / 'small.pth', 'cpu').model
    assert export(plain, tmp_path / 'b.onnx', folder / 'small.py', (128, 128))[1].tiling is None


def test_tools_have_the_same_numbers_for_both(folder, tmp_path):
    tool('export_onnx.py', folder / 'tiled.py', folder / 'small.pth', tmp_path / 'a.onnx')
    detector = OnnxDetector(tmp_path / 'a.onnx')
    assert detector.input_size == (128, 128)
    numbers = [
        metric(tool('test.py', folder / 'tiled.py', model, '--work-dir', tmp_path / 'work'))
        for model in (folder / 'small.pth', tmp_path / 'a.onnx')
    ]
    assert numbers[0] == numbers[1] and float(numbers[0]) > 0.3
    found = []
    for name, arguments in (('torch', [folder / 'tiled.py', folder / 'small.pth']), ('onnx', [tmp_path / 'a.onnx'])):
        out = ['--out-dir', tmp_path / name, '--keep-thr', 0]
        tool('detect.py', *arguments, folder / 'images/image0.png', *out)
        found.append(json.loads((tmp_path / name / 'detections.json').read_text())['annotations'])
    assert len(found[0]) == len(found[1]) > 50
    assert np.allclose([one['bbox'] for one in found[0]], [one['bbox'] for one in found[1]], atol=0.1)
    # A file and a config that differ are told of.
    own, other = (read_preprocessing(load_config(folder / name)) for name in ('tiled.py', 'small.py'))
    options = TestOptions.from_cfg(load_config(folder / 'tiled.py').model.test_cfg)
    assert find_differences(detector, own, {(128, 128)}, options)[1:] == []
    assert find_differences(detector, other, {(128, 128)}, options)[1:] == [
        'its side of windows (0: none) is 192, and that of the config 0',
        'its overlap of windows is 0.25, and that of the config 0',
    ]


def test_resized_pictures_are_refused(folder):
    (folder / 'resized.py').write_text(f'{CONFIG}\npipeline.insert(1, dict(type="Resize", scale=(64, 64)))\n')
    detector = TorchDetector(folder / 'resized.py', folder / 'small.pth', 'cpu')
    with pytest.raises(OptionError, match='the pipeline has resized them: take Resize out of it'):
        detector(pictures(folder))


def test_slices_of_windows_are_refused(folder):
    pytest.importorskip('sahi')
    with pytest.raises(InputError, match=r'--slice 320: .* has windows of its own, of 192 pixels'):
        SlicedDetector(folder / 'tiled.py', folder / 'small.pth', 320, 0.3, device='cpu')


@pytest.mark.parametrize(
    ('option', 'message'), [({'tile': 8}, 'tile must be a whole number'), ({'overlap': 1}, 'overlap')]
)
def test_wrong_options(folder, option, message):
    from mmdet.registry import MODELS

    cfg = load_config(folder / 'tiled.py').model
    with pytest.raises(OptionError, match=f'TiledDetector: {message}'):
        MODELS.build({**cfg, **option})


def test_memory_is_bounded_and_limits_hold(folder, model, monkeypatch):
    seen = []
    predict = model.predict
    monkeypatch.setattr(
        model, 'predict', lambda inputs, *args: seen.append(tuple(inputs.shape)) or predict(inputs, *args)
    )
    monkeypatch.setitem(model.bbox_head.test_cfg, 'max_per_img', 7)
    cfg = load_config(folder / 'tiled.py')
    loader = Runner.build_dataloader(cfg.test_dataloader)
    for batch in loader:
        for sample in model.val_step(batch):
            assert len(sample.pred_instances.scores) == 7
            assert isinstance(sample.gt_instances.bboxes, torch.Tensor)
    assert {shape[1:] for shape in seen} == {(3, 128, 128)} and max(shape[0] for shape in seen) == 8
    assert speed_up(model).tiling == model.tiling
