"""Images in, pictures and JSON out, with nothing but numpy and OpenCV.

Shared by the tools with and without torch: ``tools/onnx_detect.py`` loads this one file and not the package. N boxes.
"""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp'}
VIDEO_SUFFIXES = {'.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg'}
WRITABLE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp'}
MIN_SIDE = 4  # pixels; nothing can be told from less
MAX_RATIO = 100  # of the sides; resized, less than a pixel could be left of the shorter one
MAX_MEGAPIXELS = 64.0

FONT = cv2.FONT_HERSHEY_DUPLEX
MIN_CANVAS = 400  # pixels of the longer side below which a picture is enlarged, for its labels to be readable
GOLDEN_RATIO = 0.618034


class InputError(Exception):
    """An input that cannot be used; the message names it and says why."""


def find_inputs(patterns: Sequence[str], suffixes: set[str]) -> list[Path]:
    """List the files that files, folders and glob patterns stand for.

    Args:
        patterns: Paths of files, of folders (their files with one of ``suffixes``, not those of their subfolders), or
            glob patterns (``**`` goes into subfolders).
        suffixes: Lower-case file name endings, taken from folders.

    Returns:
        The files in the order given, sorted within each pattern, without doubles. A file that was named is listed
        whether it exists or not: reading it will tell.

    Raises:
        InputError: A folder without such files, or a pattern that fits no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
            if not files:
                raise InputError(f'{path}: no file in this folder ends with one of {", ".join(sorted(suffixes))}')
        elif not path.exists() and glob.has_magic(pattern):
            files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
            if not files:
                raise InputError(f'{pattern}: no file fits this pattern')
        else:
            files = [path]
        found.update(dict.fromkeys(files))
    return list(found)


def check_size(name: str, height: int, width: int, max_megapixels: float | None) -> None:
    """Refuse images that are too small to hold anything, or so large that they would fill the memory.

    Raises:
        InputError: Also says what can be done.
    """
    if min(height, width) < MIN_SIDE:
        raise InputError(f'{name}: {width} x {height} pixels; an image needs at least {MIN_SIDE} on each side')
    if max(height, width) > MAX_RATIO * min(height, width):
        raise InputError(f'{name}: {width} x {height} pixels; one side may be at most {MAX_RATIO} times the other')
    if max_megapixels is not None and height * width > max_megapixels * 1e6:
        raise InputError(
            f'{name}: {width} x {height} is {height * width / 1e6:.0f} megapixels, more than the limit of '
            f'{max_megapixels:g}: make it smaller or raise the limit with --max-megapixels (tools/detect.py --slice '
            'has none, and sees small objects)'
        )


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file lacks its end, which OpenCV before 5 decodes without an error, grey from there on."""
    if data.startswith(b'\xff\xd8'):
        # The last scan must be followed by the end-of-image marker. Some cameras write more after that.
        return not data.endswith(b'\xff\xd9') and data.rfind(b'\xff\xd9') <= data.rfind(b'\xff\xda')
    return data.startswith(b'\x89PNG') and b'IEND' not in data


def read_image(path: Path, max_megapixels: float | None = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """Read an image, turned as its EXIF data says.

    Returns:
        (H, W, 3), BGR.

    Raises:
        InputError: No file, not an image, or an image of a size that cannot be used.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror or error}') from error
    try:
        image = None
        if data and not is_cut_short(data):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # e.g. more pixels than OpenCV decodes
        raise InputError(f'{path}: cannot be decoded: {error.err}') from error
    if image is None:
        raise InputError(f'{path}: not an image, or a damaged or cut one')
    check_size(str(path), *image.shape[:2], max_megapixels)
    return image


def check_writable(path: Path, overwrite: bool = False) -> None:
    """Make sure that a file can be written, before the work that fills it.

    Raises:
        InputError: It exists, is a folder, or its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise InputError(f'{path}: is a folder; name a file')
    if path.exists() and not overwrite:
        raise InputError(f'{path}: exists already; remove it, name another file, or pass --overwrite')
    if not path.parent.is_dir():
        raise InputError(f'{path}: there is no folder {path.parent}; create it first')
    if not os.access(path.parent, os.W_OK):
        raise InputError(f'{path}: no permission to write into {path.parent}')


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file beside ``path``, which takes its place if nothing fails, or else vanishes."""
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a BGR image, whole or not at all; the suffix of ``path`` tells the format.

    Raises:
        InputError: OpenCV has no encoder for it.
    """
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise InputError(f'{path}: OpenCV cannot write {path.suffix or "a file without a suffix"}')
    with replacing(path) as temporary:
        data.tofile(temporary)


def make_folder(path: Path) -> None:
    """Make a folder for results, if there is none.

    Raises:
        InputError: It cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{path}: cannot be made a folder for results: {error.strerror or error}') from error
    if not os.access(path, os.W_OK):
        raise InputError(f'{path}: no permission to write into this folder')


def result_names(paths: Sequence[Path]) -> list[str]:
    """File names to file results under: those of the inputs, with the folders in front where names are not unique."""
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else '_'.join(path.parts).replace(os.sep, '') for path in paths]


def picture_path(out_dir: Path, name: str) -> Path:
    """Where the picture of an image goes: under its own name, as a PNG if its own format cannot be written.

    Raises:
        InputError: The folder cannot be made.
    """
    folder = out_dir / 'pictures'
    make_folder(folder)
    return folder / (name if Path(name).suffix.lower() in WRITABLE_SUFFIXES else f'{name}.png')


class CocoResults:
    """Detections as one COCO file: ``images``, ``categories``, and ``annotations`` with a ``score``.

    ``annotations`` is also what ``pycocotools.coco.COCO.loadRes`` takes.

    Args:
        classes: Names of the classes, in the order of the labels.
        annotation_file: A COCO file whose ids of images (by file name) and categories (by name) to use, so that the
            detections can be judged on it; None: ids count from 1.

    Raises:
        InputError: That file is not COCO's, or does not have the classes.
    """

    def __init__(self, classes: Sequence[str], annotation_file: Path | None = None) -> None:
        self.category_ids = list(range(1, len(classes) + 1))
        self.image_ids: dict[str, int] | None = None
        if annotation_file is not None:
            try:
                known = json.loads(Path(annotation_file).read_text(encoding='utf-8'))
                ids = {category['name']: category['id'] for category in known['categories']}
                self.image_ids = {image['file_name']: image['id'] for image in known['images']}
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise InputError(f'{annotation_file}: not a COCO annotation file: {error!r}') from error
            missing = [name for name in classes if name not in ids]
            if missing:
                raise InputError(f'{annotation_file}: has no category {missing[0]!r}; it has {list(ids)}')
            self.category_ids = [ids[name] for name in classes]
        self.content = {
            'images': [],
            'categories': [{'id': id_, 'name': name} for id_, name in zip(self.category_ids, classes)],
            'annotations': [],
        }

    def add(self, file_name: str, size: tuple[int, int], boxes: NDArray, scores: NDArray, labels: NDArray) -> None:
        """Add the detections of an image.

        Args:
            file_name: Of the image, as in the annotation file if there is one.
            size: Height and width in pixels.
            boxes: (N, 4), xyxy in pixels.
            scores: (N,).
            labels: (N,), indices of classes.

        Raises:
            InputError: The annotation file does not have this image.
        """
        image_id = len(self.content['images']) + 1
        if self.image_ids is not None:
            if file_name not in self.image_ids:
                raise InputError(f'{file_name}: is not among the images of the annotation file')
            image_id = self.image_ids[file_name]
        height, width = size
        self.content['images'].append({'id': image_id, 'file_name': file_name, 'width': width, 'height': height})
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist()):
            self.content['annotations'].append(
                {
                    'id': len(self.content['annotations']) + 1,
                    'image_id': image_id,
                    'category_id': self.category_ids[label],
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': 0,
                    'score': score,
                }
            )


def class_color(label: int) -> tuple[int, int, int]:
    """Colour of a class, BGR: bright, the same in every run, and unlike those of the classes before it."""
    hue = (0.58 + label * GOLDEN_RATIO) % 1
    value = 255 if label % 2 == 0 else 215
    pixel = np.array([[[round(hue * 179), 225, value]]], np.uint8)
    return tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist())


def overlap(rectangle: NDArray, others: NDArray) -> float:
    """Area that one rectangle (4,) shares with others (N, 4), xyxy, in pixels, summed."""
    sides = np.minimum(rectangle[2:], others[:, 2:]) - np.maximum(rectangle[:2], others[:, :2])
    return float(sides.clip(min=0).prod(1).sum())


def place_label(
    box: NDArray, size: tuple[int, int], canvas: tuple[int, int], boxes: NDArray, taken: NDArray
) -> NDArray:
    """Find room for a label: beside its box, in the picture, off other labels, and then off other boxes.

    Args:
        box: (4,), what the label belongs to; all xyxy in pixels.
        size: Width and height of the label.
        canvas: Width and height of the picture.
        boxes: (N, 4), all boxes.
        taken: (M, 4), the labels so far.

    Returns:
        (4,), the label. It lies within its own box only where that leaves no room around it.
    """
    x1, y1, x2, y2 = box
    width, height = size
    spots = [
        (x1, y1 - height),  # above, flush left
        (x1, y2),  # below
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x2, y1),  # to the right
        (x1 - width, y1),  # to the left
        (x2, y2 - height),
        (x1 - width, y2 - height),
        (x1, y1),  # within
        (x2 - width, y2 - height),
        ((x1 + x2 - width) / 2, (y1 + y2 - height) / 2),
    ]
    limit = np.maximum(np.array(canvas) - size, 0)
    best, best_cost = None, np.inf
    for rank, spot in enumerate(spots):
        corner = np.clip(spot, 0, limit)
        rectangle = np.concatenate([corner, corner + size])
        # A label on another label can be read no more; one on its own box hides what it names.
        cost = 20 * overlap(rectangle, taken) + 4 * overlap(rectangle, box[None]) + overlap(rectangle, boxes)
        cost += rank + np.abs(corner - spot).sum()
        if cost < best_cost:
            best, best_cost = rectangle, cost
    return best


def draw_detections(
    image: NDArray[np.uint8],
    boxes: NDArray,
    scores: NDArray | None,
    labels: NDArray,
    classes: Sequence[str],
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> NDArray[np.uint8]:
    """Draw boxes with labels whose size follows that of the picture.

    Args:
        image: (H, W, 3), BGR.
        boxes: (N, 4), xyxy in pixels.
        scores: (N,), or None: there are none to show.
        labels: (N,), indices of classes.
        classes: Names of the classes.
        colors: BGR of each class; None: :func:`class_color`.

    Returns:
        A new picture. It is a whole number of times as large as an image that is too small for readable labels.
    """
    zoom = min(8, max(1, -(-MIN_CANVAS // max(image.shape[:2]))))
    canvas = np.repeat(np.repeat(image, zoom, 0), zoom, 1)
    height, width = canvas.shape[:2]
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    visible = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)  # what lies beyond the edge is clipped to a line
    boxes, labels = boxes[visible] * zoom, np.asarray(labels)[visible]
    scores = None if scores is None else np.asarray(scores)[visible]
    line = max(1, round(min(height, width) / 240))
    color_of = class_color if colors is None else colors.__getitem__
    font_scale = max(0.4, min(height, width) / 1000)
    thickness = max(1, round(font_scale * 1.2))

    # Small boxes are drawn over large ones, which would hide them.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind='stable')
    for i in order:
        corners = [tuple(corner) for corner in boxes[i].round().astype(int).reshape(2, 2).tolist()]
        cv2.rectangle(canvas, *corners, color_of(int(labels[i])), line)

    outer = boxes + np.array([-line, -line, line, line]) / 2
    taken = np.zeros((0, 4))
    for i in range(len(boxes)):
        text = classes[labels[i]] if scores is None else f'{classes[labels[i]]} {scores[i]:.2f}'
        (text_width, text_height), baseline = cv2.getTextSize(text, FONT, font_scale, thickness)
        margin = max(2, text_height // 5)
        size = (text_width + 2 * margin, text_height + baseline + margin)
        x1, y1, x2, y2 = place_label(outer[i], size, (width, height), outer, taken).round().astype(int).tolist()
        taken = np.concatenate([taken, [[x1, y1, x2, y2]]])
        color = color_of(int(labels[i]))
        luminance = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
        ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        origin = (x1 + margin, y2 - baseline)
        cv2.putText(canvas, text, origin, FONT, font_scale, ink, thickness, cv2.LINE_AA)
    return canvas
