"""Time JPEG decoders on real images, and compare their pixels with OpenCV's, in one run on one core.

    python tools/benchmarks/benchmark_decoders.py FOLDER [FOLDER ...] [--images 40] [--turbojpeg LIBRARY]

Each folder is searched for *.jpg. Images of 12 megapixels are made by enlarging some of them. Decoders that are not
installed are left out: simplejpeg, PyTurboJPEG (with a libturbojpeg), pyvips with pyvips-binary, imagecodecs. They take
turns on each image. The last table has the passes over a sample's pixels, next to a copy of the bytes they touch.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from yolov7_simple.datasets.headers import image_size, read_header
from yolov7_simple.datasets.loading import REDUCED_FLAGS
from yolov7_simple.datasets.mosaic import RandomHSVGain

ROUNDS = 5
LARGE = (4000, 3000)
SIZE = 640
Decoder = Callable[[bytes], NDArray]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='+', type=Path, help='searched for *.jpg')
    parser.add_argument('--images', default=40, type=int, help='of each folder; default: 40')
    parser.add_argument('--turbojpeg', help='libturbojpeg.so, if PyTurboJPEG does not find it')
    return parser.parse_args()


def optional(name: str) -> object | None:
    """Import a package, if it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f'{name} is not installed', file=sys.stderr)
        return None


def decoders(turbojpeg_library: str | None) -> dict[tuple[str, int], Decoder]:
    """Decoders to (height, width, 3) BGR, by name and reduction; OpenCV's come first."""

    def pillow(data: bytes, reduction: int) -> NDArray:
        with Image.open(io.BytesIO(data)) as image:
            if reduction > 1:
                image.draft('RGB', (image.width // reduction, image.height // reduction))
            return np.asarray(image.convert('RGB'))[..., ::-1]

    found: dict[str, Callable[[bytes, int], NDArray]] = {
        'OpenCV': lambda data, reduction: cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED_FLAGS[reduction]),
        'Pillow': pillow,
    }
    if simplejpeg := optional('simplejpeg'):

        def simple(data: bytes, reduction: int, fast: bool = False) -> NDArray:
            least = {}
            if reduction > 1:  # the smallest size that is not below this one
                height, width = simplejpeg.decode_jpeg_header(data)[:2]
                least = {'min_height': -(-height // reduction), 'min_width': -(-width // reduction)}
            return simplejpeg.decode_jpeg(data, 'BGR', fastdct=fast, **least)

        found['simplejpeg'] = simple
        found['simplejpeg, fastdct'] = lambda data, reduction: simple(data, reduction, True)
    if turbojpeg := optional('turbojpeg'):
        try:
            turbo = turbojpeg.TurboJPEG(turbojpeg_library)
            found['PyTurboJPEG'] = lambda data, reduction: turbo.decode(data, scaling_factor=(1, reduction))
        except (RuntimeError, OSError) as error:
            print(f'PyTurboJPEG: {error}', file=sys.stderr)
    if pyvips := optional('pyvips'):

        def vips(data: bytes, reduction: int) -> NDArray:
            image = pyvips.Image.jpegload_buffer(data, shrink=reduction, access='sequential')
            return image.numpy()[..., ::-1]

        found['libvips'] = vips
    by_reduction = {
        (name, reduction): lambda data, decode=decode, reduction=reduction: decode(data, reduction)
        for name, decode in found.items()
        for reduction in REDUCED_FLAGS
    }
    if imagecodecs := optional('imagecodecs'):
        by_reduction['imagecodecs', 1] = lambda data: imagecodecs.jpeg8_decode(data)[..., ::-1]
    return by_reduction


def read_images(folder: Path, count: int) -> list[bytes]:
    """Read JPEG files of three channels that no EXIF tag turns: not all decoders would."""
    images = []
    for path in sorted(folder.rglob('*.jpg')):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            plain = image.mode == 'RGB'
        header = read_header(str(path), data)
        if plain and header and header.orientation == 1:
            images.append(data)
        if len(images) == count:
            break
    if not images:
        sys.exit(f'No JPEG images of three channels in {folder}')
    return images


def enlarge(data: bytes) -> bytes:
    """Make a photograph of 12 megapixels."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.resize(image, LARGE, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def milliseconds(function: Callable, *args: object) -> tuple[float, object]:
    """Processor time of one call, and its result."""
    start = time.process_time()
    result = function(*args)
    return (time.process_time() - start) * 1e3, result


def compare_decoders(name: str, images: list[bytes], methods: dict[tuple[str, int], Decoder]) -> None:
    """Print a row for each decoder: medians at each reduction, and pixel differences from OpenCV."""
    times: dict[tuple[str, int], list[float]] = {key: [] for key in methods}
    differences: dict[str, list[tuple[int, float] | None]] = {key: [] for key, _ in methods}
    for turn in range(ROUNDS):
        for data in images:
            references = {}
            for (decoder, reduction), decode in methods.items():
                spent, pixels = milliseconds(decode, data)
                times[decoder, reduction].append(spent)
                if turn == 0:
                    reference = references.setdefault(reduction, pixels)
                    same_shape = pixels.shape == reference.shape
                    difference = cv2.absdiff(np.ascontiguousarray(pixels), reference) if same_shape else None
                    differences[decoder].append((int(difference.max()), difference.mean()) if same_shape else None)
    print(f'\n{name}, {len(images)} images\n')
    print('| decoder | ' + ' | '.join(f'1/{r}' for r in REDUCED_FLAGS) + ' | largest difference | mean | other size |')
    print('| --- ' + '| ---: ' * (len(REDUCED_FLAGS) + 3) + '|')
    for decoder, found in differences.items():
        cells = [
            f'{statistics.median(times[decoder, r]):.2f} ms' if (decoder, r) in times else '' for r in REDUCED_FLAGS
        ]
        known = [pair for pair in found if pair]
        largest, mean = max(pair[0] for pair in known), statistics.mean(pair[1] for pair in known)
        cells += [str(largest), f'{mean:.2f}', f'{found.count(None) / len(found):.0%}']
        print(f'| {decoder} | ' + ' | '.join(cells) + ' |')
    checks = {'check of the header': image_size, 'the same with Pillow': read_header}
    for check, function in checks.items():
        spent = statistics.median(milliseconds(function, '', data)[0] for _ in range(ROUNDS) for data in images)
        print(f'{check}: {spent:.3f} ms')


def compare_passes(photo: bytes) -> None:
    """Print the passes over a sample's pixels, and how long a copy of the bytes that they read and write takes."""
    image = cv2.resize(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR), (SIZE, SIZE))
    four, hsv = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA), cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    planes, other, gain = np.empty((3, SIZE, SIZE), np.uint8), image.copy(), RandomHSVGain()
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), 7, 1.1)
    gains = np.diag([1.01, 1.3, 0.8])
    passes = {  # and bytes of a pixel, read and written
        'fill': (3, lambda: np.full((SIZE, SIZE, 3), 114, np.uint8)),
        'BGR to BGRA': (7, lambda: cv2.cvtColor(image, cv2.COLOR_BGR2BGRA, dst=four)),
        'BGRA to BGR': (7, lambda: cv2.cvtColor(four, cv2.COLOR_BGRA2BGR, dst=other)),
        'warp of 4 channels': (8, lambda: cv2.warpAffine(four, turn, (SIZE, SIZE))),
        'mixup': (9, lambda: cv2.addWeighted(image, 0.5, other, 0.5, 0, dst=other)),
        'BGR to HSV': (6, lambda: cv2.cvtColor(image, cv2.COLOR_BGR2HSV, dst=other)),
        'gains': (6, lambda: cv2.transform(hsv, gains, dst=other)),
        'HSV to BGR': (6, lambda: cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=other)),
        'planes': (6, lambda: cv2.split(image, list(planes))),
        'RandomHSVGain in all': (24, lambda: gain.transform({'img': image})),
    }
    times: dict[str, list[float]] = {name: [] for name in ['copy', *passes]}
    source = np.ones(SIZE * SIZE * 3, np.uint8)
    target = source.copy()
    for _ in range(200):
        times['copy'].append(milliseconds(np.copyto, target, source)[0])
        for name, (_, function) in passes.items():
            times[name].append(milliseconds(function)[0])
    copy = statistics.median(times['copy']) / 6  # of a byte read or written, for each pixel
    print(f'\nPasses over {SIZE} x {SIZE} pixels\n\n| pass | time | a copy of its bytes | times that |')
    print('| --- | ---: | ---: | ---: |')
    for name, (count, _) in passes.items():
        median = statistics.median(times[name])
        print(f'| {name} | {median:.2f} ms | {copy * count:.2f} ms | {median / copy / count:.1f} |')


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(0)
    methods = decoders(args.turbojpeg)
    sets = {folder.name: read_images(folder, args.images) for folder in args.folders}
    first = next(iter(sets.values()))
    sets['12 megapixels'] = [enlarge(data) for data in first[:3]]
    for name, images in sets.items():
        compare_decoders(name, images, methods)
    compare_passes(first[0])


if __name__ == '__main__':
    main()
