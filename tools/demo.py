"""The whole way in minutes, on a CPU: make a detection set, train YOLOv7-Tiny, evaluate it, and report on the run.

The set is made on the spot, with a fixed seed, from the real handwritten digits and the real photographs that
scikit-learn ships. Held out are other digits, on another part of the photographs.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

ROOT = Path(__file__).resolve().parents[1]
WORK_DIR = Path('work_dirs/demo')
CONFIG = 'configs/yolov7/yolov7_tiny_demo_digits.py'
IMAGE_SIZE = 160
NUM_IMAGES = {'train': 640, 'val': 80}
STEPS = 4


def say(step: int, text: str) -> None:
    print(f'\n=== Step {step} of {STEPS}: {text}', flush=True)


def run(*command: str) -> None:
    """Run one of the project's tools, showing what is run."""
    print('$ python ' + ' '.join(command), flush=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if result.returncode:
        sys.exit(
            f'\nThe demo stopped: the command above failed with status {result.returncode}; the reason is in the lines '
            'before this one.\nOnce that is mended, `make demo` goes on from the start; what is installed stays.'
        )


def paste_digit(image: np.ndarray, digit: np.ndarray, x: int, y: int, color: np.ndarray) -> None:
    """Blend ink into an image where a digit, (S, S) in [0, 1], has any."""
    size = len(digit)
    patch = image[y : y + size, x : x + size]
    patch[:] = (patch * (1 - digit[..., None]) + color * digit[..., None]).astype(np.uint8)


def make_image(rng: np.random.Generator, photos: list[np.ndarray], digits: list[tuple]) -> tuple[np.ndarray, list]:
    """Paste up to six digits that do not touch on a photograph's crop; returns it and their (label, x, y, w, h)."""
    photo = photos[rng.integers(len(photos))]
    side = rng.integers(IMAGE_SIZE // 2, min(photo.shape[:2]))
    top, left = rng.integers(photo.shape[0] - side + 1), rng.integers(photo.shape[1] - side + 1)
    image = cv2.resize(photo[top : top + side, left : left + side], (IMAGE_SIZE, IMAGE_SIZE))
    boxes = []
    for _ in range(rng.integers(1, 7)):
        pixels, label = digits[rng.integers(len(digits))]
        size = int(rng.integers(24, 57))
        x, y = rng.integers(0, IMAGE_SIZE - size + 1, 2).tolist()
        if any(abs(x - bx) < max(size, bs) and abs(y - by) < max(size, bs) for _, bx, by, bs, _ in boxes):
            continue
        digit = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        # Bright ink on dark ground, dark ink on bright ground.
        bright = image[y : y + size, x : x + size].mean() < 128
        paste_digit(image, digit, x, y, rng.integers(200, 256, 3) if bright else rng.integers(0, 56, 3))
        boxes.append((int(label), x, y, size, size))
    return image, boxes


def make_data(folder: Path) -> None:
    """Write the set in COCO's form. Digits and photographs are split first, so that the splits share neither."""
    rng = np.random.default_rng(0)
    source = load_digits()
    digits = [(image / 16.0, label) for image, label in zip(source.images.astype(np.float32), source.target)]
    order = rng.permutation(len(digits))
    photos = [photo[..., ::-1] for photo in load_sample_images().images]
    split = photos[0].shape[1] * 7 // 10
    parts = {
        'train': ([photo[:, :split] for photo in photos], [digits[i] for i in order[:1400]]),
        'val': ([photo[:, split:] for photo in photos], [digits[i] for i in order[1400:]]),
    }
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    for part, (part_photos, part_digits) in parts.items():
        images, annotations = [], []
        for i in range(NUM_IMAGES[part]):
            image, boxes = make_image(rng, part_photos, part_digits)
            name = f'{part}_{i:04d}.jpg'
            cv2.imwrite(str(folder / 'images' / name), image)
            images.append({'id': i, 'file_name': name, 'width': IMAGE_SIZE, 'height': IMAGE_SIZE})
            for label, *box in boxes:
                record = {'id': len(annotations) + 1, 'image_id': i, 'category_id': label, 'iscrowd': 0}
                annotations.append(record | {'bbox': box, 'area': box[2] * box[3]})
        categories = [{'id': i, 'name': str(i)} for i in range(10)]
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        (folder / 'annotations' / f'{part}.json').write_text(json.dumps(content))
        print(f'{part}: {len(images)} images, {len(annotations)} digits', flush=True)


def make_page(pictures: Path, target: Path, count: int = 9) -> None:
    """Put the first pictures on one page."""
    tiles = [cv2.imread(str(path)) for path in sorted(pictures.glob('*.jpg'))[:count]]
    columns = round(count**0.5)
    cv2.imwrite(str(target), cv2.vconcat([cv2.hconcat(tiles[i : i + columns]) for i in range(0, count, columns)]))


def main() -> None:
    start = time.time()
    work_dir = ROOT / WORK_DIR
    say(1, "make a detection set from scikit-learn's handwritten digits and photographs")
    make_data(work_dir / 'data')
    say(2, 'train YOLOv7-Tiny at half width from random weights; the line of progress says how long it takes')
    run('tools/train.py', CONFIG, '--work-dir', str(WORK_DIR), '--cfg-options', 'randomness.seed=0')
    say(3, "evaluate the last checkpoint with COCO's metric on images it has not seen, and draw its detections")
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    run('tools/test.py', CONFIG, checkpoint, '--work-dir', str(WORK_DIR / 'test'), '--show-dir', 'pictures')
    pictures = max((work_dir / 'test').glob('*/pictures'))
    map50 = json.loads(next(pictures.parent.glob('*.json')).read_text())['coco/bbox_mAP_50']
    make_page(pictures, work_dir / 'detections.png')
    say(4, 'report on the run: curves, mistakes, and what the model sees')
    run('tools/report.py', str(WORK_DIR))
    print(
        f'\nDone in {(time.time() - start) / 60:.1f} minutes: mAP50 {map50:.3f} on held-out images.\n'
        f'  {WORK_DIR}/report.html      the run on one page, for your browser\n'
        f'  {WORK_DIR}/detections.png   what is there (left of each pair) and what was found (right)\n'
        f'  {pictures.relative_to(ROOT)}/   a picture of each held-out image\n'
        'Next, a folder of your own, images with their labels:\n'
        f'  {Path(sys.executable).relative_to(ROOT) if Path(sys.executable).is_relative_to(ROOT) else "python"}'
        ' tools/train.py configs/yolov7/yolov7_tiny_1xb8-40e_bccd.py --data YOUR_FOLDER'
    )


if __name__ == '__main__':
    main()
