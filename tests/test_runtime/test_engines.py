import sys

import numpy as np
import pytest
from small_model import build_model, export, write_config, write_images
from tool_runs import tool

from yolov7_simple.runtime import InputError, OnnxDetector, read_image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('engines')
    write_images(folder / 'images')
    model = build_model(write_config(folder / 'small.py'))
    for name, options in (('fixed', {}), ('dynamic', {'dynamic_size': True}), ('raw', {'with_nms': False})):
        export(model, folder / f'{name}.onnx', folder / 'small.py', **options)
    return folder


@pytest.mark.parametrize('name', ['fixed', 'dynamic'])
def test_openvino_finds_what_onnx_runtime_finds(folder, name):
    pytest.importorskip('openvino')
    images = [read_image(path) for path in sorted((folder / 'images').iterdir())]
    detectors = [OnnxDetector(folder / f'{name}.onnx', 1, engine=engine) for engine in ('onnxruntime', 'openvino')]
    one, other = ({**vars(detector), 'engine': None, 'session': None} for detector in detectors)
    assert str(one) == str(other)
    for batch in (images, images[:1], images[1:2]):
        for one, other in zip(*(detector(batch) for detector in detectors), strict=True):
            assert len(one.scores) == len(other.scores) > 20 and (one.labels == other.labels).all()
            np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)
            np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-2)


def test_openvino_computes_in_float32(folder):
    pytest.importorskip('openvino')
    session = OnnxDetector(folder / 'fixed.onnx', 1, engine='openvino').session
    assert 'float32' in str(session.get_property('INFERENCE_PRECISION_HINT'))
    assert session.get_property('INFERENCE_NUM_THREADS') == 1


def test_an_engine_that_is_not_there_is_named(folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='engine tensorrt: there is none of this name, but onnxruntime, openvino'):
        OnnxDetector(folder / 'fixed.onnx', engine='tensorrt')
    with pytest.raises(InputError, match='no such ONNX file'):
        OnnxDetector(folder / 'none.onnx', engine='openvino')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(InputError, match='pip install openvino'):
        OnnxDetector(folder / 'fixed.onnx', engine='openvino')
    monkeypatch.undo()
    pytest.importorskip('openvino')
    (tmp_path / 'text.onnx').write_text('hello')
    with pytest.raises(InputError, match=r'text\.onnx: openvino cannot load it: \w'):
        OnnxDetector(tmp_path / 'text.onnx', engine='openvino')


def test_detect_has_the_engines(folder, tmp_path):
    given = ('detect.py', folder / 'fixed.onnx', folder / 'images', '--out-dir', tmp_path, '--engine')
    assert 'engine tensorrt: there is none' in tool(*given, 'tensorrt', ok=False)
    pytest.importorskip('openvino')
    assert ' detections in 3 images' in tool(*given, 'openvino')
