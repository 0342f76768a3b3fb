"""Watch the memory of a detection run: a video of 3,000 frames, and a folder of 10,000 images.

    python tests/manual/detect_memory.py [--frames 3000] [--images 10000]

The detector is a stub that finds 900 boxes at once, 20 of them worth drawing; all else is what tools/detect.py does. It
prints the memory that the process holds, as it goes, and ends with status 1 if it grows by more than 40 MB after the
first fifth.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from yolov7_simple.runtime import Detections
from yolov7_simple.runtime.detect import DetectionRun
from yolov7_simple.runtime.outputs import ResultFiles
from yolov7_simple.runtime.sources import find_sources

MOST_GROWTH = 40.0  # MB
SIZE = (640, 480)


class Stub:
    """A detector that takes no time."""

    classes = ('one', 'other')
    score_threshold, iou_threshold = 0.001, 0.65

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        corners = random.uniform(0, 400, (900, 2))
        boxes = np.concatenate([corners, corners + random.uniform(10, 80, (900, 2))], 1).astype(np.float32)
        scores = np.full(900, 0.002, np.float32)
        scores[:20] = 0.9
        self.found = Detections(boxes, scores, random.integers(0, 2, 900))

    def __call__(self, images):
        return [self.found for _ in images]


def memory() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def watch(name: str, inputs: list[str], out: Path, count: int) -> float:
    """Detect in some inputs; returns by how many MB the memory grew after the first fifth."""
    run = DetectionRun(Stub(), ResultFiles(out))
    seen: dict[int, float] = {}
    for _ in run.run(find_sources(inputs)[0]):
        fifth = 5 * run.results.num_images // count
        if fifth not in seen:
            seen[fifth] = memory()
    seen[5] = memory()
    print(f'{name}: {" ".join(f"{value:.0f}" for value in seen.values())} MB from fifth to fifth')
    print(run.summary())
    print(f'{run.files.json.stat().st_size / 1e6:.1f} MB of JSON', flush=True)
    return max(seen.values()) - seen[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--frames', type=int, default=3000)
    parser.add_argument('--images', type=int, default=10000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8), SIZE)
        writer = cv2.VideoWriter(str(folder / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25, SIZE)
        for i in range(args.frames):
            writer.write(np.roll(frame, 3 * i, 1))
        writer.release()
        (folder / 'images').mkdir()
        cv2.imwrite(str(folder / 'first.jpg'), frame)
        for i in range(args.images):
            os.link(folder / 'first.jpg', folder / 'images' / f'{i:05d}.jpg')
        grown = [
            watch('video', [str(folder / 'video.mp4')], folder / 'of_video', args.frames),
            watch('images', [str(folder / 'images')], folder / 'of_images', args.images),
        ]
    print(f'grown after the first fifth: {grown[0]:.0f} MB and {grown[1]:.0f} MB')
    return int(max(grown) > MOST_GROWTH)


if __name__ == '__main__':
    sys.exit(main())
