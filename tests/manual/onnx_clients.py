"""Run programs of others on an exported file and real images; prints the table of docs/deployment.md.

    PYTHONPATH=tests python tests/manual/onnx_clients.py CONFIG CHECKPOINT --data IMAGES

Times are medians of one image in each program, in turns. A program that is not installed is named.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clients import CLIENTS, Missing, compare, split

from yolov7_simple.apis.inference import class_names, load_inferencer
from yolov7_simple.deploy.export import DeployGraph, export_onnx
from yolov7_simple.deploy.metadata import build_metadata, default_size, read_preprocessing
from yolov7_simple.runtime import OnnxDetector, read_image
from yolov7_simple.runtime.errors import run_tool
from yolov7_simple.runtime.files import IMAGE_SUFFIXES, find_inputs

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get('YOLOV7_SHARED', ROOT.parent / 'shared'))
PAUSE = 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--data', default=str(SHARED / 'data/bccd/images'), help='folder of images')
    parser.add_argument('--images', type=int, default=20, help='how many of them; default: 20')
    args = parser.parse_args()
    inferencer = load_inferencer(args.config, args.checkpoint, 'cpu')
    graph, preprocessing = DeployGraph(inferencer.model), read_preprocessing(inferencer.cfg)
    metadata = build_metadata(graph, class_names(inferencer.model), preprocessing)
    paths = find_inputs([args.data], IMAGE_SUFFIXES)[: args.images]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        export_onnx(graph, path, default_size(inferencer.cfg, preprocessing), metadata=metadata)
        detector = OnnxDetector(path)
        batches = [detector.preprocess([read_image(image)])[0] for image in paths]
        with torch.no_grad():
            wanted = [split(*(values[0].numpy() for values in graph(torch.from_numpy(batch)))) for batch in batches]
        loaded, versions, results = {}, {}, {}
        for name, load in CLIENTS.items():
            try:
                versions[name], loaded[name] = load(path, Path(folder))
                found = [loaded[name](batch) for batch in batches]
                pairs = zip(wanted, found)
                parts = [compare(own, split(dets[0], np.asarray(labels[0]))) for own, (dets, labels) in pairs]
                results[name] = sum(part[0] for part in parts), max(part[1] for part in parts)
            except Missing as error:
                results[name] = str(error)
            except Exception as error:  # each of these programs has errors of its own
                loaded.pop(name, None)
                results[name] = f'{versions.get(name, "")} fails: {str(error).strip().splitlines()[-1][:90]}'
        times = {name: [] for name in loaded if name != 'Node'}  # starts a process for each image
        for i in range(12):
            for name, own in times.items():
                time.sleep(PAUSE)
                start = time.perf_counter()
                loaded[name](batches[0])
                if i >= 2:
                    own.append(time.perf_counter() - start)
    seconds = {name: statistics.median(own) for name, own in times.items()}
    count = sum(int((scores > 0.05).sum()) for _, scores, _ in wanted)
    print(f'{count} detections of PyTorch above 0.05 in {len(paths)} images\n')
    print('| program | version | without a twin | largest difference of a score | times as fast as ONNX Runtime |')
    print('| --- | --- | ---: | ---: | ---: |')
    for name, result in results.items():
        if isinstance(result, str):
            print(f'| {name} | {result} | | | |')
            continue
        speed = f'{seconds["ONNX Runtime"] / seconds[name]:.2f}' if name in seconds else ''
        print(f'| {name} | {versions[name]} | {result[0]} | {result[1]:.1e} | {speed} |')
    print(f'\nThe fastest is {min(seconds, key=seconds.get)}.')


if __name__ == '__main__':
    run_tool(main)
