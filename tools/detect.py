"""Detect objects in images and videos with a trained model.

    python tools/detect.py CONFIG CHECKPOINT INPUT...

INPUT is an image, a video, a folder of them, or a pattern. Pictures go to OUT_DIR/pictures/, videos to OUT_DIR/videos/,
and all detections to OUT_DIR/detections.json (COCO format; `annotations` is what pycocotools' loadRes takes; the frames
of a video are images named VIDEO/NUMBER). An input that cannot be used is reported, the rest goes on, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yolov7_simple  # noqa: F401, I001  (before mmdet: it stands in for missing mmcv ops)
import cv2
import numpy as np
from mmdet.apis import DetInferencer
from numpy.typing import NDArray
from rich.progress import Progress

from yolov7_simple.runtime.errors import UserError
from yolov7_simple.models.fast import speed_up
from yolov7_simple.apis.inference import class_names, load_inferencer
from yolov7_simple.runtime.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    find_inputs,
    make_folder,
    replacing,
    result_names,
    write_json,
)
from yolov7_simple.runtime.images import MAX_MEGAPIXELS, check_size, read_image, write_image
from yolov7_simple.runtime.results import CocoResults, picture_path
from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.drawing import draw_detections

# Boxes (N, 4), xyxy in pixels, scores (N,) and labels (N,), best first.
Found = tuple[NDArray, NDArray, NDArray]
Detector = Callable[[Sequence[NDArray]], list[Found]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config that the model was trained with')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('inputs', nargs='+', metavar='input', help='image, video, folder or pattern')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='default: outputs')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw detections from this score; default: 0.3')
    parser.add_argument(
        '--ann-file', type=Path, help='COCO annotations, whose ids of images and categories to use, to judge the result'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write the JSON alone')
    parser.add_argument('--device', help='such as cpu or cuda:0; default: the best there is')
    parser.add_argument('--batch-size', type=int, default=1, help='frames of a video at a time; default: 1')
    parser.add_argument(
        '--slice',
        type=int,
        metavar='PIXELS',
        help='look at large images in overlapping squares of this size, and as a whole, and merge what is found from '
        '--score-thr on (needs the sahi package)',
    )
    parser.add_argument(
        '--fast',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='fold BatchNorm and lay channels out last: the same detections, faster; default: on',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile, too: slow at first, worth it for videos')
    parser.add_argument(
        '--max-megapixels', type=float, help=f'refuse larger images; default: {MAX_MEGAPIXELS:g}, or any with --slice'
    )
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size}: must be at least 1')
    if args.slice is not None and args.slice < 32:
        parser.error(f'--slice {args.slice}: must be at least 32 pixels')
    if args.max_megapixels is None and args.slice is None:
        args.max_megapixels = MAX_MEGAPIXELS
    return args


def whole_detector(inferencer: DetInferencer) -> Detector:
    """Detect in whole images, through mmdet's inferencer."""

    def detect(images: Sequence[NDArray]) -> list[Found]:
        samples = inferencer(list(images), batch_size=len(images), return_datasamples=True)['predictions']
        found = [sample.pred_instances.cpu().numpy() for sample in samples]
        return [(instances.bboxes, instances.scores, instances.labels) for instances in found]

    return detect


def sliced_detector(inferencer: DetInferencer, side: int, score_thr: float) -> Detector:
    """Detect in overlapping squares and in the whole image, through sahi, which merges them."""
    try:
        from sahi.models.mmdet import MmdetDetectionModel
        from sahi.predict import get_sliced_prediction
    except ImportError as error:
        raise InputError(f'--slice needs the sahi package: pip install sahi ({error})') from error
    model = MmdetDetectionModel(model=inferencer, confidence_threshold=score_thr, device='cpu')

    def detect(images: Sequence[NDArray]) -> list[Found]:
        results = []
        for image in images:
            objects = get_sliced_prediction(
                np.ascontiguousarray(image[..., ::-1]), model, slice_height=side, slice_width=side, verbose=0
            ).object_prediction_list
            objects = sorted(objects, key=lambda one: -one.score.value)
            boxes = np.array([one.bbox.to_xyxy() for one in objects], np.float32).reshape(-1, 4)
            scores = np.array([one.score.value for one in objects], np.float32)
            results.append((boxes, scores, np.array([one.category.id for one in objects], np.int64)))
        return results

    return detect


def read_video(path: Path, max_megapixels: float | None) -> Iterator[NDArray]:
    """Frames of a video, BGR.

    Raises:
        InputError: Not a video, one without frames, or with frames of a size that cannot be used.
    """
    if not path.is_file():
        raise InputError(f'{path}: no such file')
    capture = cv2.VideoCapture(str(path))
    try:
        count = 0
        while capture.isOpened():
            done, frame = capture.read()
            if not done:
                break
            if count == 0:
                check_size(str(path), *frame.shape[:2], max_megapixels)
            count += 1
            yield frame
        if count == 0:
            raise InputError(f'{path}: not a video that OpenCV can read, or one without frames')
    finally:
        capture.release()


class Run:
    """Detect in one input after another, into one folder.

    Args:
        args: Of the command line.
        detect: What detects.
        classes: Names of the classes.
    """

    def __init__(self, args: argparse.Namespace, detect: Detector, classes: Sequence[str]) -> None:
        self.args = args
        self.detect = detect
        self.classes = classes
        self.results = CocoResults(classes, args.ann_file)

    def draw(self, image: NDArray, found: Found) -> NDArray:
        """Draw what reaches the threshold."""
        drawn = found[1] >= self.args.score_thr
        return draw_detections(image, *(values[drawn] for values in found), self.classes)

    def image(self, path: Path, name: str) -> None:
        """Detect in one image file."""
        image = read_image(path, self.args.max_megapixels)
        found = self.detect([image])[0]
        self.results.add(name, image.shape[:2], *found)
        if not self.args.no_pictures:
            write_image(picture_path(self.args.out_dir, name), self.draw(image, found))

    def video(self, path: Path, name: str, on_frames: Callable[[int], None]) -> None:
        """Detect in one video file; ``on_frames`` is told of each batch."""
        found = self.detect_frames(path, name, on_frames)
        if self.args.no_pictures:
            for _ in found:
                pass
            return
        pictures = (self.draw(*frame_and_found) for frame_and_found in found)
        first = next(pictures)  # before anything is made: there may be none
        folder = self.args.out_dir / 'videos'
        make_folder(folder)
        with replacing(folder / (name if name.endswith('.mp4') else f'{name}.mp4')) as temporary:
            writer = open_video(temporary, frame_rate(path), first.shape[:2])
            try:
                for picture in chain([first], pictures):
                    writer.write(picture)
            finally:
                writer.release()

    def detect_frames(self, path: Path, name: str, on_frames: Callable[[int], None]) -> Iterator[tuple[NDArray, Found]]:
        """Frames of a video, and what is found in them."""
        count = 0
        for frames in batched(read_video(path, self.args.max_megapixels), self.args.batch_size):
            for frame, found in zip(frames, self.detect(frames)):
                self.results.add(f'{name}/{count:06d}', frame.shape[:2], *found)
                count += 1
                yield frame, found
            on_frames(len(frames))


def open_video(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """Open an MPEG-4 file for frames of a height and width."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate, (size[1], size[0]))
    if not writer.isOpened():
        raise InputError(f'{path}: this OpenCV cannot write MPEG-4 videos; use --no-pictures for the JSON alone')
    return writer


def frame_rate(path: Path) -> float:
    """Frames a second, 25 where the file does not tell."""
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) or 25.0


def frame_count(path: Path) -> int | None:
    """How many frames the file says it has."""
    count = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))
    return count if count > 0 else None


def batched(values: Iterator, size: int) -> Iterator[list]:
    """Lists of ``size`` values, the last one shorter."""
    batch = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def main() -> int:
    args = parse_args()
    paths = find_inputs(args.inputs, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    make_folder(args.out_dir)
    inferencer = load_inferencer(args.config, args.checkpoint, args.device)
    classes = class_names(inferencer.model)
    if args.fast or args.compile:
        inferencer.model = speed_up(inferencer.model, args.compile)
    if args.slice is None:
        detect = whole_detector(inferencer)
    else:
        detect = sliced_detector(inferencer, args.slice, args.score_thr)
    run = Run(args, detect, classes)

    failed = 0
    with Progress() as progress:
        task = progress.add_task('Detecting', total=len(paths))
        for path, name in zip(paths, result_names(paths)):
            try:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    frames = progress.add_task(name, total=frame_count(path))
                    run.video(path, name, lambda count, frames=frames: progress.advance(frames, count))
                else:
                    run.image(path, name)
            except InputError as error:
                failed += 1
                print(f'error: {error}', file=sys.stderr)
            progress.advance(task)
    write_json(args.out_dir / 'detections.json', run.results.content)
    content = run.results.content
    print(
        f'{len(content["annotations"])} detections in {len(content["images"])} images: '
        f'{args.out_dir / "detections.json"}'
        + (f'; {failed} of {len(paths)} inputs could not be used' if failed else '')
    )
    return 1 if failed else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (InputError, UserError) as error:
        sys.exit(f'error: {error}')
