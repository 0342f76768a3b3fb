import ast
import pickle
import re

import numpy as np
import pytest
from mmengine.config import Config
from small_model import CLASSES, export, write_evaluated
from tool_runs import tool

from yolov7_simple.deploy.exported import ExportedRunner, check_same_classes, find_differences
from yolov7_simple.deploy.metadata import read_preprocessing
from yolov7_simple.models.prediction import TestOptions
from yolov7_simple.runtime import InputError, OnnxDetector
from yolov7_simple.runtime.errors import UserError

LOW = 'model.test_cfg.score_thr=0.001'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, a checkpoint, the same as ONNX files, and images whose boxes the detector has found itself."""
    folder = tmp_path_factory.mktemp('exported')
    config, detector = write_evaluated(folder)
    model = detector.inferencer.model
    export(model, folder / 'cut.onnx', config)
    export(model, folder / 'raw.onnx', config, with_nms=False)
    model.bbox_head.test_cfg.score_thr = 0.001
    export(model, folder / 'small.onnx', config, dynamic_size=True)
    return folder


def evaluate(folder, model, *options, ok=True, name=None, cfg_options=(LOW,)):
    work_dir = folder / (name or model.replace('.', '_'))
    return tool('test.py', 'small.py', model, '--work-dir', work_dir, *options, '--cfg-options', *cfg_options, ok=ok,
                cwd=folder)  # fmt: skip


def metrics(output):
    return {name: float(value) for name, value in re.findall(r'^(coco/\S+): (\S+)$', output, re.MULTILINE)}


def read_boxes(path):
    with path.open('rb') as file:
        found = [one['pred_instances'] for one in pickle.load(file)]
    return [{name: values.numpy() for name, values in one.items()} for one in found]


def test_a_file_has_the_numbers_of_its_checkpoint(folder):
    """Also with the flags, options and hooks of a checkpoint, images of several shapes, and a batch of them."""
    options = (LOW, 'test_evaluator.classwise=True', 'default_hooks.fast.type=FastInferenceHook')
    printed, found = {}, {}
    for model in ('small.pth', 'small.onnx'):
        flags = ('--out', f'{model}.pkl', '--show-dir', 'shown')
        printed[model] = evaluate(folder, model, *flags, cfg_options=options)
        found[model] = read_boxes(folder / f'{model}.pkl')
    assert 'warning: small.onnx' not in printed['small.onnx']
    wanted, own = metrics(printed['small.pth']), metrics(printed['small.onnx'])
    assert wanted['coco/bbox_mAP'] > 0.2 and own == pytest.approx(wanted, abs=1e-4)
    assert '| circle' in printed['small.onnx']
    for first, second in zip(*found.values(), strict=True):
        assert len(first['scores']) > 100
        for name, tolerance in (('scores', 1e-4), ('bboxes', 1e-2), ('labels', 0)):
            np.testing.assert_allclose(np.sort(second[name], 0), np.sort(first[name], 0), atol=tolerance)
    assert len(list(folder.glob('small_onnx/*/shown/**/*.png'))) == 3
    assert not list(folder.glob('small_onnx/*.py'))  # it would describe no checkpoint
    batch = evaluate(folder, 'small.onnx', cfg_options=(LOW, 'test_dataloader.batch_size=3'), name='batch')
    assert metrics(batch)['coco/bbox_mAP'] > 0.2


def test_openvino_has_the_same_numbers(folder):
    pytest.importorskip('openvino')
    wanted, own = (
        metrics(evaluate(folder, 'small.onnx', '--engine', engine, name=engine))
        for engine in ('onnxruntime', 'openvino')
    )
    assert wanted['coco/bbox_mAP'] > 0.2 and own == pytest.approx(wanted, abs=2e-3)


def test_what_makes_a_file_differ_is_said(folder):
    printed = evaluate(folder, 'cut.onnx')
    assert 'cut.onnx: its NMS drops what scores below 0.6, which cuts mAP' in printed
    assert 'its score threshold is 0.6, and that of the config 0.001' in printed
    assert 'own height and width, 96 x 128; a checkpoint would be at 96 x 128, 128 x 96, 128 x 128' in printed
    assert metrics(printed)['coco/bbox_mAP'] > 0.2


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        ('none.onnx', (LOW,), 'none.onnx: no such ONNX file'),
        ('raw.onnx', (LOW,), 'raw.onnx was exported with --raw'),
        (
            'small.onnx',
            ("test_dataloader.dataset.metainfo.classes=('circle','square')",),
            'small.onnx has 3 classes (circle, square, star), and the test dataset 2 (circle, square)',
        ),
        ('small.pth --engine openvino', (LOW,), '--engine is for an exported file, MODEL.onnx'),
        ('small.onnx --engine other', (LOW,), 'engine other: there is none of this name'),
        ('small.onnx --tta', (LOW,), '--tta is for checkpoints'),
    ],
)
def test_mistakes(folder, tmp_path, model, options, message):
    printed = evaluate(folder, *model.split(), ok=False, cfg_options=options, name=tmp_path)
    assert message in printed and 'Traceback' not in printed


def test_classes_must_be_the_same_in_the_same_order():
    check_same_classes('a.onnx', list(CLASSES), CLASSES)
    with pytest.raises(InputError, match=r"a\.onnx calls class 1 'square', and the test dataset 'star'"):
        check_same_classes('a.onnx', list(CLASSES), ('circle', 'star', 'square'))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('test_dataloader.dataset.pipeline.1.scale=(64,96)', r'is \(128, 128\), and that of the config \(96, 64\)'),
        ('model.data_preprocessor.std=[1.0,1.0,1.0]', r'its std is \[255.0, 255.0, 255.0\], and'),
        ('model.data_preprocessor.bgr_to_rgb=True', 'its swap to RGB is False, and that of the config True'),
        ('model.test_cfg.max_per_img=7', 'its limit of detections of an image is 0, and that of the config 7'),
        ('model.test_cfg.nms.iou_threshold=0.7', 'its IoU threshold is 0.5, and that of the config 0.7'),
    ],
)  # fmt: skip
def test_each_difference_is_said(folder, option, message):
    cfg = Config.fromfile(folder / 'small.py')
    key, value = option.split('=')
    cfg.merge_from_dict({key: ast.literal_eval(value), 'model.test_cfg.score_thr': 0.001})
    found = find_differences(
        OnnxDetector(folder / 'small.onnx', 1), read_preprocessing(cfg), set(), TestOptions.from_cfg(cfg.model.test_cfg)
    )
    assert len(found) == 1 and re.search(message, found[0])


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'launcher': 'pytorch'}, '--launcher is for checkpoints'),
        ({'test_dataloader.dataset': {'_delete_': True, 'type': 'ConcatDataset', 'datasets': []}}, 'has no pipeline'),
        ({'test_dataloader.dataset.pipeline.1.type': 'Pad'}, 'Pad is not known to the export'),
    ],
)
def test_what_no_file_can_do_is_refused(folder, option, message):
    cfg = Config.fromfile(folder / 'small.py')
    cfg.merge_from_dict({'load_from': 'small.onnx', **option})
    with pytest.raises(UserError, match=message):
        ExportedRunner.from_cfg(cfg)
