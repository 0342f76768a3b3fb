"""The wheel on a machine with numpy, OpenCV and onnxruntime alone."""

import json
import subprocess
import sys

import numpy as np
import pytest
from small_model import CLASSES, build_model, export, write_config, write_images
from tool_runs import run_python

from yolov7_simple.runtime import read_image

NEEDS = ('numpy', 'opencv-python-headless', 'onnxruntime')
ABSENT = ('torch', 'mmdet', 'mmengine', 'mmcv', 'PIL', 'yaml', 'rich')
DETECT = f"""
import importlib.util
assert not [name for name in {ABSENT} if importlib.util.find_spec(name)]
from yolov7_simple.runtime import OnnxDetector, read_image
import yolov7_simple
detector = OnnxDetector('small.onnx')
print([float(score) for score in detector([read_image('images/image0.png')])[0].scores])
print(yolov7_simple.__path__[0])
try:
    yolov7_simple.ELANNet
except ImportError as error:
    print(error)
"""


def run(python, folder, *arguments, ok=True):
    """Run a Python of its own packages alone; return what it printed."""
    return run_python(python, folder, *arguments, ok=ok, environment={'PYTHONPATH': ''})


@pytest.fixture(scope='module')
def bare(wheel, tmp_path_factory):
    """A virtual environment with the wheel and what its runtime needs, and no more."""
    folder = tmp_path_factory.mktemp('bare')
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    python = folder / 'bin' / 'python'
    pip = [python, '-m', 'pip', '-q', '--disable-pip-version-check', '--no-input', 'install']
    done = subprocess.run([*pip, *NEEDS], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f'pip cannot install {", ".join(NEEDS)} here: {done.stderr.splitlines()[-1]}')
    subprocess.run([*pip, '--no-deps', wheel], check=True)
    return python


def test_an_onnx_file_needs_no_more(bare, tmp_path):
    write_images(tmp_path / 'images')
    config = write_config(tmp_path / 'small.py')
    _, detector = export(build_model(config), tmp_path / 'small.onnx', config, dynamic_size=True)
    wanted = detector([read_image(tmp_path / 'images/image0.png')])[0].scores
    assert len(wanted) > 20

    scores, package, message = run(bare, tmp_path, '-c', DETECT).splitlines()
    np.testing.assert_allclose(json.loads(scores), wanted, atol=1e-5)
    assert package.startswith(str(bare.parents[1]))
    assert message.startswith('yolov7_simple.ELANNet needs mmdet')

    detect = f'{package}/.mim/tools/detect.py'
    assert ' detections in 3 images: out/detections.json' in run(
        bare, tmp_path, detect, 'small.onnx', 'images', '--out-dir', 'out'
    )
    content = json.loads((tmp_path / 'out/detections.json').read_text())
    assert [one['name'] for one in content['categories']] == list(CLASSES)
    found = [one['score'] for one in content['annotations'] if one['image_id'] == 1]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len(list((tmp_path / 'out/pictures').iterdir())) == 3
    printed = run(bare, tmp_path, detect, 'small.py', 'small.pth', 'images', ok=False)
    assert printed.startswith('error: small.py: a config needs torch and mmdet') and 'Traceback' not in printed
