"""YOLO's labels: what a line means, which image it is of, and what classes are called."""

import re

import cv2
import numpy as np
import pytest
from folder_cases import CLASSES, check, photos, read, write_photo, write_text

from yolov7_simple.runtime.errors import InputError

TRAIN, VAL = photos(5), photos(3, 5)
YAML = f'train: images/train\nval: images/val\nnames: {list(CLASSES)}\n'
FIRST = 'labels/train/photo_00.txt'


def yolo_line(photo, box, classes=CLASSES):
    name, x1, y1, x2, y2 = box
    w, h = photo.width, photo.height
    center = f'{(x1 + x2) / 2 / w:.6f} {(y1 + y2) / 2 / h:.6f}'
    return f'{classes.index(name)} {center} {(x2 - x1) / w:.6f} {(y2 - y1) / h:.6f}'


def polygon_line(photo, box):
    name, x1, y1, x2, y2 = box
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    return f'{CLASSES.index(name)} ' + ' '.join(f'{x / photo.width:.6f} {y / photo.height:.6f}' for x, y in corners)


def write_yolo(folder, splits=None, yaml=YAML, line=yolo_line, suffix='.jpg'):
    """images/SPLIT, labels/SPLIT and data.yaml."""
    for split, part in (splits or {'train': TRAIN, 'val': VAL}).items():
        for photo in part:
            write_photo(photo, folder / 'images' / split / f'{photo.stem}{suffix}')
            lines = [line(photo, box) for box in photo.boxes]
            write_text(folder / 'labels' / split / f'{photo.stem}.txt', ''.join(f'{one}\n' for one in lines))
    if yaml:
        write_text(folder / 'data.yaml', yaml)
    return folder


CLASSES_TXT = ('classes.txt', '\n'.join(CLASSES))


def write_flat(folder, names=CLASSES_TXT):
    """One folder of images, one of labels, without a split."""
    for photo in TRAIN:
        write_photo(photo, folder / 'images' / f'{photo.stem}.jpg')
        lines = ''.join(f'{yolo_line(photo, box)}\n' for box in photo.boxes)
        write_text(folder / 'labels' / f'{photo.stem}.txt', lines)
    write_text(folder / names[0], names[1])
    return folder


def edit(folder, pattern, function):
    """Rewrite label files, bytes to bytes."""
    paths = sorted(folder.glob(pattern))
    assert paths
    for path in paths:
        path.write_bytes(function(path.read_bytes()))
    return folder


def test_boxes_of_ultralytics(tmp_path):
    data = check(write_yolo(tmp_path / 'data'), train=TRAIN, val=VAL)
    assert data.form == 'YOLO' and not data.findings.repairs and not data.findings.unused


LINES = {
    'class as 0.0': lambda text: re.sub(rb'(?m)^(\d)', rb'\1.0', text),
    'commas': lambda text: text.replace(b' ', b','),
    'byte-order mark': lambda text: b'\xef\xbb\xbf' + text,
    'carriage returns, blanks, blank lines': lambda text: b'\r\n' + text.replace(b'\n', b' \r\n') + b'\r\n\r\n',
    'tabs and exponents': lambda text: re.sub(
        rb' ([\d.]+)', lambda match: b'\t%E' % float(match[1]), text
    ),
    'no newline at the end': bytes.rstrip,
}  # fmt: skip


@pytest.mark.parametrize('kind', LINES)
@pytest.mark.parametrize('which', ['labels/train/*.txt', FIRST])
def test_lines_that_say_the_same(tmp_path, kind, which):
    check(edit(write_yolo(tmp_path / 'data'), which, LINES[kind]), train=TRAIN, val=VAL)


@pytest.mark.parametrize(
    ('line', 'yaml'),
    [
        (polygon_line, YAML),
        (lambda photo, box: polygon_line(photo, box) if box[1] % 2 else yolo_line(photo, box), YAML),
        (lambda photo, box: f'{yolo_line(photo, box)} 0.87', YAML),
        (lambda photo, box: yolo_line(photo, box) + ' 0.1 0.2 2' * 4, f'{YAML}kpt_shape: [4, 3]\n'),
        (lambda photo, box: yolo_line(photo, box) + ' 0.1 0.2 2' * 4, YAML),
        (lambda photo, box: yolo_line(photo, box) + ' 0.1 0.2' * 3, f'{YAML}kpt_shape: [3, 2]\n'),
        (
            lambda photo, box: ' '.join(
                f'{float(part) * side:g}'
                for part, side in zip(yolo_line(photo, box).split(), (1, 96, 64, 96, 64))
            ),
            YAML,
        ),
    ],
    ids=['polygons', 'boxes and polygons', 'scores', 'pose', 'pose by its flags', 'pose of pairs', 'pixels'],
)  # fmt: skip
def test_what_the_numbers_are(tmp_path, line, yaml):
    check(write_yolo(tmp_path / 'data', line=line, yaml=yaml), train=TRAIN, val=VAL)


def test_a_pose_without_kpt_shape_could_be_a_polygon(tmp_path):
    def pose(photo, box):
        x, y = (float(part) for part in yolo_line(photo, box).split()[1:3])
        return f'{yolo_line(photo, box)} {x + 0.01} {y + 0.01} {x} {y}'

    with pytest.raises(InputError, match='kpt_shape'):
        read(write_yolo(tmp_path / 'data', line=pose))


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('cat 0.5 0.5 0.1 0.1', 'line 1: not a label of YOLO'),
        ('0 0.5 0.5 0.1', 'line 1: not a label of YOLO'),
        ('0 0.5 0.5 0.1 abc', 'line 1: not a label of YOLO'),
        ('0 0.5 nan 0.1 0.1', 'line 1: a number that is not finite'),
        ('7 0.5 0.5 0.1 0.1', 'line 1: class 7, but the classes are 0 to 2: cat, dog, owl'),
        ('-1 0.5 0.5 0.1 0.1', 'line 1: class -1'),
        ('1.5 0.5 0.5 0.1 0.1', 'line 1: not a label of YOLO'),
        ('0 0.5 0.5 -0.1 0.1', 'line 1: a box with a negative side'),
        ('0 0.5 0.5 0.1 0.1 0.3 0.4 0.5', 'line 1: 7 numbers are neither'),
        ('0 320 240 50 60', 'line 1: numbers of a box beyond 1'),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, message):
    edit(write_yolo(tmp_path / 'data'), FIRST, lambda text: f'{line}\n'.encode() + text)
    with pytest.raises(InputError, match=f'{re.escape(FIRST)}, {re.escape(message)}'):
        read(tmp_path / 'data')


NAMES = {
    'quoted numbers': "names: {'2': owl, '0': cat, '1': dog}",
    'numbers': 'names:\n  2: owl\n  0: cat\n  1: dog',
    'blanks': "names: ['cat ', ' dog', owl]",
    'one text': "names: 'cat, dog, owl'",
}


@pytest.mark.parametrize('kind', NAMES)
def test_names_in_data_yaml(tmp_path, kind):
    check(write_yolo(tmp_path / 'data', yaml=f'{NAMES[kind]}\n'), train=TRAIN, val=VAL)


def test_eleven_names_are_sorted_by_number(tmp_path):
    names = [*CLASSES, *(f'kind{i}' for i in range(3, 12))]
    yaml = 'names:\n' + ''.join(f"  '{i}': {name}\n" for i, name in sorted(enumerate(names), key=lambda x: str(x[0])))
    check(write_yolo(tmp_path / 'data', yaml=yaml), classes=names, train=TRAIN, val=VAL)


def test_yes_no_and_on_are_texts(tmp_path):
    assert read(write_yolo(tmp_path / 'data', yaml='names: [yes, no, on]\n')).classes == ('yes', 'no', 'on')


def test_names_in_a_file_that_data_yaml_names(tmp_path):
    folder = write_yolo(tmp_path / 'data', yaml='train: images/train\nval: images/val\nnames: data/my.names\n')
    write_text(folder / 'data' / 'my.names', '\n'.join(CLASSES))
    check(folder, train=TRAIN, val=VAL)


@pytest.mark.parametrize('name', ['classes.txt', 'obj.names', 'custom.names', '_darknet.labels', 'labels/classes.txt'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_files_of_names(tmp_path, name, newline):
    check(write_flat(tmp_path / 'data', (name, newline.join((*CLASSES, '')))), everything=TRAIN)


@pytest.mark.parametrize(
    ('yaml', 'message'),
    [
        ('names: [cat, cat, owl]\n', 'must differ and not be empty, got cat'),
        ('names: [cat, "", owl]\n', 'must differ and not be empty'),
        ('names: {0: cat, 2: dog, 3: owl}\n', 'must have each number from 0 on'),
        ('names: {a: cat, b: dog}\n', 'must be the numbers'),
        (b"names: ['ch\xe4t', dog, owl]\n", 'cannot be read as YAML in UTF-8'),
        ('names: [cat\n', 'cannot be read as YAML'),
        ('', 'no names of classes'),
    ],
)
def test_names_that_cannot_be_used(tmp_path, yaml, message):
    folder = write_yolo(tmp_path / 'data', yaml='')
    write_text(folder / 'data.yaml', yaml)
    with pytest.raises(InputError, match=message):
        read(folder)


def test_lists_of_names_that_differ_are_refused(tmp_path):
    folder = write_flat(tmp_path / 'data')
    write_text(folder / 'labels' / 'classes.txt', 'dog\ncat\nowl\n')
    with pytest.raises(InputError, match=r'classes\.txt and labels/classes\.txt have other names'):
        read(folder)


@pytest.mark.parametrize(
    'made',
    [
        'labels/photo_00.png',
        'masks/photo_00.png',
        'vis/photo_00.jpg',
        'runs/images/photo_00.jpg',
        'thumbs/photo_00.jpg',
    ],
)
def test_a_mask_or_a_drawing_is_not_the_image(tmp_path, made):
    folder = write_flat(tmp_path / 'data')
    (folder / made).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / made), np.zeros((64, 96, 3), np.uint8))
    if made.startswith('runs'):
        (folder / 'runs' / 'weights').mkdir()
    check(folder, everything=TRAIN)


def test_two_images_of_a_label_are_both_named(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    write_photo(VAL[0], folder / 'images' / 'train' / 'photo_00.png')
    with pytest.raises(InputError, match=r'photo_00\.txt fits several images: .*photo_00\.jpg and .*photo_00\.png'):
        read(folder)


@pytest.mark.parametrize('other', ['labels_old', 'predictions/labels', 'backup'])
def test_two_labels_of_an_image_are_both_named(tmp_path, other):
    folder = write_flat(tmp_path / 'data')
    write_text(folder / other / 'photo_00.txt', '0 0.5 0.5 0.2 0.2\n')
    with pytest.raises(InputError, match=rf'has two label files, .*{other}.*photo_00|{other}/photo_00'):
        read(folder)


def test_images_of_the_same_names_in_two_splits(tmp_path):
    val = [photo.renamed(other.stem) for photo, other in zip(VAL, TRAIN)]
    check(write_yolo(tmp_path / 'data', {'train': TRAIN, 'val': val}), train=TRAIN, val=val)


def test_a_label_of_one_split_is_not_of_an_image_of_the_other(tmp_path):
    val = [photo.renamed(other.stem) for photo, other in zip(VAL, TRAIN)]
    folder = write_yolo(tmp_path / 'data', {'train': TRAIN, 'val': val})
    (folder / 'images' / 'train' / 'photo_00.jpg').unlink()
    (folder / 'labels' / 'val' / 'photo_00.txt').unlink()
    val[0] = val[0]._replace(boxes=())
    data = check(folder, train=TRAIN[1:], val=val)
    assert data.findings.unused == {'labels without an image': [FIRST]}


@pytest.mark.parametrize('suffix', ['.JPG', '.jpeg', '.png', '.bmp', '.webp', '.tif'])
def test_images_of_other_suffixes(tmp_path, suffix):
    check(write_yolo(tmp_path / 'data', suffix=suffix), train=TRAIN, val=VAL)


def test_empty_labels_and_images_without_labels_are_background(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    write_text(folder / FIRST, '')
    (folder / 'labels' / 'train' / 'photo_01.txt').unlink()
    train = [photo._replace(boxes=()) if i < 2 else photo for i, photo in enumerate(TRAIN)]
    data = check(folder, train=train, val=VAL)
    assert any('1 images have no label file' in remark for remark in data.findings.remarks)


def test_captions_and_readmes_are_no_labels(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    for photo in TRAIN:
        write_text(folder / 'text' / 'train' / f'{photo.stem}.txt', 'two animals on a lawn\n')
    write_text(folder / 'README.txt', 'made by hand\n')
    data = check(folder, train=TRAIN, val=VAL)
    assert len(data.findings.unused['text files that are no labels of YOLO']) == len(TRAIN) + 1
