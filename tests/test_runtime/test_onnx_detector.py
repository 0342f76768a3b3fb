import sys

import numpy as np
import onnx
import pytest
from conftest import SHARED
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_model import CLASSES, export, write_images, write_model

from yolov7_simple.apis.detect import TorchDetector
from yolov7_simple.apis.inference import load_inferencer
from yolov7_simple.runtime import InputError, OnnxDetector, read_image


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.py, small.pth and images/."""
    folder = tmp_path_factory.mktemp('onnx')
    write_images(folder / 'images')
    write_model(folder)
    return folder


@pytest.fixture(scope='module')
def model(files):
    return load_inferencer(files / 'small.py', files / 'small.pth', 'cpu').model


def test_detector_prepares_images_as_mmdet_does(files, tmp_path):
    inferencer = load_inferencer(files / 'small.py', files / 'small.pth', 'cpu')
    _, detector = export(inferencer.model, tmp_path / 'a.onnx', files / 'small.py', dynamic_size=True)
    for path in sorted((files / 'images').iterdir()):
        sample = inferencer.pipeline(str(path))
        batch = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        wanted = inferencer.model.data_preprocessor(batch)['inputs']
        given, factors = detector.preprocess([read_image(path)])
        np.testing.assert_allclose(given, wanted, atol=1e-6)
        assert factors[0].tolist() == pytest.approx(sample['data_samples'].scale_factor)


def test_detector_gives_mmdets_detections_in_pixels_of_the_image(files, tmp_path):
    inferencer = load_inferencer(files / 'small.py', files / 'small.pth', 'cpu')
    _, detector = export(inferencer.model, tmp_path / 'a.onnx', files / 'small.py', dynamic_size=True)
    for path in sorted((files / 'images').iterdir()):
        wanted = inferencer(str(path), return_datasamples=True)['predictions'][0].pred_instances.numpy()
        boxes, scores, labels = detector([read_image(path)])[0]
        assert len(scores) == len(wanted.scores) > 20
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(boxes, wanted.bboxes, atol=1e-2)
        assert (labels == wanted.labels).all()


def test_a_file_that_is_not_ours_is_named(tmp_path, monkeypatch):
    node = onnx.helper.make_node('Identity', ['images'], ['dets'])
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 32, 32]) for name in ('images', 'dets')]
    graph = onnx.helper.make_graph([node], 'other', value[:1], value[1:])
    opset = [onnx.helper.make_opsetid('', 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / 'other.onnx')
    with pytest.raises(InputError, match=r'not written by tools/export_onnx\.py'):
        OnnxDetector(tmp_path / 'other.onnx')
    (tmp_path / 'text.onnx').write_text('hello')
    with pytest.raises(InputError, match='cannot load'):
        OnnxDetector(tmp_path / 'text.onnx')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InputError, match='pip install onnxruntime'):
        OnnxDetector(tmp_path / 'other.onnx')


def test_metadata_of_other_tools_are_left_alone_and_later_versions_refused(model, files, tmp_path):
    export(model, tmp_path / 'a.onnx', files / 'small.py')
    file = onnx.load(tmp_path / 'a.onnx')
    own = {entry.key: entry.value for entry in file.metadata_props}
    for extra, message in (({'onnx.infer': 'onnxruntime.quant', 'x': '{'}, None), ({'version': '3'}, 'update')):
        onnx.helper.set_model_props(file, {**own, **extra})
        onnx.save(file, tmp_path / 'b.onnx')
        if message is None:
            assert OnnxDetector(tmp_path / 'b.onnx').classes == list(CLASSES)
        else:
            with pytest.raises(InputError, match=rf'b\.onnx: its metadata are of version 3.*{message}'):
                OnnxDetector(tmp_path / 'b.onnx')


@pytest.fixture(scope='module')
def detectors(model, files, tmp_path_factory):
    path = tmp_path_factory.mktemp('detectors') / 'a.onnx'
    return export(model, path, files / 'small.py')[1], TorchDetector(files / 'small.py', files / 'small.pth', 'cpu')


IMAGE = np.zeros((96, 128, 3), np.uint8)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (IMAGE, r'one array \(96, 128, 3\): put it into a list'),
        (IMAGE[..., 0], r'one array \(96, 128\)'),
        ('photo.jpg', 'this is str'),
        (None, 'this is NoneType'),
        (['photo.jpg'], 'image 0 is str'),
        ([IMAGE, IMAGE[..., 0]], r'image 1 is grey.*GRAY2BGR'),
        ([IMAGE[..., :1]], 'image 0 is grey'),
        ([IMAGE.astype(np.float32)], 'image 0 has float32'),
        ([np.zeros((96, 128, 4), np.uint8)], r'image 0 has \(96, 128, 4\).*BGRA'),
        ([np.zeros((0, 128, 3), np.uint8)], 'image 0: 128 x 0 pixels'),
        ([np.zeros((1, 4000, 3), np.uint8)], 'image 0: 4000 x 1 pixels'),
        ([np.zeros((8, 4000, 3), np.uint8)], 'may be at most 100 times'),
    ],
)
def test_what_is_no_list_of_images_is_refused(detectors, images, message):
    for detector in detectors:
        with pytest.raises(InputError, match=message):
            detector(images)


def test_lists_and_arrays_of_images(detectors):
    for detector in detectors:
        assert detector([]) == []
        assert len(detector(np.stack([IMAGE] * 2))) == 2
        assert len(detector((np.zeros((5, 500, 3), np.uint8),))) == 1


def test_the_two_kinds_of_inference_score_the_same_on_bccd(files, model, tmp_path):
    """COCO's metric gives the same on mmdet's and on ONNX Runtime's detections of real images."""
    data = SHARED / 'data/bccd'
    if not data.is_dir():
        pytest.skip(f'needs {data}')
    truth = COCO(str(data / 'annotations/test.json'))
    images = list(truth.imgs.values())[:12]
    inferencer = load_inferencer(files / 'small.py', files / 'small.pth', 'cpu')
    _, detector = export(model, tmp_path / 'a.onnx', files / 'small.py')
    # Random weights find no real object, so mmdet's own best detections serve as the truth for both.
    scores = []
    annotations: list = []
    for source in ('truth', 'torch', 'onnx'):
        rows = []
        for image in images:
            path = data / 'images' / image['file_name']
            if source == 'onnx':
                boxes, values, labels = detector([read_image(path)])[0]
            else:
                found = inferencer(str(path), return_datasamples=True)['predictions'][0].pred_instances.numpy()
                boxes, values, labels = found.bboxes, found.scores, found.labels
            for i, (box, value, label) in enumerate(zip(boxes.tolist(), values.tolist(), labels.tolist())):
                size = [box[2] - box[0], box[3] - box[1]]
                if source == 'truth' and i % 7:
                    continue
                row = {'image_id': image['id'], 'category_id': label + 1, 'bbox': [*box[:2], *size], 'score': value}
                rows.append({**row, 'id': len(rows) + 1, 'area': size[0] * size[1], 'iscrowd': 0})
        if source == 'truth':
            annotations = rows
            continue
        target = COCO()
        target.dataset = {
            'images': images,
            'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(CLASSES)],
            'annotations': annotations,
        }
        target.createIndex()
        evaluation = COCOeval(target, target.loadRes(rows), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        scores.append(evaluation.stats[0])
    assert 0.05 < scores[0] < 0.95
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
