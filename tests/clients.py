"""Programs of others that load an exported file: each gives the detections of a batch."""

import importlib.metadata
import shutil
import subprocess
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx

from yolov7_simple.runtime import OnnxDetector

NODE_SCRIPT = """
const ort = require('onnxruntime-node'), fs = require('fs');
(async () => {
  const [model, input, output, ...shape] = process.argv.slice(2);
  const bytes = fs.readFileSync(input);
  const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const session = await ort.InferenceSession.create(model);
  const found = await session.run({images: new ort.Tensor('float32', pixels, shape.map(Number))});
  fs.writeFileSync(output + '.dets', Buffer.from(found.dets.data.buffer));
  fs.writeFileSync(output + '.labels', Buffer.from(found.labels.data.buffer));
})();
"""


class Missing(Exception):
    """A program that is not installed here; the message names it."""


def need(name):
    """Version of a package, or Missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(f'{name} is not installed: pip install {name}') from None


def onnx_runtime(path, folder):
    return need('onnxruntime'), partial(run_engine, OnnxDetector(path))


def openvino(path, folder):
    return need('openvino'), partial(run_engine, OnnxDetector(path, engine='openvino'))


def run_engine(detector, batch):
    return detector.engine.run(batch, ('dets', 'labels'))


def onnxslim(path, folder):
    version = need('onnxslim')
    import onnxslim as package

    package.slim(str(path), str(folder / 'slim.onnx'))
    return version, onnx_runtime(folder / 'slim.onnx', folder)[1]


def onnxsim(path, folder):
    version = need('onnxsim')
    import onnxsim as package

    model, is_same = package.simplify(onnx.load(str(path)))
    assert is_same
    onnx.save(model, str(folder / 'sim.onnx'))
    return version, onnx_runtime(folder / 'sim.onnx', folder)[1]


def opencv(path, folder):
    network = cv2.dnn.readNetFromONNX(str(path))

    def run(batch):
        network.setInput(batch)
        found = network.forward(['dets', 'labels'])
        return [np.asarray(values) for values in found]

    return cv2.__version__, run


def node(path, folder):
    if not shutil.which('npm') or not shutil.which('node'):
        raise Missing('node and npm are not installed')
    home = Path.home() / '.cache/yolov7_simple/node'
    home.mkdir(parents=True, exist_ok=True)
    package = home / 'node_modules/onnxruntime-node'
    if not (package / 'package.json').is_file():
        # Without its install script, which fetches CUDA from elsewhere.
        command = [
            'npm',
            'install',
            '--no-audit',
            '--no-fund',
            '--ignore-scripts',
            '--prefix',
            home,
            'onnxruntime-node',
        ]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0
        except subprocess.TimeoutExpired:
            done = False
        if not done:
            raise Missing('onnxruntime-node cannot be installed: npm finds no index')
    script = home / 'detect.js'
    script.write_text(NODE_SCRIPT)

    def run(batch):
        (folder / 'input').write_bytes(np.ascontiguousarray(batch).tobytes())
        command = ['node', script, path, folder / 'input', folder / 'output', *map(str, batch.shape)]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
        labels = np.fromfile(folder / 'output.labels', np.int64).reshape(len(batch), -1)
        return [np.fromfile(folder / 'output.dets', np.float32).reshape(*labels.shape, 5), labels]

    import json

    return json.loads((package / 'package.json').read_text())['version'], run


CLIENTS = {
    'ONNX Runtime': onnx_runtime,
    'OpenVINO': openvino,
    'onnxslim, ONNX Runtime': onnxslim,
    'onnxsim, ONNX Runtime': onnxsim,
    'OpenCV': opencv,
    'Node': node,
}


def split(dets, labels):
    """Boxes (N, 4), scores (N,) and labels (N,) of the detections of an image, without the empty rows."""
    found = labels >= 0
    return dets[found, :4], dets[found, 4], labels[found]


def compare(wanted, found, least=0.05):
    """Compare detections: boxes (N, 4), scores (N,) and labels (N,) each.

    Returns:
        How many of those wanted with a score above `least` have no twin (of the same class, the best IoU being above
        0.99), and the largest difference of a score among those that have.
    """
    missing, largest = 0, 0.0
    for box, score, label in zip(*wanted):
        if score <= least:
            continue
        same = found[2] == label
        boxes, scores = found[0][same], found[1][same]
        corner, other = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
        shared = (other - corner).clip(0).prod(1)
        iou = shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared).clip(1e-9)
        twins = scores[iou > 0.99]
        if len(twins):
            largest = max(largest, float(np.abs(twins - score).min()))
        else:
            missing += 1
    return missing, largest
