"""YOLO's labels: what a line means, which image and which split it is of, and what classes are called."""

from folder_cases import CLASSES, check, photos, write_photo, write_text

TRAIN, VAL, TEST = photos(5), photos(3, 5), photos(2, 8)


def yolo_line(photo, box, classes=CLASSES):
    name, x1, y1, x2, y2 = box
    w, h = photo.width, photo.height
    return (
        f'{classes.index(name)} {(x1 + x2) / 2 / w:.6f} {(y1 + y2) / 2 / h:.6f} {(x2 - x1) / w:.6f} {(y2 - y1) / h:.6f}'
    )


def write_yolo(
    folder, splits=None, yaml=f'train: images/train\nval: images/val\nnames: {list(CLASSES)}\n', line=yolo_line
):
    """images/SPLIT, labels/SPLIT and data.yaml."""
    for split, part in (splits or {'train': TRAIN, 'val': VAL}).items():
        for photo in part:
            write_photo(photo, folder / 'images' / split / f'{photo.stem}.jpg')
            lines = [line(photo, box) for box in photo.boxes]
            write_text(folder / 'labels' / split / f'{photo.stem}.txt', ''.join(f'{one}\n' for one in lines))
    if yaml:
        write_text(folder / 'data.yaml', yaml)


def test_ultralytics(tmp_path):
    write_yolo(tmp_path / 'data')
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert data.form == 'YOLO' and not data.findings.repairs
