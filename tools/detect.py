"""Detect objects in images and videos with a trained model.

    python tools/detect.py CONFIG CHECKPOINT INPUT...
    python tools/detect.py MODEL.onnx INPUT...

INPUT is an image, a video, a folder of them, a pattern, a URL, or the number of a camera. Pictures go to
OUT_DIR/pictures/, videos to OUT_DIR/videos/, and all detections to OUT_DIR/detections.json (COCO format; `annotations`
is what pycocotools' loadRes takes; the frames of a video are images named VIDEO/NUMBER, and have a `track_id` with
--track). An input that cannot be used is reported, the rest goes on, and the exit status is 1. Ctrl-C ends it in order,
with status 130. With MODEL.onnx, of tools/export_onnx.py, numpy, OpenCV and onnxruntime are all that is needed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import installed  # noqa: F401

if TYPE_CHECKING:
    from yolov7_simple.runtime.detect import Detector

# Functions import the package, as only the arguments tell whether torch is needed.
FOR_CHECKPOINTS, FOR_ONNX = ('device', 'slice', 'fast', 'compile'), ('threads', 'engine')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage='%(prog)s [options] (CONFIG CHECKPOINT | MODEL.onnx) INPUT...',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', help='config that the model was trained with, or an ONNX file')
    parser.add_argument('inputs', nargs='+', metavar='input', help='with a config its checkpoint, then the inputs')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='default: outputs')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw detections from this score; default: 0.3')
    parser.add_argument(
        '--keep-thr', type=float, help='keep them in the JSON from this score; default: 0.1, all with --ann-file'
    )
    parser.add_argument(
        '--ann-file', type=Path, help='COCO annotations, whose ids of images and categories to use, to evaluate on them'
    )
    parser.add_argument('--agnostic-nms', action='store_true', help='one object, one box, whatever its class')
    parser.add_argument('--no-pictures', action='store_true', help='draw nothing')
    parser.add_argument('--save-txt', action='store_true', help="write labels in YOLO's form, too")
    parser.add_argument('--save-conf', action='store_true', help='write these with the scores')
    parser.add_argument('--save-crops', action='store_true', help='write what is in each box, too')
    parser.add_argument('--track', action='store_true', help='follow objects in videos (needs the trackers package)')
    parser.add_argument('--batch-size', type=int, default=1, help='frames of a video at a time; default: 1')
    parser.add_argument('--max-megapixels', type=float, help='refuse larger; default: 64, or any size with --slice')
    config = parser.add_argument_group('with a config and a checkpoint')
    config.add_argument('--device', help='such as cpu or cuda:0; default: the best there is')
    config.add_argument(
        '--slice',
        type=int,
        metavar='PIXELS',
        help='look at large images in overlapping squares of this size, and as a whole, and merge what is found from '
        '--score-thr on (needs the sahi package)',
    )
    config.add_argument(
        '--fast',
        action=argparse.BooleanOptionalAction,
        help='fold BatchNorm and lay channels out last: the same detections, faster; default: on',
    )
    config.add_argument(
        '--compile', action='store_true', default=None, help='torch.compile, too: slow at first, worth it for videos'
    )
    onnx = parser.add_argument_group('with an ONNX file')
    onnx.add_argument('--threads', type=int, help='default: one for each core')
    onnx.add_argument('--engine', help='onnxruntime, the default, or openvino (needs its package)')
    args = parser.parse_args()
    is_onnx = args.model.endswith('.onnx')
    args.checkpoint = None if is_onnx else args.inputs.pop(0)
    if not args.inputs:
        parser.error(f'{args.model} {args.checkpoint}: name a config, its checkpoint, and then what to detect in')
    for name in FOR_CHECKPOINTS if is_onnx else FOR_ONNX:
        if getattr(args, name) is not None:
            parser.error(f'--{name} is not for {args.model}, only for ' + ('a config' if is_onnx else 'an ONNX file'))
    scores, counts = ('score_thr', 'keep_thr'), (('batch_size', 1), ('slice', 32), ('threads', 1))
    for name, least, most in (*((name, 0, 1) for name in scores), *((*count, math.inf) for count in counts)):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            limits = f'at least {least}' if most == math.inf else f'from {least} to {most}'
            parser.error(f'--{name.replace("_", "-")} {value}: must be {limits}')
    if args.max_megapixels is not None and not args.max_megapixels > 0:
        parser.error(f'--max-megapixels {args.max_megapixels}: must be more than 0')
    return args


def load_detector(model: str, checkpoint: str | None, **options) -> Detector:
    """Load an ONNX file, without torch, or a config and a checkpoint, with options of the detector's class."""
    from yolov7_simple.runtime import InputError, OnnxDetector

    if checkpoint is None:
        detector = OnnxDetector(model, **options)
        detector.check_nms()
        return detector
    try:
        from yolov7_simple.apis.detect import SlicedDetector, TorchDetector
    except ModuleNotFoundError as error:
        raise InputError(f'{model}: a config needs torch and mmdet ({error}); an ONNX file needs neither') from error
    return (SlicedDetector if 'side' in options else TorchDetector)(model, checkpoint, **options)


def show(progress: str) -> None:
    """Overwrite the line of progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f'\r\033[K{progress[:79]}', end='', file=sys.stderr, flush=True)


def main(args: argparse.Namespace) -> int:
    from yolov7_simple.runtime import InputError
    from yolov7_simple.runtime.detect import DetectionRun
    from yolov7_simple.runtime.images import MAX_MEGAPIXELS
    from yolov7_simple.runtime.outputs import ResultFiles
    from yolov7_simple.runtime.sources import find_sources
    from yolov7_simple.runtime.threads import stop_on_signals
    from yolov7_simple.runtime.tracking import check_tracking

    sources, unusable, left_out = find_sources(args.inputs)
    if not sources:
        raise InputError('\n'.join(unusable))
    if args.track:
        check_tracking(sources)
    for message in (*(f'error: {text}' for text in unusable), *(f'note: {text}' for text in left_out)):
        print(message, file=sys.stderr)
    files = ResultFiles(
        args.out_dir, args.score_thr, not args.no_pictures, args.save_txt, args.save_conf, args.save_crops
    )
    options = {'device': args.device, 'fast': args.fast is not False, 'compiled': bool(args.compile)}
    if args.checkpoint is None:
        options = {'num_threads': args.threads, 'engine': args.engine or 'onnxruntime'}
    options['agnostic_nms'] = args.agnostic_nms
    if args.slice is not None:
        options.update(side=args.slice, score_thr=args.score_thr)
    limit = MAX_MEGAPIXELS if args.max_megapixels is None and args.slice is None else args.max_megapixels
    detector = load_detector(args.model, args.checkpoint, **options)
    with stop_on_signals() as stop:
        run = DetectionRun(
            *(detector, files, args.keep_thr, args.ann_file, args.batch_size, limit, args.track),
            report=lambda text: (show(''), print(f'error: {text}', file=sys.stderr)),
            stop=stop,
        )
        for progress in run.run(sources):
            show(progress)
    show('')
    failed, total = len(unusable) + len(run.failed), len(unusable) + len(sources)
    print(run.summary() + (f'; {failed} of {total} inputs could not be used' if failed else ''))
    return 130 if run.was_cut else int(failed > 0)


if __name__ == '__main__':
    arguments = parse_args()
    if arguments.checkpoint is None:
        os.environ['YOLOV7_SIMPLE_RUNTIME_ONLY'] = '1'
    from yolov7_simple.runtime.errors import run_tool

    run_tool(partial(main, arguments))
