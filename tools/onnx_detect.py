"""Detect objects with a file of tools/export_onnx.py: numpy, OpenCV and onnxruntime, no torch and no MMDetection.

    python tools/onnx_detect.py MODEL.onnx IMAGES...

IMAGES are files, folders or patterns. Pictures go to OUT_DIR/pictures/, and all detections to OUT_DIR/detections.json
(COCO format; pycocotools' loadRes reads its `annotations`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType


def import_without_torch() -> None:
    """Make the parts of yolov7_simple that need no torch importable, without its ``__init__``, which needs it."""
    here = Path(__file__).resolve()
    for package in (here.parents[1] / 'yolov7_simple', here.parents[2], here.parent / 'yolov7_simple'):
        if (package / 'onnx_detector.py').is_file():
            module = ModuleType('yolov7_simple')
            module.__path__ = [str(package)]
            sys.modules.setdefault('yolov7_simple', module)
            return
    sys.exit(f'{here.name} needs yolov7_simple/onnx_detector.py and yolov7_simple/pictures.py beside it')


import_without_torch()

from yolov7_simple.runtime.drawing import draw_detections
from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.files import IMAGE_SUFFIXES, find_inputs, make_folder, result_names, write_json
from yolov7_simple.runtime.images import MAX_MEGAPIXELS, read_image, write_image
from yolov7_simple.runtime.onnx_detector import OnnxDetector  # noqa: E402
from yolov7_simple.runtime.results import CocoResults, picture_path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='the ONNX file')
    parser.add_argument('images', nargs='+', help='image files, folders or patterns')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='default: outputs')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw detections from this score; default: 0.3')
    parser.add_argument(
        '--ann-file', type=Path, help='COCO annotations, whose ids of images and categories to use, to judge the result'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write the JSON alone')
    parser.add_argument('--threads', type=int, help='default: one for each core')
    parser.add_argument('--max-megapixels', type=float, default=MAX_MEGAPIXELS, help='refuse larger images')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    paths = find_inputs(args.images, IMAGE_SUFFIXES)
    detector = OnnxDetector(args.model, args.threads)
    results = CocoResults(detector.classes, args.ann_file)
    make_folder(args.out_dir)
    failed = 0
    start = time.perf_counter()
    for i, (path, name) in enumerate(zip(paths, result_names(paths))):
        try:
            image = read_image(path, args.max_megapixels)
            boxes, scores, labels = detector([image])[0]
            results.add(name, image.shape[:2], boxes, scores, labels)
            if not args.no_pictures:
                drawn = scores >= args.score_thr
                picture = draw_detections(image, boxes[drawn], scores[drawn], labels[drawn], detector.classes)
                write_image(picture_path(args.out_dir, name), picture)
        except InputError as error:
            failed += 1
            print(f'\rerror: {error}', file=sys.stderr)
        if sys.stderr.isatty():
            print(f'\r{i + 1} of {len(paths)} images', end='', file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    write_json(args.out_dir / 'detections.json', results.content)
    count = len(paths) - failed
    print(
        f'{count} images in {seconds:.1f} s, {len(results.content["annotations"])} detections: '
        f'{args.out_dir / "detections.json"}' + (f'; {failed} images could not be used' if failed else '')
    )
    return 1 if failed else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f'error: {error}')
