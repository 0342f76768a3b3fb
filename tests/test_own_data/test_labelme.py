"""labelme's JSON: shapes of every kind, and where the image of a file is."""

import base64
import json

import pytest
from folder_cases import check, photos, read, write_photo, write_text
from PIL import Image

from yolov7_simple.runtime.errors import InputError

PHOTOS = photos(6)
FIRST = 'photo_00.json'


def rectangle(name, x1, y1, x2, y2):
    return {'label': name, 'points': [[x1, y1], [x2, y2]], 'shape_type': 'rectangle', 'group_id': None, 'flags': {}}


def labelme_content(photo, shapes=None, **changes):
    shapes = [rectangle(*box) for box in photo.boxes] if shapes is None else shapes
    content = {'version': '5.4.1', 'flags': {}, 'shapes': shapes, 'imagePath': f'{photo.stem}.jpg', 'imageData': None}
    return {**content, 'imageHeight': photo.height, 'imageWidth': photo.width, **changes}


def write_labelme(folder, part=PHOTOS, images='', labels='', shape=rectangle, **changes):
    """An image and a JSON file for each photo."""
    for photo in part:
        write_photo(photo, folder / images / f'{photo.stem}.jpg')
        content = labelme_content(photo, [shape(*box) for box in photo.boxes], **changes)
        write_text(folder / labels / f'{photo.stem}.json', json.dumps(content))
    return folder


def with_first(folder, add=(), **changes):
    """The same, with more shapes in the first file, or other values."""
    content = labelme_content(PHOTOS[0], **changes)
    if add:
        content['shapes'] += add
    write_text(folder / FIRST, json.dumps(content))
    return folder


def first_with(*boxes):
    return [PHOTOS[0]._replace(boxes=(*PHOTOS[0].boxes, *boxes)), *PHOTOS[1:]]


def test_rectangles(tmp_path):
    data = check(write_labelme(tmp_path / 'data'), everything=PHOTOS)
    assert data.form == 'labelme' and not data.findings.repairs and not data.findings.unused


SHAPES = {
    'from another corner': lambda name, x1, y1, x2, y2: {**rectangle(name, x2, y1, x1, y2)},
    'four corners': lambda name, x1, y1, x2, y2: {
        **rectangle(name, x1, y1, x2, y2),
        'points': [[x1, y1], [x2, y1], [x2, y2], [x1, y2]],
    },
    'polygon': lambda name, x1, y1, x2, y2: {
        **rectangle(name, 0, 0, 0, 0),
        'points': [[x1, (y1 + y2) / 2], [x2, y1], [(x1 + x2) / 2, y2]],
        'shape_type': 'polygon',
    },
    'no shape_type': lambda name, x1, y1, x2, y2: {'label': name, 'points': [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]},
    'shape_type null': lambda name, *box: {**rectangle(name, *box), 'shape_type': None},
    'mask': lambda name, *box: {**rectangle(name, *box), 'shape_type': 'mask', 'mask': 'iVBORw0KGgo='},
    'numbers as texts': lambda name, *box: rectangle(name, *map(str, box)),
    'rotated': lambda name, x1, y1, x2, y2: {
        **rectangle(name, 0, 0, 0, 0),
        'points': [[(x1 + x2) / 2, y1], [x2, (y1 + y2) / 2], [(x1 + x2) / 2, y2], [x1, (y1 + y2) / 2]],
        'shape_type': 'rotation',
    },
}


@pytest.mark.parametrize('kind', SHAPES)
def test_shapes(tmp_path, kind):
    check(write_labelme(tmp_path / 'data', shape=SHAPES[kind]), everything=PHOTOS)


def test_a_circle_is_given_by_centre_and_edge(tmp_path):
    circle = {'label': 'owl', 'points': [[50, 30], [53, 34]], 'shape_type': 'circle'}
    check(with_first(write_labelme(tmp_path / 'data'), [circle]), everything=first_with(('owl', 45, 25, 55, 35)))


def test_shapes_without_area_are_left_out(tmp_path):
    shapes = [
        {'label': 'eye', 'points': [[50, 30]], 'shape_type': 'point'},
        {'label': 'cat', 'points': [[50, 30], [53, 34]], 'shape_type': 'line'},
        {'label': 'cat', 'points': [[50, 30], [53, 34], [60, 60]], 'shape_type': 'linestrip'},
        rectangle('cat', 8, 8, 8, 20),
    ]
    data = check(with_first(write_labelme(tmp_path / 'data'), shapes), everything=PHOTOS)
    assert data.findings.repairs == {
        'points without an area, left out': 1,
        'lines without an area, left out': 2,
        'boxes without an area, left out': 1,
    }


def test_a_group_is_one_object(tmp_path):
    parts = [
        {**rectangle('cat', 4, 4, 20, 20), 'group_id': 1},
        {**rectangle('cat', 30, 10, 40, 24), 'group_id': 1},
        {**rectangle('dog', 30, 10, 40, 24), 'group_id': 1},
        {**rectangle('cat', 50, 10, 60, 24), 'group_id': 2},
    ]
    added = first_with(('cat', 4, 4, 40, 24), ('dog', 30, 10, 40, 24), ('cat', 50, 10, 60, 24))
    data = check(with_first(write_labelme(tmp_path / 'data'), parts), everything=added)
    assert data.findings.repairs == {'objects of several shapes in one group, made one box': 1}


def test_numbers_and_blanks_as_labels(tmp_path):
    part = [photo._replace(boxes=tuple(('7', *box[1:]) for box in photo.boxes)) for photo in PHOTOS]
    write_labelme(tmp_path / 'data', shape=lambda name, *box: rectangle(7, *box))
    with_first(tmp_path / 'data', shapes=[rectangle(' 7 ', *box[1:]) for box in PHOTOS[0].boxes])
    data = check(tmp_path / 'data', classes=['7'], everything=part)
    assert data.findings.repairs == {'boxes with blanks around the name of their class': len(PHOTOS[0].boxes)}


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-8'])
def test_encodings(tmp_path, encoding):
    part = [photo._replace(boxes=tuple(('Kätzchen 猫', *box[1:]) for box in photo.boxes)) for photo in PHOTOS]
    write_labelme(tmp_path / 'data', part)
    for photo in part:
        text = json.dumps(labelme_content(photo), ensure_ascii=False)
        write_text(tmp_path / 'data' / f'{photo.stem}.json', text, encoding)
    check(tmp_path / 'data', classes=['Kätzchen 猫'], everything=part)


@pytest.mark.parametrize('path', ['..\\images\\{}.jpg', '../images/{}.jpg', 'C:\\me\\{}.jpg', '{}.PNG', '{}', ''])
def test_where_the_image_is(tmp_path, path):
    write_labelme(tmp_path / 'data', images='images', labels='labels')
    for photo in PHOTOS:
        content = labelme_content(photo, imagePath=path.format(photo.stem) or None)
        write_text(tmp_path / 'data' / 'labels' / f'{photo.stem}.json', json.dumps(content))
    check(tmp_path / 'data', everything=PHOTOS)


def test_the_label_has_another_name_than_its_image(tmp_path):
    write_labelme(tmp_path / 'data')
    for i, photo in enumerate(PHOTOS):
        (tmp_path / 'data' / f'{photo.stem}.json').rename(tmp_path / 'data' / f'{i:05d}.json')
    check(tmp_path / 'data', everything=PHOTOS)


def test_the_label_has_the_name_of_a_drawing(tmp_path):
    write_labelme(tmp_path / 'data', images='images', labels='labels')
    for photo in PHOTOS:
        write_photo(photo, tmp_path / 'data' / 'labels' / 'vis' / f'{photo.stem}.jpg')
        write_photo(photo, tmp_path / 'data' / 'labels' / f'{photo.stem}.jpg')
        content = labelme_content(photo, imagePath=f'../images/{photo.stem}.jpg')
        write_text(tmp_path / 'data' / 'labels' / f'{photo.stem}.json', json.dumps(content))
    data = read(tmp_path / 'data')
    assert not [name for name in data.findings.unused['images without labels'] if name.startswith('images/')]


def test_names_with_dots(tmp_path):
    part = [photo.renamed(f'1569478{i}.73587') for i, photo in enumerate(PHOTOS)]
    check(write_labelme(tmp_path / 'data', part), everything=part)


@pytest.mark.parametrize('others', [(), PHOTOS[:3]])
def test_images_that_are_in_the_labels_alone(tmp_path, others):
    for photo in PHOTOS:
        write_photo(photo, tmp_path / 'image.jpg')
        data = base64.b64encode((tmp_path / 'image.jpg').read_bytes()).decode()
        content = labelme_content(photo, imageData=data)
        write_text(tmp_path / 'data' / 'labels' / f'{photo.stem}.json', json.dumps(content))
    for photo in others:
        write_photo(photo, tmp_path / 'data' / 'images' / f'{photo.stem}.jpg')
    data = check(tmp_path / 'data', everything=PHOTOS)
    count = data.findings.repairs['images taken out of their labels, as there is no file']
    assert count == len(PHOTOS) - len(others)


def test_a_stated_size_that_exif_turns(tmp_path):
    write_labelme(tmp_path / 'data')
    turned = []
    for photo in PHOTOS:
        path = tmp_path / 'data' / f'{photo.stem}.jpg'
        with Image.open(path) as image:
            exif = image.getexif()
            exif[274] = 8  # shown a quarter to the left
            image.save(path, exif=exif)
        boxes = tuple((name, y1, photo.width - x2, y2, photo.width - x1) for name, x1, y1, x2, y2 in photo.boxes)
        turned.append(photo._replace(width=photo.height, height=photo.width, boxes=boxes))
    check(tmp_path / 'data', everything=turned)


def test_no_stated_size(tmp_path):
    check(write_labelme(tmp_path / 'data', imageWidth=None, imageHeight=None), everything=PHOTOS)


def test_a_file_without_shapes_is_background(tmp_path):
    with_first(write_labelme(tmp_path / 'data'), shapes=[])
    check(tmp_path / 'data', everything=[PHOTOS[0]._replace(boxes=()), *PHOTOS[1:]])


def test_folders_of_splits(tmp_path):
    write_labelme(tmp_path / 'data' / 'train', PHOTOS[:4])
    write_labelme(tmp_path / 'data' / 'val', PHOTOS[4:])
    check(tmp_path / 'data', train=PHOTOS[:4], val=PHOTOS[4:])


def test_other_json_is_not_used(tmp_path):
    write_labelme(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'notes.json', '{"year": 2025}')
    assert check(tmp_path / 'data', everything=PHOTOS).findings.unused == {
        'JSON files that are not of labelme': ['notes.json']
    }


REFUSED = {
    'cut': ('{"version": "5.0", "shapes": [', r'photo_00\.json: not JSON, or cut short'),
    'cut early': ('{"vers', r'photo_00\.json: not JSON, or cut short'),
    'empty': ('', r'photo_00\.json: is empty'),
    'shapes an object': ({'shapes': {'label': 'cat'}}, r'photo_00\.json: shapes must be a list'),
    'shape a text': ({'shapes': ['cat']}, r"photo_00\.json, shape 1: shape must be an object, got 'cat'"),
    'no points': ({'shapes': [{'label': 'cat'}]}, r'shape 1: must have at least 2 points, got None'),
    'one corner': ({'shapes': [{**rectangle('cat', 1, 2, 3, 4), 'points': [[1, 2]]}]}, 'at least 2 points'),
    'no number': (
        {'shapes': [rectangle('cat', 1, 2, 3, 'x')]},
        r"photo_00\.json, shape 1: y must be a number, got 'x'",
    ),
    'not finite': ({'shapes': [rectangle('cat', 1, 2, 3, float('nan'))]}, 'shape 1: y must be a number, got nan'),
    'no label': ({'shapes': [rectangle(None, 1, 2, 30, 40)]}, r'shape 1: has no name of a class, got None'),
    'unknown kind': ({'shapes': [{**rectangle('cat', 1, 2, 3, 4), 'shape_type': 'star'}]}, "unknown kind 'star'"),
    'path a number': ({'imagePath': 7}, r'photo_00\.json: imagePath must be a text, got 7'),
    'another picture': ({'imageWidth': 500}, r'photo_00\.json: was drawn on an image of 500 x 64'),
    'imageData': ({'imagePath': 'x.jpg', 'imageData': 'abc'}, r'photo_00\.json: its imageData cannot be decoded'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refused_by_name(tmp_path, kind):
    content, message = REFUSED[kind]
    write_labelme(tmp_path / 'data')
    if isinstance(content, str):
        write_text(tmp_path / 'data' / FIRST, content)
    else:
        with_first(tmp_path / 'data', **content)
    if kind == 'imageData':
        (tmp_path / 'data' / 'photo_00.jpg').unlink()
    with pytest.raises(InputError, match=message):
        read(tmp_path / 'data')


def test_bytes_of_another_encoding_are_refused(tmp_path):
    write_labelme(tmp_path / 'data')
    text = json.dumps(labelme_content(PHOTOS[0], [rectangle('白细胞', 1, 2, 30, 40)]), ensure_ascii=False)
    write_text(tmp_path / 'data' / FIRST, text, 'gbk')
    with pytest.raises(InputError, match=r'photo_00\.json: is not utf-8 .*save it as UTF-8'):
        read(tmp_path / 'data')
