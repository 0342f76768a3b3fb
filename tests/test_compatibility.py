"""What an earlier version has written still works: its runs resume, its checkpoints and ONNX files detect the same.

The files in `fixtures/` are of commit 0625fcd, before the package had folders. On the set that `write_coco` draws,

    python tools/train.py before.py --work-dir work
    python tools/train.py before.py --resume work/epoch_1.pth --work-dir resumed
    python tools/export_onnx.py before.py spread.pth before.onnx --score-thr 0.6

with the config of its tests and `NARROWER` below. `before.py` and `epoch_1.pth.gz` are what the first command saved,
`second_epoch` in `expected.json` is what the second logged, `scores` are the ten best of `epoch_1.pth` in the first
image, and `onnx` is what its OnnxDetector found in three. `spread.pth` had the weights of `small_model.build_model`.
"""

import gzip
import json

import cv2
import numpy as np
import pytest
import torch
from conftest import write_coco
from tool_runs import scalars, tool, write_config

from yolov7_simple.apis.inference import load_inferencer
from yolov7_simple.runtime import OnnxDetector

NARROWER = """
model['backbone']['widen_factor'] = 0.0625
model['neck'].update(in_channels=[8, 16, 32], out_channels=8, num_stages=1)
model['bbox_head'].update(in_channels=8, stacked_convs=1)
default_hooks['memory_format'] = dict(channels_last=False)  # which would change the rounding
"""


@pytest.fixture(scope='module')
def fixtures(request):
    return request.path.parent / 'fixtures'


@pytest.fixture(scope='module')
def expected(fixtures):
    return json.loads((fixtures / 'expected.json').read_text())


@pytest.fixture(scope='module')
def folder(fixtures, tmp_path_factory):
    """A folder as a run has left it, with the config of then and one that says the same today."""
    folder = tmp_path_factory.mktemp('before')
    write_coco(folder / 'data')
    (folder / 'epoch_1.pth').write_bytes(gzip.decompress((fixtures / 'epoch_1.pth.gz').read_bytes()))
    (folder / 'before.py').write_text((fixtures / 'before.py').read_text())
    write_config(folder / 'today.py', 'data')
    with (folder / 'today.py').open('a') as file:
        file.write(NARROWER)
    return folder


@pytest.mark.parametrize('config', ['before.py', 'today.py'])
def test_a_run_resumes(config, folder, expected):
    work_dir = f'resumed_{config}'
    output = tool('train.py', config, '--resume', 'epoch_1.pth', '--work-dir', work_dir, cwd=folder)
    assert 'goes on after epoch 1, step 4' in output
    steps = [record for record in scalars(folder / work_dir) if 'loss' in record]
    assert [step['step'] for step in steps] == [5, 6, 7, 8]
    versions = {'torch': torch.__version__.split('+')[0], 'cv2': cv2.__version__, 'numpy': np.__version__}
    # Other versions of OpenCV warp images a little differently.
    rel = 1e-5 if versions == expected['versions'] else 0.05
    for step, wanted in zip(steps, expected['second_epoch'], strict=True):
        assert (step['lr'], step['img_size']) == (pytest.approx(wanted['lr'], rel=1e-12), wanted['img_size'])
        for name in ('loss', 'loss_obj', 'loss_bbox', 'loss_cls', 'loss_l1'):
            assert step[name] == pytest.approx(wanted[name], rel=rel), name


def test_a_checkpoint_loads(folder, expected):
    model = load_inferencer(folder / 'before.py', folder / 'epoch_1.pth', 'cpu')
    image = cv2.imread(str(folder / 'data/images/0.png'))
    (sample,) = model([image], return_datasamples=True)['predictions']
    assert sample.pred_instances.scores[:10].tolist() == pytest.approx(expected['scores'], rel=1e-5)
    assert 'coco/bbox_mAP' in tool('test.py', 'before.py', 'epoch_1.pth', '--work-dir', 'tested', cwd=folder)


def test_an_onnx_file_detects_the_same(fixtures, folder, expected):
    pytest.importorskip('onnxruntime')
    detector = OnnxDetector(fixtures / 'before.onnx')
    assert (detector.classes, detector.score_threshold, detector.iou_threshold) == (['box', 'disc'], 0.6, 0.7)
    images = [cv2.imread(str(folder / f'data/images/{i}.png')) for i in range(3)]
    for found, wanted in zip(detector(images), expected['onnx'], strict=True):
        assert found.labels.tolist() == wanted['labels']
        np.testing.assert_allclose(found.scores, wanted['scores'], atol=1e-4)
        np.testing.assert_allclose(found.boxes, wanted['boxes'], atol=0.01)
