"""The doctor: each check fires on a set made for it and not on a clean one, and one that fails is an error."""

import importlib
import json
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from folder_cases import CLASSES, photos, write_photo, write_text
from mmengine.config import Config
from test_yolo import write_yolo

from yolov7_simple.doctor import checks, doctor
from yolov7_simple.doctor.checks import MAX_ASPECT, MAX_TINY_SHARE, MIN_BORDER_BOXES, equal_pairs
from yolov7_simple.doctor.doctor import box_checks, pixel_checks, run_checks
from yolov7_simple.doctor.doctor_page import choose_images
from yolov7_simple.doctor.image_sets import InputSize, input_size, make_set
from yolov7_simple.doctor.pixels import MAX_BITS, Pixels, find_near, read_all_pixels, read_pixels
from yolov7_simple.own_data.folder import read_own_data
from yolov7_simple.runtime.errors import InputError

SIZE = InputSize('config.py', (320, 320), 8.0)
SMALL_CONFIG = ROOT / 'configs/yolov7/yolov7_tiny_1xb8-40e_bccd.py'


def some_set(name='train', boxes=None, paths=None, size=(320, 200)):
    """A set of 20 images with two good boxes each, of two classes; ``boxes``: image -> (label, x1, y1, x2, y2)."""
    count = len(paths) if paths else 20
    good = [(0, 20, 30, 90, 120), (1, 100, 60, 180, 110)]
    rows = [[(*box, 0) for box in (boxes or {}).get(i, good)] for i in range(count)]
    images = [((paths or {}).get(i, f'{name}/{i}.jpg'), *size) for i in range(count)]
    return make_set(name, f'{name}.json', ('cat', 'dog'), images, rows)


def found(*sets, pixels=None):
    """Check -> problem, of which there is one."""
    named = {**box_checks([SIZE]), **(pixel_checks(pixels) if pixels else {})}
    problems = run_checks(named, sets)
    assert len({problem.check for problem in problems}) == len(problems), list(map(str, problems))
    return {problem.check: problem for problem in problems}


def test_a_clean_set_has_no_problem():
    assert not found(some_set(), some_set('val'))


@pytest.mark.parametrize(
    ('check', 'boxes', 'count', 'text'),
    [
        ('boxes twice', {3: [(0, 20, 30, 90, 120), (0, 20, 30, 90, 121), (1, 20, 30, 90, 120)]}, 1, 'of 41 boxes'),
        ('missing classes', {i: [(0, 20, 30, 90, 120)] for i in range(20)}, 1, 'have no box in train, such as dog'),
        ('tiny boxes', {i: [(0, 20, 30, 27.9, 90), (1, 2, 2, 99, 99)] for i in range(8)}, 8, '320 x 320 (config.py)'),
        ('aspect ratios', {0: [(0, 10, 50, 10 + 8 * MAX_ASPECT + 1, 58)]}, 1, 'their corners'),
        ('boxes at the border', {i: [(0, 0, 0, 50, 50), (1, 9, 9, 70, 70)] for i in range(20)}, 20, 'all of cat'),
        ('images without a box', {i: [] for i in range(11)}, 11, 'of 20 images of train have no box'),
    ],
)  # fmt: skip
def test_a_spoiled_set(check, boxes, count, text):
    problems = found(some_set(boxes=boxes), some_set('val'))
    assert list(problems) == [check]
    problem = problems[check]
    assert problem.count == count and text in str(problem) and '\n' not in str(problem)
    assert str(problem).startswith(f'warning: {count} ') and (problem.places or check == 'missing classes')
    assert not problem.is_error


def test_what_is_not_enough_for_a_warning():
    few = int(MAX_TINY_SHARE * 40)
    assert not found(some_set(boxes={i: [(0, 20, 30, 27, 90), (1, 2, 2, 99, 99)] for i in range(few)}))
    wide = {i: [(0, 0, 0, 50, 50), (1, 9, 9, 70, 70)] for i in range(MIN_BORDER_BOXES - 1)}
    assert not found(some_set(boxes=wide))
    # Neighbours of one class, and one place with two classes, are not a box twice.
    assert not found(some_set(boxes={0: [(0, 10, 10, 90, 90), (1, 10, 10, 90, 90), (0, 14, 14, 94, 94)]}))


def test_boxes_are_small_at_the_size_of_the_config():
    boxes = {i: [(0, 20, 30, 32, 90), (1, 20, 30, 99, 99)] for i in range(20)}
    assert not found(some_set(boxes=boxes)) and 'tiny boxes' in found(some_set(boxes=boxes, size=(640, 400)))
    assert input_size(Config.fromfile(SMALL_CONFIG)) == (SMALL_CONFIG.name, (320, 320), 4.0, None)
    large = ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'
    assert input_size(Config.fromfile(large)) == (large.name, (640, 640), 8.0, None)


def test_nothing_to_learn_from_is_an_error():
    nothing = {i: [] for i in range(20)}
    assert found(some_set('val', nothing))['images without a box'].is_error
    assert not found(some_set('test', nothing))['images without a box'].is_error


def test_one_file_in_two_splits_and_twice():
    train, val = (
        some_set(paths={i: f'{i % 19}.jpg' for i in range(20)}),
        some_set('val', paths={0: '7.jpg', 1: 'b.jpg'}),
    )
    problems = [str(one) for one in run_checks(box_checks([SIZE]), [train, val]) if one.check == 'same file']
    assert problems[0].startswith('warning: 1 of 20 images of train are the same file as another of it, such as 0.jpg')
    assert problems[1].startswith(
        'warning: 1 of 2 images of val are the same file as one of train, such as 7.jpg and 7'
    )


def write_noise(path, seed, size=(160, 120)):
    """A picture of blurred noise, which is its own only."""
    image = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(exist_ok=True, parents=True)
    cv2.imwrite(str(path), image)
    return image


def read(one):
    return [read_pixels((path, *size)) for path, size in zip(one.paths, one.sizes.tolist())]


@pytest.fixture
def pictures(tmp_path):
    """Sets train and val of six different pictures each, and what is read of them."""

    def sets():
        named = {}
        for name in ('train', 'val'):
            paths = {i: str(path) for i, path in enumerate(sorted((tmp_path / name).iterdir()))}
            named[name] = some_set(name, paths=paths, size=(160, 120))
        return [*named.values()], {name: read(one) for name, one in named.items()}

    for i in range(12):
        write_noise(tmp_path / ('train' if i < 6 else 'val') / f'{i:02}.png', i)
    return tmp_path, sets


def test_different_pictures_have_no_problem(pictures):
    sets, pixels = pictures[1]()
    assert not found(*sets, pixels=pixels)


@pytest.mark.parametrize(
    ('name', 'change', 'check'),
    [
        ('copy.bmp', lambda image: image, 'same image'),
        ('poor.jpg', lambda image: image, 'nearly the same image'),
        ('half.png', lambda image: cv2.resize(image, None, fx=0.5, fy=0.5), 'nearly the same image'),
        ('bright.png', lambda image: cv2.convertScaleAbs(image, alpha=1.1, beta=4), 'nearly the same image'),
        ('grey.png', lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), 'nearly the same image'),
        ('cropped.png', lambda image: image[2:-1, 1:-2], 'nearly the same image'),
    ],
)
def test_a_picture_of_train_in_val(pictures, name, change, check):
    folder, sets = pictures
    cv2.imwrite(str(folder / 'val' / name), change(cv2.imread(str(folder / 'train/03.png'))), [1, 60])
    sets, pixels = sets()
    problems = found(*sets, pixels=pixels)
    problems.pop('images', None)  # the size of the copy
    assert list(problems) == [check] and problems[check].count == 1
    assert f'val/{name} and' in problems[check].items[0] and 'train/03.png' in problems[check].items[0]
    assert problems[check].places[0] == ('train', 3)


def test_a_picture_twice_in_a_split(pictures):
    folder, sets = pictures
    (folder / 'val/copy.png').write_bytes((folder / 'val/08.png').read_bytes())
    sets, pixels = sets()
    problems = found(*sets, pixels=pixels)
    assert list(problems) == ['same image'] and 'pixel by pixel, as another of it' in str(problems['same image'])


def test_pictures_of_one_color_and_damaged_ones(pictures):
    folder, sets = pictures
    cv2.imwrite(str(folder / 'val/plain.jpg'), np.full((120, 160, 3), 90, np.uint8))
    cv2.imwrite(str(folder / 'train/plain.jpg'), np.full((120, 160, 3), 93, np.uint8))  # not nearly the same for that
    (folder / 'val/torn.png').write_bytes((folder / 'val/08.png').read_bytes()[:900])
    sets, pixels = sets()
    problems = run_checks(pixel_checks(pixels), sets)
    assert [(one.check, one.count) for one in problems] == [('images', 1), ('one colour', 1), ('one colour', 1)]
    assert problems[0].is_error and 'torn.png is cut short after 900 bytes' in str(problems[0])


def test_near_hashes_are_found_among_many():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (4000, 256)).astype(np.uint8)
    for i in range(500):
        bits[i] = bits[i + 1000]
        bits[i, rng.permutation(256)[: rng.integers(0, MAX_BITS + 1)]] ^= 1
    hashes = [one.tobytes() for one in np.packbits(bits, axis=1)]
    found = find_near(hashes[:1000], hashes[1000:])
    assert len(found) >= 0.99 * 500 and all(i == j and distance <= MAX_BITS for i, (j, distance) in found.items())
    assert find_near([], hashes) == find_near(hashes, []) == {}
    # Of one scene with thousands of frames each is found, in no more comparisons than there are.
    assert len(find_near([bytes(32)] * 2000, [bytes(30) + i.to_bytes(2, 'big') for i in range(2000)])) == 2000


def test_equal_pairs():
    keys = np.array([3, 1, 3, 2, 3, 1])
    pairs = {tuple(sorted(pair)) for a, b in equal_pairs(keys) for pair in zip(a.tolist(), b.tolist())}
    assert pairs == {(0, 2), (0, 4), (2, 4), (1, 5)}


def test_a_check_that_fails_is_an_error():
    def fail(sets):
        raise KeyError('x')

    (problem,) = run_checks({'of nothing': fail}, [some_set()])
    assert str(problem) == "error: check 'of nothing' failed: KeyError: 'x'"
    assert doctor.Examination([], [], [], {}, [problem], {}).status == 2


def test_images_in_which_errors_show():
    boxes = {4: [(0, 1, 1, 9, 9)], 5: [(0, 0, 0, 319, 199)], 6: [(0, 20 * i, 9, 20 * i + 18, 30) for i in range(9)]}
    train = some_set(boxes={**boxes, 2: [(0, 20, 30, 90, 120)] * 2})
    pixels = {'train': [Pixels(orientation=6 if i == 7 else 1) for i in range(20)]}
    problems = run_checks({'boxes twice': checks.check_twice}, [train])
    chosen = {i: why for (_, i), why in choose_images([train], problems, pixels).items()}
    assert chosen[2] == ['boxes twice'] and 'turned by EXIF' in chosen[7] and 'most boxes' in chosen[6]
    assert 'smallest box' in chosen[4] and 'largest box' in chosen[5]
    assert {'cat', 'dog'} <= {why for own in chosen.values() for why in own}


def test_the_tool_on_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    check_dataset = importlib.import_module('check_dataset')

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['check_dataset.py', *map(str, arguments)])
        status = check_dataset.main()
        return status, capsys.readouterr().out

    train, val = photos(6), photos(4, 6)
    write_yolo(tmp_path / 'data', {'train': train, 'val': val})
    arguments = ('--data', tmp_path / 'data', '--out-dir', tmp_path / 'out', '--workers', 1)
    status, output = run(*arguments)
    assert status == 0, output
    assert (
        'in the form of YOLO, 3 classes: cat, dog, owl' in output and '=== val' in output and '=== test' not in output
    )
    assert '0 of 10 images are missing' in output and 'warning' not in output
    page = (tmp_path / 'out/index.html').read_text()
    assert 'None was found' in page and page.count('data:image/jpeg') >= 4 and page.count('data:image/svg') >= 5

    write_photo(train[0], tmp_path / 'data/images/val/copy.jpg')
    write_text(tmp_path / 'data/labels/val/copy.txt', '0 0.5 0.5 0.5 0.5\n' * 2)
    status, output = run(*arguments, '--json')
    content = json.loads(output)
    assert content['status'] == status == 1 and content['page'] == str(tmp_path / 'out/index.html')
    assert {one['check'] for one in content['problems']} == {'same image', 'boxes twice'}
    assert content['sets'][1]['classes'].keys() == set(CLASSES) and content['sets'][1]['images'] == 5

    write_text(tmp_path / 'data/labels/val/copy.txt', 'cat\n')
    status, output = run(*arguments)
    assert status == 2 and not output
    assert json.loads(run(*arguments, '--json')[1])['problems'][0]['line'].startswith('error: ')


@pytest.mark.parametrize(('spoil', 'status'), [(None, 0), ('warning', 1), ('damage', 2), ('failure', 2)])
def test_exit_status(tmp_path, monkeypatch, capsys, spoil, status):
    write_yolo(tmp_path / 'data', {'train': photos(5), 'val': photos(4, 6)})
    if spoil == 'warning':
        write_text(tmp_path / 'data/labels/val/photo_06.txt', '0 0.5 0.5 0.5 0.5\n' * 2)
    elif spoil == 'damage':
        path = tmp_path / 'data/images/val/photo_06.jpg'
        path.write_bytes(path.read_bytes()[:-500])
    elif spoil == 'failure':
        monkeypatch.setattr(checks, 'find_near', lambda *hashes: 1 / 0)
    data = read_own_data(tmp_path / 'data', tmp_path / 'out')
    cfg = Config.fromfile(SMALL_CONFIG)
    from yolov7_simple.doctor.image_sets import dataset_configs
    from yolov7_simple.own_data.config import set_data

    set_data(cfg, data)
    examination = doctor.examine([], dataset_configs(cfg), [cfg], 1, sys.stderr)
    assert examination.status == status, examination.lines()
    assert ('ZeroDivisionError' in ' '.join(examination.lines())) == (spoil == 'failure')


def test_the_summary_before_training(tmp_path):
    write_yolo(tmp_path / 'data', {'train': photos(6), 'val': photos(1, 6)})
    write_photo(photos(1, 9)[0], tmp_path / 'data/images/train/more.jpg')
    write_text(tmp_path / 'data/labels/train/more.txt', '0 0.5 0.5 0.5 0.5\n' * 2)
    write_text(tmp_path / 'data/labels/train/lost.txt', '0 0.5 0.5 0.5 0.5\n')
    cfg = Config.fromfile(SMALL_CONFIG)
    lines = doctor.summary(read_own_data(tmp_path / 'data', tmp_path / 'out'), cfg)
    text = '\n'.join(lines)
    assert 'in the form of YOLO, 3 classes: cat, dog, owl' in lines[0] and 'train: 7 images with 17 boxes' in lines[1]
    assert 'warning: 1 of 17 boxes of train are there twice' in text and 'not used: 1 labels without an image' in text
    assert 'classes have no box in val' in text and len(lines) <= doctor.MAX_SUMMARY
    # Too many lines end with where the others are.
    data = read_own_data(tmp_path / 'data', tmp_path / 'out')
    for i in range(20):
        data.findings.remark(f'remark {i}')
    lines = doctor.summary(data, cfg)
    assert len(lines) == doctor.MAX_SUMMARY and lines[-1].endswith(f'check_dataset.py --data {data.root}')
    assert any('there twice' in line for line in lines)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install ImageHash'):
        read_all_pixels(None, 1, sys.stderr)
