import re
import sys

import export_onnx as tool
import numpy as np
import onnx
import pytest
from small_model import export, write_evaluated

from yolov7_simple.deploy import precision
from yolov7_simple.deploy.export import ExportError
from yolov7_simple.deploy.precision import Comparison, float_nodes, spread, write_float16, write_int8
from yolov7_simple.runtime import InputError, OnnxDetector, cpu, read_image

SPLITS = """
val_dataloader = test_dataloader
train_dataloader = dict(dataset=dict(dataset=test_dataloader['dataset']))
val_evaluator = test_evaluator
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config whose splits are three images with boxes, a checkpoint, and the same as files of float32."""
    folder = tmp_path_factory.mktemp('precision')
    config, detector = write_evaluated(folder)
    for name, options in (('fixed', {}), ('dynamic', {'dynamic_size': True}), ('old', {'opset': 13})):
        export(detector.inferencer.model, folder / f'{name}.onnx', config, **options)
    config.write_text(config.read_text() + SPLITS)
    return folder


def run_tool(monkeypatch, folder, out, *args):
    given = [folder / 'small.py', folder / 'small.pth', out, '--images', folder / 'images', *args]
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, given)])
    tool.main()


def find(path, images):
    return OnnxDetector(path, 1)(images)


@pytest.mark.parametrize('name', ['fixed', 'dynamic', 'old'])
@pytest.mark.parametrize('word', ['int8', 'float16'])
def test_the_network_is_of_lower_precision_and_what_follows_is_not(folder, tmp_path, name, word):
    source, target = folder / f'{name}.onnx', tmp_path / 'out.onnx'
    paths = sorted((folder / 'images').glob('*.png'))
    if word == 'int8':
        write_int8(source, target, paths)
    else:
        write_float16(source, target)
    file = onnx.load(target)
    by_output = {output: node for node in file.graph.node for output in node.output}
    weights = {value.name: value.data_type for value in file.graph.initializer}
    low = 0
    for node in file.graph.node:
        if node.op_type == 'Conv' and word == 'int8':
            low += by_output.get(node.input[1], node).op_type == 'DequantizeLinear'
        elif node.op_type == 'Conv':
            low += weights[node.input[1]] == onnx.TensorProto.FLOAT16
        elif node.op_type in ('NonMaxSuppression', 'Exp', 'TopK'):
            makers = {by_output[value].op_type for value in node.input if value in by_output}
            assert not makers & {'DequantizeLinear', 'QuantizeLinear'}
    convolutions = [node for node in file.graph.node if node.op_type == 'Conv']
    assert low == len(convolutions) - 9  # but the predictions: three on each of three levels
    assert target.stat().st_size < 0.8 * source.stat().st_size
    if word == 'int8' and name == 'fixed':
        scales = {value.name: value.dims for value in file.graph.initializer}
        assert any(len(dims) == 1 and dims[0] > 1 for key, dims in scales.items() if key.endswith('_scale'))
    images = [read_image(path) for path in paths]
    for one, other in zip(find(source, images), find(target, images)):
        count = min(len(one.scores), len(other.scores))
        assert count > 20 and abs(len(one.scores) - len(other.scores)) < 0.2 * count
        np.testing.assert_allclose(other.scores[:10], one.scores[:10], atol=0.06 if word == 'int8' else 0.005)


def test_files_are_measured(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, 'MAX_MAP_LOSS', 1)
    monkeypatch.setattr(precision, 'PAUSE', 0)
    for word, options in (('int8', ['--int8']), ('float16', ['--fp16'])):
        run_tool(monkeypatch, folder, tmp_path / f'{word}.onnx', *options)
        printed = capsys.readouterr().out
        before, after = map(float, re.search(rf'mAP: float32 (\S+), {word} (\S+)\n', printed).groups())
        assert before > 0.2 and abs(before - after) < (0.2 if word == 'int8' else 0.02)
        assert re.search(r'[\d.]+ ms an image in float32, [\d.]+ ms in ' + word, printed)
        assert ('on 3 images' in printed) and ('calibrating' in printed) == (word == 'int8')
        assert OnnxDetector(tmp_path / f'{word}.onnx').has_nms
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_loses_too_much_does_not_get_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'compare_precisions', lambda *args: Comparison(0.5, 0.494, 0.02, 0.01))
    with pytest.raises(ExportError, match=r'out\.onnx is not written: mAP falls from 0\.500 to 0\.494.*refused'):
        run_tool(monkeypatch, folder, tmp_path / 'out.onnx', '--int8', folder / 'images')
    assert [path.name for path in tmp_path.iterdir()] == ['out.refused.onnx']
    assert OnnxDetector(tmp_path / 'out.refused.onnx').has_nms


@pytest.mark.parametrize(
    ('before', 'after', 'fault'),
    [(0.5, 0.4951, None), (0.5, 0.52, None), (0.5, 0.49, 'falls'), (0.5, float('nan'), 'falls'), (0.0, 0.0, 'nothing'),
     (-1.0, -1.0, 'nothing'), (float('nan'), 0.5, 'nothing')],
)  # fmt: skip
def test_what_is_too_much(before, after, fault):
    found = Comparison(before, after, 1, 1).fault()
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [((0.02, 0.01), ': 2.00 times as fast'), ((0.01, 0.01), ': int8 is not faster on this machine')],
)
def test_a_file_that_is_not_faster_is_said_to_be(seconds, words):
    assert words in Comparison(0.5, 0.5, *seconds).speed('int8')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--int8', '--raw'], '--raw: --int8 and --fp16 measure mAP'),
        (['--fp16', '--raw'], '--raw: --int8 and --fp16 measure mAP'),
        (['--int8', '--opset', '12'], '--opset 12: --int8 needs 13 or later'),
        (['--int8', 'none'], 'none: cannot be read|none'),
    ],
)
def test_mistakes(folder, tmp_path, monkeypatch, options, message):
    with pytest.raises(InputError, match=message):
        run_tool(monkeypatch, folder, tmp_path / 'out.onnx', *options)
    assert not list(tmp_path.iterdir())


def test_images_are_spread():
    assert spread(list(range(1000)), 3) == [0, 500, 999] and spread([1, 2], 5) == [1, 2] and spread([]) == []


def test_nothing_after_the_last_convolutions_is_lowered(folder):
    kinds = {node.name: node.op_type for node in onnx.load(folder / 'fixed.onnx').graph.node}
    left = [kinds[name] for name in float_nodes(folder / 'fixed.onnx')]
    assert left.count('Conv') == 9 and left.count('NonMaxSuppression') == left.count('Exp') == 1
    assert 'MaxPool' not in left


@pytest.mark.parametrize(
    ('machine', 'flags', 'wanted'),
    [('x86_64', 'avx2 avx512f', False), ('x86_64', 'avx2 avx_vnni', True), ('x86_64', 'avx512_vnni', True),
     ('aarch64', '', True), ('AMD64', None, False)],
)  # fmt: skip
def test_vnni(tmp_path, monkeypatch, machine, flags, wanted):
    monkeypatch.setattr(cpu.platform, 'machine', lambda: machine)
    monkeypatch.setattr(cpu, 'CPUINFO', tmp_path / 'cpuinfo')
    if flags is not None:
        (tmp_path / 'cpuinfo').write_text(f'flags\t\t: {flags}\n')
    assert cpu.has_vnni() == wanted
