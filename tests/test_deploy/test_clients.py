"""Programs of others find in an exported file what PyTorch finds."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clients import CLIENTS, Missing, compare, split
from small_model import build_model, export, write_config, write_images

from yolov7_simple.runtime import read_image


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """Two files, one of each kind, batches of one image, and what PyTorch finds in them."""
    folder = tmp_path_factory.mktemp('clients')
    paths = write_images(folder / 'images')
    model = build_model(write_config(folder / 'small.py'))
    graph, detector = export(model, folder / 'fixed.onnx', folder / 'small.py')
    export(model, folder / 'dynamic.onnx', folder / 'small.py', dynamic_size=True)
    batches = [detector.preprocess([read_image(path)])[0] for path in paths]
    with torch.no_grad():
        wanted = [[values[0].numpy() for values in graph(torch.from_numpy(batch))] for batch in batches]
    return folder, batches, wanted


@pytest.mark.parametrize('size', ['fixed', 'dynamic'])
@pytest.mark.parametrize(
    'name',
    CLIENTS,
)
def test_a_client_finds_what_pytorch_finds(case, tmp_path, name, size):
    folder, batches, wanted = case
    try:
        _, run = CLIENTS[name](folder / f'{size}.onnx', tmp_path)
    except Missing as error:
        pytest.skip(str(error))
    for batch, own in zip(batches, wanted, strict=True):
        dets, labels = run(batch)
        own, found = split(*own), split(dets[0], np.asarray(labels[0]))
        assert len(own[1]) > 20
        assert abs(len(found[1]) - len(own[1])) <= 1
        missing, largest = compare(own, found)
        assert missing == 0 and largest < 1e-3


OPENCV4 = """
import sys, cv2, numpy as np
model, folder = sys.argv[1:]
network = cv2.dnn.readNetFromONNX(model)
network.setInput(np.load(folder + '/input.npy'))
for name, values in zip(('boxes', 'scores'), network.forward(['boxes', 'scores'])):
    np.save(f'{folder}/{name}.npy', values)
"""


def test_opencv_4_runs_raw_files_of_fixed_size(case, tmp_path):
    """In an environment of its own, as it needs an older numpy."""
    home = Path.home() / '.cache/yolov7_simple/opencv4'
    python = home / 'bin/python'
    pip = [python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'opencv-python-headless==4.12.0.88']
    try:
        if not python.is_file():
            subprocess.run([sys.executable, '-m', 'venv', home], check=True, capture_output=True)
        subprocess.run(pip, check=True, capture_output=True, timeout=200)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip('OpenCV 4.12 cannot be installed: pip finds no index')
    folder, batches, _ = case
    model = build_model(write_config(tmp_path / 'small.py'))
    graph, _ = export(model, tmp_path / 'raw.onnx', tmp_path / 'small.py', with_nms=False)
    np.save(tmp_path / 'input.npy', batches[0])
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    command = [python, '-c', OPENCV4, tmp_path / 'raw.onnx', tmp_path]
    subprocess.run(list(map(str, command)), check=True, env=environment)
    with torch.no_grad():
        boxes, scores = graph(torch.from_numpy(batches[0]))
    np.testing.assert_allclose(np.load(tmp_path / 'boxes.npy'), boxes, atol=1e-2)
    np.testing.assert_allclose(np.load(tmp_path / 'scores.npy'), scores, atol=1e-4)


def test_the_comparison_sees_differences():
    boxes, scores, labels = np.array([[0, 0, 50, 50], [60, 60, 90, 90.0]]), np.array([0.9, 0.5]), np.array([0, 1])
    assert compare((boxes, scores, labels), (boxes, scores, labels)) == (0, 0)
    assert compare((boxes, scores, labels), (boxes + 1, scores, labels))[0] == 2
    assert compare((boxes, scores, labels), (boxes, scores, 1 - labels))[0] == 2
    assert compare((boxes, scores, labels), (boxes, scores - 0.01, labels))[1] == pytest.approx(0.01)
    assert compare((boxes, scores, labels), (boxes[:1], scores[:1], labels[:1]))[0] == 1
    assert compare((boxes, scores - 0.47, labels), (boxes[:1], scores[:1], labels[:1]))[0] == 0
