import copy
import json
import sys

import cv2
import export_onnx as tool
import numpy as np
import onnx
import pytest
import torch
from small_model import CLASSES, build_model, export, write_config, write_images, write_model

from yolov7_simple.apis.inference import load_config, load_inferencer
from yolov7_simple.deploy import check
from yolov7_simple.deploy.check import IOU_FACTOR, LEAST_TOLERANCE, Tolerance, check_export, compare, measure_tolerance
from yolov7_simple.deploy.export import DeployGraph, ExportError
from yolov7_simple.deploy.metadata import default_size, padded_size, read_preprocessing
from yolov7_simple.ops.nms import pairwise_overlaps
from yolov7_simple.runtime import read_image
from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.onnx_detector import OnnxDetector
from yolov7_simple.utils.checkpoint import CheckpointError


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.py, small.pth and images/."""
    folder = tmp_path_factory.mktemp('export')
    write_images(folder / 'images')
    write_model(folder)
    return folder


@pytest.fixture(scope='module')
def model(files):
    return load_inferencer(files / 'small.py', files / 'small.pth', 'cpu').model


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, args)])
    tool.main()


@pytest.fixture(scope='module')
def noise():
    return torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


def test_the_graph_gives_the_models_own_detections(model, noise):
    with torch.no_grad():
        dets, labels = DeployGraph(model)(noise)
        wanted = model.bbox_head.predict_by_feat(*model(noise, mode='tensor'), [{}, {}])
    assert dets.shape == (2, labels.shape[1], 5)
    for i, result in enumerate(wanted):
        count = len(result.bboxes)
        assert 20 < count < labels.shape[1]
        assert (labels[i, :count] == result.labels).all() and (labels[i, count:] == -1).all()
        torch.testing.assert_close(dets[i, :count, :4], result.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(dets[i, :count, 4], result.scores, rtol=1e-4, atol=1e-5)
        assert (dets[i, count:] == 0).all()


@pytest.mark.parametrize('cfg', [{}, {'max_per_img': 7}, {'nms': {'iou_threshold': 0.5, 'class_agnostic': True}}])
def test_torch_export_takes_the_graph(files, noise, tmp_path, cfg):
    """With NMS as one op, which the program looks up by its name."""
    model = build_model(files / 'small.py')
    model.bbox_head.test_cfg = {'score_thr': 0.6, 'nms': {'iou_threshold': 0.5}, **cfg}
    graph = DeployGraph(model)
    program = torch.export.export(graph, (torch.zeros_like(noise),))
    torch.export.save(program, tmp_path / 'small.pt2')
    dets, labels = torch.export.load(tmp_path / 'small.pt2').module()(noise)
    expected = graph(noise)
    torch.testing.assert_close((dets, labels), expected)
    assert (labels >= 0).sum() > 5 and ((labels < 0).any() or cfg.get('max_per_img'))


def test_batch_norms_are_folded_in_a_copy(model):
    graph = DeployGraph(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in graph.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(('opset', 'dynamic'), [(11, False), (17, True), (20, False)])
def test_the_file_is_standard_and_does_what_the_model_does(files, model, noise, tmp_path, opset, dynamic):
    graph, detector = export(
        model, tmp_path / 'a.onnx', files / 'small.py', dynamic_size=dynamic, opset=opset, size=(96, 128)
    )
    nodes = onnx.load(tmp_path / 'a.onnx').graph.node
    assert {node.domain for node in nodes} == {''}
    assert 'NonMaxSuppression' in {node.op_type for node in nodes}
    assert 'BatchNormalization' not in {node.op_type for node in nodes}
    batches = [noise[:1], noise] + [torch.rand(3, 3, 160, 64)] * dynamic
    assert all(difference.count > 20 for difference in check_export(graph, detector, batches))


def test_output_names_and_shapes(files, model, tmp_path):
    graph, detector = export(model, tmp_path / 'a.onnx', files / 'small.py')
    (images,) = detector.session.get_inputs()
    dets, labels = detector.session.get_outputs()
    assert (images.name, images.shape) == ('images', ['batch', 3, 96, 128])
    assert (dets.name, dets.shape[0], dets.shape[2]) == ('dets', 'batch', 5)
    assert (labels.name, labels.shape) == ('labels', dets.shape[:2])
    cells = [12 * 16, 6 * 8, 3 * 4]
    assert labels.shape[1] == sum(cells)  # test_cfg.nms_pre is more than each level has


def test_raw_leaves_nms_out(files, model, noise, tmp_path):
    graph, detector = export(model, tmp_path / 'a.onnx', files / 'small.py', with_nms=False)
    assert 'NonMaxSuppression' not in {node.op_type for node in onnx.load(tmp_path / 'a.onnx').graph.node}
    boxes, scores = detector.session.run(['boxes', 'scores'], {'images': noise.numpy()})
    assert boxes.shape == (2, 252, 4) and scores.shape == (2, 252, 3)
    assert check_export(graph, detector, [noise])[0].count == 2 * 252
    with pytest.raises(InputError, match='--raw'):
        detector([np.zeros((96, 128, 3), np.uint8)])


def test_class_agnostic_and_max_per_img(files, noise, tmp_path):
    model = build_model(files / 'small.py')
    model.bbox_head.test_cfg.update(nms={'type': 'nms', 'iou_threshold': 0.5, 'class_agnostic': True}, max_per_img=7)
    graph, detector = export(model, tmp_path / 'a.onnx', files / 'small.py')
    check_export(graph, detector, [noise])
    dets, labels = detector.session.run(None, {'images': noise.numpy()})
    assert labels.shape == (2, 7)
    wanted = model.bbox_head.predict_by_feat(*model(noise, mode='tensor'), [{}, {}])
    np.testing.assert_allclose(dets[0, :, 4], wanted[0].scores.detach(), atol=1e-5)


def test_a_file_of_fixed_size_has_its_priors_as_constants(files, model, noise, tmp_path):
    graph, detector = export(model, tmp_path / 'a.onnx', files / 'small.py', with_nms=False)
    kinds = {node.op_type for node in onnx.load(tmp_path / 'a.onnx').graph.node}
    assert not kinds & {'Range', 'Expand', 'Cast'}
    network = cv2.dnn.readNetFromONNX(str(tmp_path / 'a.onnx'))
    for batch in (noise[:1].numpy(), noise[1:].numpy()):
        network.setInput(batch)
        found = dict(zip(('boxes', 'scores'), network.forward(['boxes', 'scores'])))
        wanted = detector.session.run(None, {'images': batch})
        np.testing.assert_allclose(found['boxes'], wanted[0], atol=1e-2)
        np.testing.assert_allclose(found['scores'], wanted[1], atol=1e-4)
    with torch.no_grad():  # and the graph takes any size as before
        assert graph(torch.rand(1, 3, 64, 64))[0].shape[1] == 64 + 16 + 4


def test_metadata_tells_how_to_use_the_file(files, model, tmp_path):
    _, detector = export(model, tmp_path / 'a.onnx', files / 'small.py')
    properties = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / 'a.onnx').metadata_props}
    assert properties['classes'] == list(CLASSES) == detector.classes
    assert properties['resize'] == {'long': 128, 'short': 128, 'interpolation': 'bilinear'}
    assert properties['std'] == [255.0] * 3 and properties['channel_order'] == 'BGR'
    assert properties['pad_value'] == pytest.approx(114 / 255) and properties['pad_size_divisor'] == 32
    assert (properties['score_threshold'], properties['iou_threshold']) == (0.6, 0.5)


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        (lambda dets, labels: dets[..., :4].add_(1.0), 'boxes differ'),
        (lambda dets, labels: dets[..., 4].mul_(0.99), 'scores differ'),
        (lambda dets, labels: labels.copy_((labels + 1) % 3), 'differ'),
        (lambda dets, labels: labels[:, 3].fill_(-1), '1 detections are missing'),
        (lambda dets, labels: (dets[:, 5].copy_(dets[:, 2]), labels[:, 5].copy_(labels[:, 2])), 'suppressed'),
        (lambda dets, labels: labels.fill_(-1), 'finds nothing'),
    ],
)
def test_the_check_finds_what_is_not_rounding(model, noise, change, fault):
    graph = DeployGraph(model)
    with torch.no_grad():
        outputs = graph(noise[:1])
    assert not compare(graph, noise[:1], outputs).faults
    change(*outputs)
    assert any(fault in text for text in compare(graph, noise[:1], outputs).faults)


def large_weights(model):
    """A copy whose logits reach hundreds."""
    model = copy.deepcopy(model)
    head = model.bbox_head
    with torch.no_grad():
        for pred in (*head.cls_preds, *head.obj_preds):
            pred.weight.mul_(300)
    return model


def wrong_stride(graph):
    graph.head.prior_generator.strides[1] = (15, 15)


def no_activation(graph):
    convs = [module for module in graph.backbone.modules() if hasattr(module, 'with_activation')]
    convs[2].with_activation = False


def swapped_channels(graph):
    weight = graph.backbone.stem[0].conv.weight
    weight.data = weight.data.flip(1)


def swapped_numbers(graph):
    pred = graph.head.reg_preds[0]
    pred.weight.data, pred.bias.data = pred.weight.data[[1, 0, 2, 3]], pred.bias.data[[1, 0, 2, 3]]


@pytest.mark.parametrize('with_nms', [True, False])
@pytest.mark.parametrize('scale', ['trained', 'large'])
@pytest.mark.parametrize('fault', [wrong_stride, no_activation, swapped_channels, swapped_numbers])
def test_a_real_fault_is_more_than_rounding(model, noise, fault, scale, with_nms):
    graph = DeployGraph(model if scale == 'trained' else large_weights(model), with_nms)
    broken = copy.deepcopy(graph)
    fault(broken)
    with torch.no_grad():
        good, bad = graph(noise), broken(noise)
    assert not compare(graph, noise, good).faults
    assert compare(graph, noise, bad).faults


def test_rounding_is_measured(model, noise, monkeypatch):
    graph = DeployGraph(model)
    assert measure_tolerance(graph, noise) == (LEAST_TOLERANCE, LEAST_TOLERANCE, IOU_FACTOR * LEAST_TOLERANCE)
    monkeypatch.setattr(check, 'LEAST_TOLERANCE', 0.0)
    one = measure_tolerance(graph, noise)
    assert 0 < one.score < 1e-4 and 0 < one.box < 1e-3
    monkeypatch.setattr(check, 'ROUNDING_FACTOR', 2 * check.ROUNDING_FACTOR)
    assert measure_tolerance(graph, noise) == pytest.approx([2 * value for value in one])
    with torch.no_grad():
        graph.head.cls_preds[0].bias[0] = float('nan')
    with pytest.raises(ExportError, match='not finite'):
        measure_tolerance(graph, noise)


def test_a_file_may_differ_as_much_as_rounding(model, noise, monkeypatch):
    graph = DeployGraph(model, with_nms=False)
    with torch.no_grad():
        boxes, scores = graph(noise)
    scores[1, 7, 0] += 0.01
    assert compare(graph, noise, (boxes, scores)).faults
    monkeypatch.setattr(check, 'measure_tolerance', lambda *args: Tolerance(0.011, 0.001, 0.005))
    assert not compare(graph, noise, (boxes, scores)).faults


def test_scores_that_are_nearly_equal_are_no_fault(model, files, tmp_path, noise):
    model = copy.deepcopy(model)  # as after a few steps of training
    head = model.bbox_head
    for pred in (*head.cls_preds, *head.obj_preds):
        pred.weight.data.mul_(1e-6)
        pred.bias.data.fill_(0.0)
    head.test_cfg.update(score_thr=0.001, nms_pre=40)
    graph, detector = export(model, tmp_path / 'flat.onnx', files / 'small.py', size=noise.shape[2:])
    assert check_export(graph, detector, [noise])[0].count > 40


def test_raw_check_finds_a_difference(model, noise):
    graph = DeployGraph(model, with_nms=False)
    with torch.no_grad():
        boxes, scores = graph(noise)
    assert not compare(graph, noise, (boxes, scores)).faults
    scores[1, 7, 0] += 0.01
    assert compare(graph, noise, (boxes, scores)).faults


def test_default_size_is_that_of_the_test_images_if_they_agree(tmp_path):
    config = load_config(write_config(tmp_path / 'c.py', f'{tmp_path}/'))
    preprocessing = read_preprocessing(config)
    assert padded_size((480, 640), preprocessing) == (96, 128)
    assert default_size(config, preprocessing) == (128, 128)  # no annotation file
    for sizes, wanted in (([(480, 640), (240, 320)], (96, 128)), ([(480, 640), (640, 480)], (128, 128))):
        images = [{'height': height, 'width': width} for height, width in sizes]
        (tmp_path / 'annotations.json').write_text(json.dumps({'images': images}))
        assert default_size(config, preprocessing) == wanted


def test_tool_exports_and_says_how_far_off_it_is(files, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out.onnx'
    run_tool(monkeypatch, files / 'small.py', files / 'small.pth', out, '--images', files / 'images', '--size', 64, 96)
    printed = capsys.readouterr().out
    assert 'batch of 1' in printed and 'batch of 2' in printed and 'differs from PyTorch' in printed
    assert OnnxDetector(out).input_size == (64, 96)
    assert [path.name for path in tmp_path.iterdir()] == ['out.onnx']
    with pytest.raises(InputError, match='exists already'):
        run_tool(monkeypatch, files / 'small.py', files / 'small.pth', out)


def test_one_object_one_box_and_a_check_that_proved_little(files, tmp_path, monkeypatch, capsys):
    given = [files / 'small.py', files / 'small.pth']
    images = ['--images', files / 'images', '--size', 64, 96]
    run_tool(monkeypatch, *given, tmp_path / 'a.onnx', *images, '--agnostic-nms')
    assert 'proved little' not in capsys.readouterr().out
    run_tool(monkeypatch, *given, tmp_path / 'b.onnx', *images)
    pictures = [read_image(path) for path in sorted((files / 'images').iterdir())]
    same, other = (OnnxDetector(tmp_path / name, agnostic_nms=True) for name in ('a.onnx', 'b.onnx'))
    by_class = OnnxDetector(tmp_path / 'b.onnx')
    assert OnnxDetector(tmp_path / 'a.onnx').agnostic_nms and not by_class.agnostic_nms

    def doubles(found):
        boxes = torch.from_numpy(found.boxes)
        return int(pairwise_overlaps(boxes, boxes, 0.51, 0).triu(1).sum())

    assert sum(map(doubles, by_class(pictures))) > 5
    assert not any(map(doubles, same(pictures) + other(pictures)))
    run_tool(monkeypatch, *given, tmp_path / 'c.onnx', *images, '--score-thr', 1)
    assert 'proved little: no box has a score above 1' in capsys.readouterr().out


def test_an_export_that_differs_is_not_kept(files, tmp_path, monkeypatch):
    original = tool.export_onnx

    def export_another(graph, *args):
        with torch.no_grad():
            graph.head.cls_preds[0].bias += 0.1
        original(graph, *args)
        with torch.no_grad():
            graph.head.cls_preds[0].bias -= 0.1

    monkeypatch.setattr(tool, 'export_onnx', export_another)
    with pytest.raises(ExportError, match='differs from PyTorch'):
        run_tool(
            monkeypatch, files / 'small.py', files / 'small.pth', tmp_path / 'o.onnx', '--images', files / 'images'
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (['{}/none.py', '{}/small.pth', 'o.onnx'], CheckpointError, 'none.py: no such config'),
        (['{}/small.py', '{}/none.pth', 'o.onnx'], CheckpointError, 'none.pth: there is no such checkpoint'),
        (['{}/small.py', '{}/small.py', 'o.onnx'], CheckpointError, 'not a checkpoint that can be read safely'),
        (['{}/small.py', '{}/other.pth', 'o.onnx'], CheckpointError, 'is not of the model in'),
        (['{}/classes.py', '{}/small.pth', 'o.onnx'], CheckpointError, 'trained on 3 classes.*num_classes=5'),
        (['{}/small.py', '{}/small.pth', 'o.onnx', '--opset', '9'], ExportError, '--opset 9: must be 11 to 20'),
        (['{}/small.py', '{}/small.pth', 'o.onnx', '--size', '100', '96'], InputError, 'multiples of 32'),
        (
            ['{}/small.py', '{}/small.pth', 'o.onnx', '--score-thr', 'nan'],
            InputError,
            '--score-thr nan: must be',
        ),
        (['{}/small.py', '{}/small.pth', 'o.onnx', '--iou-thr', '2'], InputError, '--iou-thr 2.0: must be from 0 to 1'),
        (['{}/small.py', '{}/small.pth', 'o.txt'], InputError, 'must end with .onnx'),
        (['{}/small.py', '{}/small.pth', 'none/o.onnx'], InputError, 'there is no folder'),
        (['{}/small.py', '{}/small.pth', 'o.onnx', '--images', '{}/none'], InputError, 'cannot be read'),
    ],
)
def test_mistakes_get_one_clear_message(files, tmp_path, monkeypatch, arguments, error, message):
    write_config(files / 'classes.py', num_classes=5)
    torch.save({'weight': torch.zeros(3)}, files / 'other.pth')
    arguments = [argument.format(files) for argument in arguments]
    arguments[2] = str(tmp_path / arguments[2])
    with pytest.raises(error, match=message):
        run_tool(monkeypatch, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_pipeline_that_metadata_cannot_tell_is_refused(tmp_path):
    cfg = load_config(write_config(tmp_path / 'c.py'))
    cfg.test_dataloader.dataset.pipeline.insert(2, {'type': 'RandomCrop'})
    with pytest.raises(ExportError, match='RandomCrop'):
        read_preprocessing(cfg)
