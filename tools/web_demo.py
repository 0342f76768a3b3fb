"""Serve a page where one drops an image, moves the thresholds, and sees and downloads the detections.

    python tools/web_demo.py CONFIG CHECKPOINT
    python tools/web_demo.py MODEL.onnx

With an ONNX file (of tools/export_onnx.py) neither torch nor MMDetection is needed: numpy, OpenCV, onnxruntime, gradio.
"""

from __future__ import annotations

import argparse
import html
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
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
KEPT = 1800  # seconds that uploads and results are kept
RESULT = 'result-'


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
    if not 1 <= args.port <= 65535:
        parser.error(f'--port {args.port}: must be from 1 to 65535')
    return args


def check_address(host: str, port: int) -> None:
    """Listen for a moment, before the model is loaded.

    Raises:
        InputError: Another program listens there, or nobody may.
    """
    from yolov7_simple.runtime import InputError

    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(f'port {port} of {host}: {reason}; choose another with --port, or --host') from error


def read_upload(path: Path):
    """Read an uploaded image, whose size is looked at before it takes memory; returns it as read_image does.

    Raises:
        InputError: It cannot be used. The message names the file as the user knows it, not where the server keeps it.
    """
    from PIL import Image

    from yolov7_simple.runtime import InputError, read_image

    width = height = 0
    Image.MAX_IMAGE_PIXELS = None  # the limit here is lower
    with suppress(Exception), Image.open(path) as image:  # what Pillow cannot read, OpenCV may
        width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise InputError(
            f'{path.name}: {width} x {height} is {width * height / 1e6:.0f} megapixels, and this page takes '
            f'{MAX_MEGAPIXELS:g}: make it smaller'
        )
    if not path.is_file():
        raise InputError(f'{path.name}: uploads are kept for {KEPT // 60} minutes; drop it again')
    try:
        return read_image(path, MAX_MEGAPIXELS)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what gradio's own cleaning leaves behind: results that it has copied, and empty folders."""
    for path in folder.iterdir():
        with suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > 60 and path.name.startswith(RESULT):
                shutil.rmtree(path)
            elif age > KEPT:
                path.rmdir()  # which fails if it is not empty


def build_page(detector: Detector):
    """Lay out the page; returns gradio's Blocks."""
    import gradio

    from yolov7_simple.runtime import InputError, draw_detections
    from yolov7_simple.runtime.files import write_json
    from yolov7_simple.runtime.numpy_nms import numpy_nms
    from yolov7_simple.runtime.results import CocoResults

    classes, lowest_score, highest_iou = detector.classes, detector.score_threshold, detector.iou_threshold

    def read(path):
        try:
            return read_upload(path)
        except InputError as error:
            raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    def find(path):
        """Detect in an uploaded file, at the model's own thresholds."""
        if path is None:
            return None
        remove_leftovers(Path(os.environ['GRADIO_TEMP_DIR']))
        # The image is read again when it is drawn: kept for each user it would fill the memory.
        return Path(path), *detector([read(Path(path))])[0]

    def show(found, score_thr, iou_thr, agnostic_nms):
        """Draw and list what passes the thresholds."""
        if found is None:
            return NO_RESULT
        path, boxes, scores, labels = found
        for label, value in (('Lowest score', score_thr), ('Most overlap', iou_thr)):
            if value is None or not 0 <= value <= 1:  # typed, or sent by a program
                raise gradio.Error(f'{label} {value}: must be from 0 to 1', duration=None, print_exception=False)
        image = read(path)
        passed = scores >= score_thr
        boxes, scores, labels = boxes[passed], scores[passed], labels[passed]
        kept = numpy_nms(boxes, scores, 0 * labels if agnostic_nms else labels, iou_thr)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        rows = [
            [classes[label], round(float(score), 3), *(round(float(value), 1) for value in box)]
            for box, score, label in zip(boxes, scores, labels)
        ]
        results = CocoResults(classes)
        results.add(path.name, image.shape[:2], boxes, scores, labels)
        file = Path(tempfile.mkdtemp(dir=os.environ['GRADIO_TEMP_DIR'], prefix=RESULT)) / f'{path.stem}.json'
        write_json(file, results.content)
        return draw_detections(image, boxes, scores, labels, classes)[..., ::-1], rows, str(file)

    with gradio.Blocks(title='Detect', analytics_enabled=False, delete_cache=(600, KEPT)) as page:
        gradio.Markdown(
            f'## Drop an image\nIt is searched for {", ".join(classes[:12])}{" ..." * (len(classes) > 12)}.'
        )
        found = gradio.State(time_to_live=KEPT)
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
    check_address(args.host, args.port)
    options = {'device': args.device} if args.checkpoint else {}
    detector = load_detector(args.model, args.checkpoint, **options)
    with tempfile.TemporaryDirectory() as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # uploads and results go when the server does
        page = build_page(detector)
        try:
            page.launch(
                server_name=args.host,
                server_port=args.port,
                max_file_size=MAX_UPLOAD,
                share=False,
                state_session_capacity=50,
                footer_links=[],
            )
        except OSError as error:  # gradio wants the port of localhost, too
            raise InputError(f'port {args.port}: cannot be used; choose another with --port') from error


if __name__ == '__main__':
    arguments = parse_args()
    if arguments.checkpoint is None:
        os.environ['YOLOV7_SIMPLE_RUNTIME_ONLY'] = '1'
    from yolov7_simple.runtime.errors import run_tool

    run_tool(partial(main, arguments))
