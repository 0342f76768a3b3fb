"""Serve a page where one drops an image, moves the thresholds, and sees and downloads the detections.

    python tools/web_demo.py CONFIG CHECKPOINT
    python tools/web_demo.py MODEL.onnx

With an ONNX file (of tools/export_onnx.py) neither torch nor MMDetection is needed: numpy, OpenCV, onnxruntime, gradio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import installed  # noqa: F401

from detect import load_detector

if TYPE_CHECKING:
    from yolov7_simple.runtime.detect import Detector

# Before gradio is imported: this page talks to nobody but its user.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

MAX_UPLOAD = '20mb'
MAX_MEGAPIXELS = 40.0
NO_RESULT = (None, [], None)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='config that the model was trained with, or an ONNX file')
    parser.add_argument('checkpoint', nargs='?', help='trained weights, with a config')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on; default: this machine alone')
    parser.add_argument('--port', type=int, default=7860, help='default: 7860')
    parser.add_argument('--device', help='such as cpu or cuda:0, with a config; default: the best there is')
    args = parser.parse_args()
    is_onnx = args.model.endswith('.onnx')
    if is_onnx and args.checkpoint:
        parser.error(f'{args.model} needs no checkpoint: it holds its weights')
    if is_onnx and args.device:
        parser.error(f'--device is not for {args.model}, only for a config')
    if not is_onnx and not args.checkpoint:
        parser.error(f'{args.model}: a config needs a checkpoint, too')
    return args


def build_page(detector: Detector):
    """Lay out the page; returns gradio's Blocks."""
    import gradio

    from yolov7_simple.runtime import InputError, draw_detections, read_image
    from yolov7_simple.runtime.files import write_json
    from yolov7_simple.runtime.numpy_nms import numpy_nms
    from yolov7_simple.runtime.results import CocoResults

    classes, lowest_score, highest_iou = detector.classes, detector.score_threshold, detector.iou_threshold

    def find(path):
        """Detect in an uploaded file, at the model's own thresholds."""
        if path is None:
            return None
        try:
            image = read_image(Path(path), MAX_MEGAPIXELS)
        except InputError as error:
            # The page shows the name that the user knows, not where the server keeps the file.
            raise gradio.Error(str(error).replace(str(path), Path(path).name), duration=None) from error
        return Path(path).name, image, *detector([image])[0]

    def show(found, score_thr, iou_thr, agnostic_nms):
        """Draw and list what passes the thresholds."""
        if found is None:
            return NO_RESULT
        name, image, boxes, scores, labels = found
        for label, value in (('Lowest score', score_thr), ('Most overlap', iou_thr)):
            if value is None or not 0 <= value <= 1:  # typed, or sent by a program
                raise gradio.Error(f'{label} {value}: must be from 0 to 1', duration=None)
        passed = scores >= score_thr
        boxes, scores, labels = boxes[passed], scores[passed], labels[passed]
        kept = numpy_nms(boxes, scores, 0 * labels if agnostic_nms else labels, iou_thr)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        rows = [
            [classes[label], round(float(score), 3), *(round(float(value), 1) for value in box)]
            for box, score, label in zip(boxes, scores, labels)
        ]
        results = CocoResults(classes)
        results.add(name, image.shape[:2], boxes, scores, labels)
        file = Path(tempfile.mkdtemp(dir=os.environ['GRADIO_TEMP_DIR'])) / f'{Path(name).stem}.json'
        write_json(file, results.content)
        return draw_detections(image, boxes, scores, labels, classes)[..., ::-1], rows, str(file)

    with gradio.Blocks(title='Detect', analytics_enabled=False, delete_cache=(600, 1800)) as page:
        gradio.Markdown(
            f'## Drop an image\nIt is searched for {", ".join(classes[:12])}{" ..." * (len(classes) > 12)}.'
        )
        found = gradio.State(time_to_live=1800)
        with gradio.Row():
            with gradio.Column(scale=1):
                upload = gradio.File(label='Image', type='filepath', file_types=None, elem_id='upload')
                score_thr = gradio.Slider(
                    lowest_score, 1.0, value=max(0.3, lowest_score), step=0.01, label='Lowest score', elem_id='score'
                )
                iou_thr = gradio.Slider(
                    0.05,
                    highest_iou,
                    value=highest_iou,
                    step=0.05,
                    label='Most overlap of boxes (IoU)',
                    elem_id='iou',
                )
                agnostic_nms = gradio.Checkbox(
                    value=detector.agnostic_nms,
                    interactive=not detector.agnostic_nms,
                    label='One object, one box, whatever its class',
                    elem_id='agnostic',
                )
                download = gradio.DownloadButton('Download detections (COCO JSON)', elem_id='download')
            with gradio.Column(scale=2):
                picture = gradio.Image(
                    label='Detections',
                    format='png',
                    interactive=False,
                    buttons=['download', 'fullscreen'],
                    elem_id='picture',
                )
                table = gradio.Dataframe(
                    headers=['class', 'score', 'x1', 'y1', 'x2', 'y2'],
                    label='x to the right, y down, in pixels',
                    interactive=False,
                    elem_id='table',
                )
        inputs, outputs = [found, score_thr, iou_thr, agnostic_nms], [picture, table, download]
        upload.change(lambda: (*NO_RESULT, None), None, [*outputs, found]).then(find, upload, found).success(
            show, inputs, outputs
        )
        for setting in inputs[1:]:
            # While one is at work, of those that come only the last counts.
            setting.change(show, inputs, outputs, trigger_mode='always_last', show_progress='hidden')
    return page


def main(args: argparse.Namespace) -> None:
    from yolov7_simple.runtime import InputError

    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(f'the page needs gradio: pip install gradio ({error})') from error
    options = {'device': args.device} if args.checkpoint else {}
    detector = load_detector(args.model, args.checkpoint, **options)
    with tempfile.TemporaryDirectory() as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # uploads and results go when the server does
        build_page(detector).launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=MAX_UPLOAD,
            share=False,
            state_session_capacity=50,
            footer_links=[],
        )


if __name__ == '__main__':
    arguments = parse_args()
    if arguments.checkpoint is None:
        os.environ['YOLOV7_SIMPLE_RUNTIME_ONLY'] = '1'
    from yolov7_simple.runtime.errors import run_tool

    run_tool(partial(main, arguments))
