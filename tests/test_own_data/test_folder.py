"""What is named as data, sizes and EXIF, images of odd formats, and folders inside the folder."""

import zipfile

import cv2
import numpy as np
import pytest
from conftest import png_bomb
from folder_cases import check, photos, read, write_photo, write_text
from PIL import Image
from test_yolo import YAML, write_yolo

from yolov7_simple.datasets.headers import Header, image_headers, read_header
from yolov7_simple.own_data.findings import Findings
from yolov7_simple.own_data.folder import read_own_data
from yolov7_simple.own_data.labels import Box, LabelledImage
from yolov7_simple.own_data.sizes import TURNS, fit_boxes
from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.images import read_image, to_8_bits

TRAIN, VAL = photos(5), photos(3, 5)


def test_data_yaml_as_data(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    write_text(folder / 'other.yaml', 'names: [a, b, c]\n')
    check(folder, source=folder / 'data.yaml', train=TRAIN, val=VAL)


def test_data_yaml_beside_the_data(tmp_path):
    folder = write_yolo(tmp_path / 'sets' / 'data', yaml='')
    write_text(tmp_path / 'sets' / 'mine.yaml', f'path: data\n{YAML}')
    check(folder, source=tmp_path / 'sets' / 'mine.yaml', train=TRAIN, val=VAL)


def test_an_archive_as_data(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
        for path in folder.rglob('*'):
            archive.write(path, path.relative_to(tmp_path))
    data = check(folder, source=tmp_path / 'set.zip', train=TRAIN, val=VAL)
    assert tmp_path / 'run' in data.root.parents
    again = read_own_data(tmp_path / 'set.zip', tmp_path / 'run' / 'own_data')
    assert again.root == data.root


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('set.zip', b'no archive', 'set.zip: cannot be unpacked'),
        ('set.tar', b'', 'is neither a folder, nor a .zip file, nor a file of labels'),
        ('bad.yaml', b'a: [', 'bad.yaml: cannot be read as YAML'),
        (None, None, 'there is no such folder or file'),
    ],
)
def test_what_cannot_be_data(tmp_path, name, content, message):
    path = tmp_path / (name or 'nothing')
    if name:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_own_data(path, tmp_path / 'run')


def test_an_empty_folder(tmp_path):
    (tmp_path / 'data').mkdir()
    with pytest.raises(InputError, match='no labels found among its 0 files'):
        read(tmp_path / 'data')


def test_links_that_lead_back(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    (folder / 'again').symlink_to(folder)
    (folder / 'images' / 'twice').symlink_to(folder / 'images' / 'train')
    check(folder, train=TRAIN, val=VAL)


@pytest.mark.parametrize('place', ['own_data', 'run1/own_data', 'work_dirs/x', 'runs/detect/exp'])
def test_earlier_runs_are_not_the_data(tmp_path, place):
    folder = write_yolo(tmp_path / 'data')
    for photo in TRAIN:
        write_photo(photo, folder / place / 'images' / f'{photo.stem}.jpg')
        write_text(folder / place / 'labels' / f'{photo.stem}.txt', '0 0.5 0.5 0.1 0.1\n')
    (folder / place / 'weights').mkdir()
    write_text(folder / place / 'last_checkpoint', 'x')
    data = check(folder, train=TRAIN, val=VAL)
    assert any(file.startswith(place.split('/')[0]) for files in data.findings.unused.values() for file in files)


def test_every_turn_is_that_of_the_image(tmp_path):
    """A bright box, stored turned: where it is upright follows from the pixels."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[4:10, 8:30] = 255
    for orientation in TURNS:
        path = tmp_path / f'{orientation}.jpg'
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(stored).save(path, exif=exif, quality=100)
        header = read_header(str(path))
        upright = read_image(path)
        assert (header.height, header.width) == upright.shape[:2] and header.orientation == orientation
        ys, xs = np.nonzero(upright[..., 0] > 128)
        wanted = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        if TURNS[orientation][0]:  # else the size does not tell
            one = LabelledImage('a.jpg', [Box('cat', 8, 4, 30, 10)], 'a.xml', (60, 40))
            findings = Findings()
            assert np.allclose(fit_boxes(one, header, findings)[0][1:5], wanted, atol=1)
            assert findings.repairs.total() == 1


def test_a_label_of_another_scale_is_scaled_and_of_another_shape_refused():
    one = LabelledImage('a.jpg', [Box('cat', 20, 10, 60, 30)], 'a.xml', (200, 100))
    findings = Findings()
    assert fit_boxes(one, Header(100, 50, 1), findings)[0][1:5] == (10, 5, 30, 15)
    assert list(findings.repairs.values()) == [1]
    assert fit_boxes(one, Header(200, 100, 1), findings) is one.boxes
    for header in (Header(100, 200, 1), Header(100, 60, 1), Header(160, 100, 6)):
        with pytest.raises(InputError, match=r'a\.xml: was drawn on an image of 200 x 100 pixels'):
            fit_boxes(one, header, Findings())


@pytest.mark.parametrize('suffix', ['.gif', '.jp2', '.jfif', '.avif'])
def test_images_of_odd_formats(tmp_path, suffix):
    folder = write_yolo(tmp_path / 'data', suffix='.png')
    for path in sorted((folder / 'images' / 'train').glob('*.png')):
        kind = {'format': 'JPEG'} if suffix == '.jfif' else {}
        Image.open(path).save(path.with_suffix(suffix), **kind)
        path.unlink()
    data = check(folder, train=TRAIN, val=VAL)
    assert data.splits['train'].has_copies == (suffix != '.jfif')


@pytest.mark.parametrize('suffix', ['.tif', '.png'])
@pytest.mark.parametrize('bits', [12, 16])
def test_sixteen_bits_keep_the_bits_in_use(tmp_path, suffix, bits):
    folder = write_yolo(tmp_path / 'data', suffix=suffix)
    for path in (folder / 'images').rglob(f'*{suffix}'):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16)
        assert cv2.imwrite(str(path), image << (bits - 8))
    data = check(folder, train=TRAIN, val=VAL)
    assert data.findings.repairs['images of 16 bits copied with the 8 that are in use'] == 8
    (copy,) = (tmp_path / 'run').rglob('photo_00.png')
    assert 128 <= cv2.imread(str(copy)).max() <= 255
    assert 128 <= read_image(folder / 'images' / 'train' / f'photo_00{suffix}').max() <= 255


def test_eight_bits_stay():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert to_8_bits(image) is image
    assert (to_8_bits(image.astype(np.uint16)) == image).all()
    assert (to_8_bits(image.astype(np.uint16) << 4) == image).all()


def test_a_damaged_image_is_named(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    (folder / 'images' / 'train' / 'photo_02.jpg').write_bytes(b'no image')
    with pytest.raises(InputError, match=r'photo_02\.jpg: not an image that can be read'):
        read(folder)


def test_a_bomb_is_named(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    (folder / 'images' / 'train' / 'photo_02.jpg').write_bytes(png_bomb(20000, 20000))
    with pytest.raises(InputError, match=r'photo_02\.jpg claims to have more than'):
        read(folder)


def test_heic_without_its_package_is_named(tmp_path, monkeypatch):
    folder = write_yolo(tmp_path / 'data')
    (folder / 'images' / 'train' / 'phone.HEIC').write_bytes(b'x')
    monkeypatch.setitem(__import__('sys').modules, 'pillow_heif', None)
    with pytest.raises(InputError, match='pip install pillow-heif'):
        read(folder)


def test_a_header_is_read_once(tmp_path, monkeypatch):
    read_paths = []

    def count(paths):
        read_paths.extend(paths)
        return image_headers(paths)

    monkeypatch.setattr('yolov7_simple.own_data.sizes.image_headers', count)
    read(write_yolo(tmp_path / 'data'))
    assert len(read_paths) == len(set(read_paths)) == len(TRAIN) + len(VAL)
