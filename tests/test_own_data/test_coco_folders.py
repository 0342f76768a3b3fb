"""COCO's files: what is used as it is, what is repaired in a copy and counted, and what is refused by name."""

import codecs
import copy
import json
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from conftest import SHARED
from folder_cases import CLASSES, assert_perfect, boxes_of, check, coco_content, photos, read, write_photo, write_text
from PIL import Image
from pycocotools import mask

from yolov7_simple.runtime.errors import InputError

TRAIN, VAL, TEST = photos(5), photos(3, 5), photos(2, 8)


def jpg(photo):
    return f'{photo.stem}.jpg'


def write_coco(folder, change=lambda content: None, change_val=None, name=jpg, file=None, train=TRAIN, val=VAL):
    """annotations/train.json and val.json, both changed in the same way if not told otherwise, over images/."""
    for split, part, edit in (('train', train, change), ('val', val, change_val or change)):
        for photo in part:
            write_photo(photo, folder / 'images' / (file or name)(photo))
        content = coco_content(part, name=name)
        edit(content)
        write_text(folder / 'annotations' / f'{split}.json', json.dumps(content))


def unchanged(content):
    """Leave it as it is."""


def each(key, change):
    """Change each record of a list."""

    def edit(content):
        for record in content[key]:
            change(record)

    return edit


def first(key, **fields):
    """Change the first record of a list."""
    return lambda content: content[key][0].update(fields)


def repairs_of(data):
    return '\n'.join(line for line in data.findings.lines() if line.startswith('repaired'))


def test_a_file_that_needs_nothing_is_used_as_it_is(tmp_path):
    write_coco(tmp_path / 'data')
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert data.form == 'COCO' and not data.findings.repairs
    assert data.splits['train'].ann_file == tmp_path / 'data' / 'annotations' / 'train.json'
    assert data.splits['val'].img_dir == 'images/'
    assert not (tmp_path / 'run').exists()


@pytest.mark.skipif(not (SHARED / 'data').is_dir(), reason='needs the published sets')
@pytest.mark.parametrize('name', ['coco_mini', 'bccd'])
def test_published_sets_are_used_as_they_are(tmp_path, name):
    (tmp_path / name).symlink_to(SHARED / 'data' / name)
    data = read(tmp_path / name)
    assert not data.findings.repairs and not (tmp_path / 'run').exists()
    assert {part.ann_file.parent.name for part in data.splits.values()} == {'annotations'}
    assert_perfect(data, 'val')


# Shapes around a box, for files that have no boxes.


def polygon(record):
    x, y, w, h = record.pop('bbox')
    # Two parts, as of an object behind a pole.
    record['segmentation'] = [[x, y, x + w / 2, y, x + 1, y + 3], [x + w, y + h, x + w - 1, y + h, x + w, y + 5]]


def flat_polygon(record):
    x, y, w, h = record.pop('bbox')
    record['segmentation'] = [x, y, x + w, y, x + w, y + h, x, y + h]


def run_lengths(record, is_text):
    x, y, w, h = map(int, record['bbox'])
    pixels = np.zeros((64, 96), np.uint8, order='F')
    pixels[y : y + h, x : x + w] = 1
    changes = np.flatnonzero(np.diff(pixels.ravel(order='F'), prepend=0, append=0))
    runs = {'size': [64, 96], 'counts': np.diff(changes, prepend=0, append=64 * 96).tolist()}
    record['segmentation'] = {**runs, 'counts': mask.encode(pixels)['counts'].decode()} if is_text else runs
    record['bbox'] = []


def without_ids(content):
    for record in content['annotations']:
        del record['id']


def all_ids(kind):
    """Write all ids as a type."""

    def edit(content):
        for key in ('images', 'annotations', 'categories'):
            for record in content[key]:
                record |= {name: kind(record[name]) for name in ('id', 'image_id', 'category_id') if name in record}

    return edit


REPAIRS = {
    'annotation ids from 0': (
        each('annotations', lambda r: r.update(id=r['id'] - 1)),
        '1 annotations whose ids are 0, absent, repeated or no numbers; all are numbered from 1',
    ),
    'annotations without ids': (without_ids, '12 annotations whose ids are 0, absent'),
    'annotation ids repeated': (each('annotations', lambda r: r.update(id=7)), '11 annotations whose ids are 0'),
    'annotation ids as texts': (each('annotations', lambda r: r.update(id=f'a{r["id"]}')), 'annotations whose ids are'),
    'all ids as floats': (all_ids(float), '5 ids of images that are no whole numbers'),
    'all ids as texts': (all_ids(str), '3 ids of categories that are no whole numbers'),
    'images named by texts': (
        each('annotations', lambda r: r.update(image_id=str(r['image_id']))),
        '12 annotations that name their image or category by another kind of id',
    ),
    'image ids as floats alone': (each('images', lambda r: r.update(id=float(r['id']))), 'ids of images'),
    'image ids of two kinds': (
        lambda c: (c['images'][0].update(id='a'), [a.update(image_id='a') for a in c['annotations'][:2]]),
        'lists of images whose ids are numbers and texts',
    ),
    'no area': (each('annotations', lambda r: r.pop('area')), '12 annotations whose area is absent'),
    'area null': (each('annotations', lambda r: r.update(area=None)), '12 annotations whose area is absent'),
    'area 0': (each('annotations', lambda r: r.update(area=0)), '12 annotations whose area is absent, not above 0'),
    'area as a text': (each('annotations', lambda r: r.update(area=str(r['area']))), '12 annotations whose area'),
    'no iscrowd': (each('annotations', lambda r: r.pop('iscrowd')), '12 annotations whose iscrowd is absent'),
    'iscrowd null': (each('annotations', lambda r: r.update(iscrowd=None)), '12 annotations whose iscrowd is absent'),
    'iscrowd as a text': (each('annotations', lambda r: r.update(iscrowd='0')), '12 annotations whose iscrowd'),
    'ignore null': (each('annotations', lambda r: r.update(ignore=None)), '12 annotations whose ignore is no number'),
    'no size': (
        each('images', lambda r: (r.pop('width'), r.pop('height'))),
        '5 images whose width or height is absent',
    ),
    'size -1': (each('images', lambda r: r.update(width=-1, height=-1)), '5 images whose width or height'),
    'size null': (each('images', lambda r: r.update(width=None)), '5 images whose width or height'),
    'size as a text': (each('images', lambda r: r.update(width='96')), '5 images whose width or height'),
    'bbox of texts': (
        each('annotations', lambda r: r.update(bbox=[f'{value}' for value in r['bbox']])),
        '12 boxes that are written as texts',
    ),
    'bbox as a text': (each('annotations', lambda r: r.update(bbox=str(r['bbox']))), '12 boxes that are written'),
    'polygons without bbox': (each('annotations', polygon), '12 boxes that are taken from their polygons or masks'),
    'a polygon that is no list of lists': (each('annotations', flat_polygon), '12 boxes that are taken from'),
    'run lengths': (each('annotations', lambda r: run_lengths(r, False)), '12 boxes that are taken from'),
    'run lengths as a text': (each('annotations', lambda r: run_lengths(r, True)), '12 boxes that are taken from'),
    'bbox of zeros beside a polygon': (
        each('annotations', lambda r: (polygon(r), r.update(bbox=[0, 0, 0, 0]))),
        '12 boxes that are taken from their polygons',
    ),
    'a box without width': (
        lambda c: c['annotations'].append({**c['annotations'][0], 'id': 99, 'bbox': [5, 5, 0, 9]}),
        '1 boxes without width or height, which are left out',
    ),
    'an annotation twice': (
        lambda c: c['annotations'].append(copy.deepcopy(c['annotations'][3])),
        '1 boxes that are listed more than once',
    ),
    'an image twice, its boxes with the second': (
        lambda c: (c['images'].append({**c['images'][0], 'id': 99}), c['annotations'][0].update(image_id=99)),
        '1 images that are listed more than once',
    ),
    'an image twice, its boxes as well': (
        lambda c: (
            c['images'].append({**c['images'][0], 'id': 99}),
            c['annotations'].extend(
                {**a, 'id': 50 + a['id'], 'image_id': 99} for a in c['annotations'][:2] if a['image_id'] == 1
            ),
        ),
        '2 boxes that are listed more than once',
    ),
    'a dummy category': (
        lambda c: (
            each('categories', lambda r: r.update(supercategory='pets'))(c),
            c['categories'].insert(0, {'id': 0, 'name': 'pets', 'supercategory': 'none'}),
        ),
        '1 categories that only head the others',
    ),
    'a category of the same name, without boxes': (
        lambda c: c['categories'].insert(0, {'id': 9, 'name': 'cat'}),
        '1 categories of the same name as another, without boxes',
    ),
    'a category twice': (
        lambda c: c['categories'].append(dict(c['categories'][0])),
        '1 categories that are listed twice',
    ),
    'blanks around names': (each('categories', lambda r: r.update(name=f' {r["name"]} ')), '3 names of categories'),
}


@pytest.mark.parametrize('case', REPAIRS)
def test_what_can_mean_but_one_thing_is_repaired_and_counted(tmp_path, case):
    change, said = REPAIRS[case]
    # The val split is right, and is used as it is.
    write_coco(tmp_path / 'data', change, unchanged)
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert data.splits['val'].ann_file.parent.name == 'annotations'
    assert said in repairs_of(data)
    assert data.splits['train'].ann_file.parent.name == 'own_data'


# How file names are written -> where the file is below images/.
NAMES = {
    'backslashes': (lambda p: f'images\\{p.stem}.jpg', jpg),
    'another machine': (lambda p: f'/home/me/images/{p.stem}.jpg', jpg),
    'another Windows machine': (lambda p: f'C:\\data\\{p.stem}.jpg', jpg),
    'upwards': (lambda p: f'../../media/upload/4/{p.stem}.jpg', jpg),
    'a bucket': (lambda p: f's3://bucket/cells/{p.stem}.jpg', jpg),
    'a server': (lambda p: f'https://host/a/{p.stem}.jpg?token=1', jpg),
    'local files': (lambda p: f'/data/local-files/?d={p.stem}.jpg', jpg),
    'escaped': (lambda p: f'a%20b/photo%20{p.stem}.jpg', lambda p: f'photo {p.stem}.jpg'),
    'another case': (lambda p: f'{p.stem.upper()}.jpg', lambda p: f'{p.stem}.JPG'),
    'no suffix': (lambda p: p.stem, jpg),
    'another suffix': (lambda p: f'{p.stem}.png', jpg),
    'accents composed': (
        lambda p: unicodedata.normalize('NFC', f'zellé_{p.stem}.jpg'),
        lambda p: unicodedata.normalize('NFD', f'zellé_{p.stem}.jpg'),
    ),
}


@pytest.mark.parametrize('case', NAMES)
def test_images_are_found_however_they_are_named(tmp_path, case):
    name, file = NAMES[case]
    write_coco(tmp_path / 'data', name=name, file=file)
    on_disk = [[photo.renamed(file(photo).rpartition('.')[0]) for photo in part] for part in (TRAIN, VAL)]
    data = check(tmp_path / 'data', train=on_disk[0], val=on_disk[1])
    assert '8 file names that are written in another way than the file is' in repairs_of(data)


def test_names_with_blanks_and_other_scripts_need_no_repair(tmp_path):
    write_coco(tmp_path / 'data', name=lambda p: f'sub a/фото {p.stem} (2).jpg')
    renamed = [[photo.renamed(f'фото {photo.stem} (2)') for photo in part] for part in (TRAIN, VAL)]
    assert not check(tmp_path / 'data', train=renamed[0], val=renamed[1]).findings.repairs


REFUSALS = {
    'a category of null': (first('annotations', category_id=None), r'annotations\[0\] \(id 1\): there is no category'),
    'a category that is not there': (first('annotations', category_id=0), 'no category with the id 0'),
    'an image that is not there': (first('annotations', image_id=77), 'no image with the id 77'),
    'NaN': (first('annotations', bbox=[1, float('nan'), 9, 9]), r'\(id 1\): bbox must be four finite numbers'),
    'infinity': (first('annotations', bbox=[1, 2, float('inf'), 9]), 'bbox must be four finite numbers'),
    'three numbers': (first('annotations', bbox=[1, 2, 3]), r'got \[1, 2, 3\]'),
    'words': (first('annotations', bbox=['a', 'b', 'c', 'd']), 'bbox must be four finite numbers'),
    'a negative side': (first('annotations', bbox=[9, 9, -4, 5]), r'\(id 1\): bbox .* has a negative side'),
    'an image tag': (first('annotations', bbox=[]), r'\(id 1\): has no bbox, and no segmentation'),
    'no bbox': (lambda c: c['annotations'][2].pop('bbox'), r'annotations\[2\] \(id 3\): has no bbox'),
    'a polygon of one point': (first('annotations', bbox=None, segmentation=[[1, 2]]), 'has no bbox'),
    'a mask of nonsense': (first('annotations', bbox=None, segmentation={'counts': [1]}), 'has no bbox'),
    'a flag of 2': (first('annotations', iscrowd=2), 'iscrowd must be 0 or 1, got 2'),
    'a flag of words': (first('annotations', ignore='maybe'), "ignore must be 0 or 1, got 'maybe'"),
    'an image without name': (lambda c: c['images'][1].pop('file_name'), r'images\[1\] \(id 2\): file_name must be'),
    'an image without id': (lambda c: c['images'][1].pop('id'), r'images\[1\] \(id None\): id must be'),
    'a category without name': (first('categories', name=None), r'categories\[0\] \(id 1\): name must be a text'),
    'two images of one id': (
        lambda c: c['images'][1].update(id=1),
        'two images have the id 1: photo_00.jpg and photo_01',
    ),
    'two names of one id': (lambda c: c['categories'][1].update(id=1), 'two categories have the id 1: cat and dog'),
    'one name of two ids': (
        lambda c: c['categories'][1].update(name='cat'),
        'two categories are called cat, with the ids 1 and 2',
    ),
    'one image, two sizes': (
        lambda c: c['images'].append({**c['images'][0], 'id': 99, 'width': 192, 'height': 128}),
        'photo_00.jpg is listed twice, with different sizes',
    ),
    'two names of one file': (
        lambda c: c['images'].append({**c['images'][0], 'id': 99, 'file_name': 'b/photo_00.jpg'}),
        'photo_00.jpg and b/photo_00.jpg are both found as images/photo_00.jpg',
    ),
    'a text for a record': (lambda c: c['images'].__setitem__(2, 'x'), r'train\.json: images: .*\$\[2\]'),
    'no images': (lambda c: c['images'].clear(), 'has no images'),
    'another shape': (each('images', lambda r: r.update(width=64, height=90)), 'they are not the same picture'),
    'two corners': (
        each('annotations', lambda r: r.update(bbox=[30, 20, 90, 60])),
        'none if they are read as x1, y1, x2, y2',
    ),
    'fractions': (each('annotations', lambda r: r.update(bbox=[0.1, 0.1, 0.2, 0.3])), 'not in fractions'),
    'crowds alone': (each('annotations', lambda r: r.update(iscrowd=1)), 'no boxes to train on .*all 12 are crowd'),
    'ignored alone': (each('annotations', lambda r: r.update(ignore=1)), 'no boxes to train on .*all 12 are crowd'),
    'no boxes': (lambda c: c['annotations'].clear(), 'no boxes to train on in the train split of 5 images'),
    'two missing images of five': (
        lambda c: [c['images'][i].update(file_name=f'gone_{i}.jpg') for i in (1, 3)],
        r'2 of its 5 images are missing in .*data, such as gone_1\.jpg, gone_3\.jpg',
    ),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_what_could_mean_several_things_is_refused_by_name(tmp_path, case):
    change, message = REFUSALS[case]
    write_coco(tmp_path / 'data', change, unchanged)
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path / 'data')
    assert str(tmp_path / 'data') in str(raised.value) and len(str(raised.value)) < 500


# Encodings and JSON itself.


@pytest.mark.parametrize(
    ('encoding', 'mark', 'said'),
    [('utf-8', codecs.BOM_UTF8, 'files with a byte-order mark'), ('utf-16', b'', 'files in UTF-16')],
)
def test_a_byte_order_mark_is_read(tmp_path, encoding, mark, said):
    write_coco(tmp_path / 'data')
    for path in (tmp_path / 'data').glob('*/*.json'):
        path.write_bytes(mark + path.read_text().encode(encoding))
    assert f'repaired: 2 {said}' in repairs_of(check(tmp_path / 'data', train=TRAIN, val=VAL))


def test_another_encoding_is_refused(tmp_path):
    write_coco(tmp_path / 'data')
    path = tmp_path / 'data' / 'annotations' / 'train.json'
    path.write_bytes(path.read_text().replace('"cat"', '"红细胞"').encode('gbk'))
    with pytest.raises(InputError, match=r'train\.json: is not in UTF-8'):
        read(tmp_path / 'data')


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    write_coco(tmp_path / 'data', lambda c: c.update(categories=c.pop('categories')))
    path = tmp_path / 'data' / 'annotations' / 'val.json'
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r'val\.json: not a JSON file that can be read'):
        read(tmp_path / 'data')


def test_json_of_others_is_named(tmp_path):
    write_coco(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'notes.json', '{"images": [], "annotations": {}, "categories": null}')
    write_text(tmp_path / 'data' / 'broken.json', '{')
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert list(data.findings.unused.values()) == [['broken.json', 'notes.json']]
    shutil.rmtree(tmp_path / 'data' / 'annotations')
    with pytest.raises(InputError, match=r'2 JSON files that are not COCO, .*: broken\.json, notes\.json'):
        read(tmp_path / 'data')


# Splits.


def test_without_a_file_to_train_on_others_are_named(tmp_path):
    write_coco(tmp_path / 'data')
    path = tmp_path / 'data' / 'annotations' / 'train.json'
    path.write_text('{"images": []}')
    with pytest.raises(
        InputError, match=r'by its name annotations/val\.json is for val; 1 JSON files that are not COCO'
    ):
        read(tmp_path / 'data')
    path.write_text('{')
    with pytest.raises(InputError, match=r'train\.json: not a JSON file'):
        read(tmp_path / 'data')


def test_all_images_elsewhere(tmp_path):
    write_coco(tmp_path / 'data')
    shutil.rmtree(tmp_path / 'data' / 'images')
    with pytest.raises(InputError, match=r'train\.json: all its 5 images are missing in .*data, such as photo_00'):
        read(tmp_path / 'data')


def test_one_file_is_shared_out(tmp_path):
    everything = TRAIN + VAL
    write_coco(tmp_path / 'data', train=everything, val=[])
    (tmp_path / 'data' / 'annotations' / 'val.json').unlink()
    data = check(tmp_path / 'data', everything=everything)
    assert {part.ann_file.parent.name for part in data.splits.values()} == {'own_data'}
    assert 'a random fifth is, 2 images of 8' in '\n'.join(data.findings.lines())


def test_a_split_word_that_all_share_is_none(tmp_path):
    for photo in TRAIN:
        write_photo(photo, tmp_path / 'data' / 'test_data' / 'images' / jpg(photo))
    write_text(tmp_path / 'data' / 'test_data' / 'result.json', json.dumps(coco_content(TRAIN)))
    check(tmp_path / 'data', everything=TRAIN)


def test_words_that_all_names_share_tell_no_split(tmp_path):
    write_coco(tmp_path / 'data')
    for path in (tmp_path / 'data' / 'annotations').iterdir():
        path.rename(path.with_name(f'test_{path.name}'))
    check(tmp_path / 'data', train=TRAIN, val=VAL)


@pytest.mark.parametrize(
    ('train', 'val'), [('instances_Train', 'instances_Validation'), ('train', 'eval'), ('all', 'minival')]
)
def test_other_words_for_splits(tmp_path, train, val):
    write_coco(tmp_path / 'data')
    for old, new in (('train', train), ('val', val)):
        path = tmp_path / 'data' / 'annotations' / f'{old}.json'
        path.rename(path.with_name(f'{new}.json'))
    check(tmp_path / 'data', train=TRAIN, val=VAL)


def test_three_folders_of_roboflow(tmp_path):
    for split, part in (('train', TRAIN), ('valid', VAL), ('test', TEST)):
        for photo in part:
            write_photo(photo, tmp_path / 'data' / split / jpg(photo))
        write_text(tmp_path / 'data' / split / '_annotations.coco.json', json.dumps(coco_content(part)))
    data = check(tmp_path / 'data', train=TRAIN, val=VAL, test=TEST)
    assert [part.img_dir for part in data.splits.values()] == ['train/', 'valid/', 'test/']


def test_images_of_one_name_in_two_splits(tmp_path):
    """Those beside their file, or in the folder of their split, count."""
    val = [photo.renamed(other.stem) for photo, other in zip(VAL, TRAIN)]
    for split, part in (('train', TRAIN), ('val', val)):
        for photo in part:
            write_photo(photo, tmp_path / 'data' / f'{split}2017' / jpg(photo))
        write_text(tmp_path / 'data' / 'annotations' / f'instances_{split}2017.json', json.dumps(coco_content(part)))
    data = read(tmp_path / 'data')
    assert boxes_of(data, 'val') == {photo.stem: sorted(photo.boxes) for photo in val}
    (tmp_path / 'data' / 'val2017' / jpg(val[0])).unlink()
    with pytest.raises(
        InputError,
        match=r'photo_00\.jpg: is in .*instances_train2017.json and in .*instances_val2017.* one of them is missing',
    ):
        read(tmp_path / 'data')


def test_images_of_val_in_a_folder_called_train(tmp_path):
    write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'images').rename(tmp_path / 'data' / 'train2017')
    check(tmp_path / 'data', train=TRAIN, val=VAL)


def test_of_several_files_of_a_split_instances_count(tmp_path):
    write_coco(tmp_path / 'data')
    folder = tmp_path / 'data' / 'annotations'
    shutil.copy(folder / 'val.json', folder / 'person_keypoints_val.json')
    with pytest.raises(
        InputError, match=r'several COCO files are for the val split: .*person_keypoints_val\.json, .*val\.'
    ):
        read(tmp_path / 'data')
    (folder / 'val.json').rename(folder / 'instances_val.json')
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert list(data.findings.unused.values()) == [['annotations/person_keypoints_val.json']]


def test_files_beyond_the_splits_are_named(tmp_path):
    write_coco(tmp_path / 'data')
    for name in ('all', 'trainval'):
        write_text(tmp_path / 'data' / f'{name}.json', json.dumps(coco_content(TRAIN + VAL)))
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert list(data.findings.unused.values()) == [['all.json'], ['trainval.json']]


def test_an_image_of_two_splits_is_refused(tmp_path):
    write_coco(tmp_path / 'data', val=VAL + TRAIN[:1])
    with pytest.raises(InputError, match=r'photo_00\.jpg: is in annotations/train.json and in annotations/val.json'):
        read(tmp_path / 'data')


# Classes.


def renumbered(content, ids, names=CLASSES):
    """Give the categories other ids, in this order of names."""
    old = {record['id']: record['name'] for record in content['categories']}
    new = dict(zip(names, ids))
    content['categories'] = [{'id': new[name], 'name': name} for name in names]
    for record in content['annotations']:
        record['category_id'] = new[old[record['category_id']]]


def test_ids_of_classes_may_differ(tmp_path):
    write_coco(tmp_path / 'data', unchanged, lambda c: renumbered(c, (0, 1, 2)))
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert data.splits['val'].ann_file.parent.name == 'annotations'


def test_the_order_of_classes_is_that_of_train(tmp_path):
    write_coco(tmp_path / 'data', unchanged, lambda c: renumbered(c, (1, 2, 3), ('owl', 'cat', 'dog')))
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert data.splits['val'].ann_file.parent.name == 'own_data'


def test_val_may_have_fewer_classes(tmp_path):
    def change(content):
        del content['categories'][2]
        content['annotations'] = [record for record in content['annotations'] if record['category_id'] != 3]

    write_coco(tmp_path / 'data', unchanged, change)
    val = [photo._replace(boxes=tuple(box for box in photo.boxes if box[0] != 'owl')) for photo in VAL]
    data = check(tmp_path / 'data', train=TRAIN, val=val)
    # Training needs all classes in each file, in the same order.
    assert data.splits['val'].ann_file.parent.name == 'own_data'


def test_a_category_that_heads_the_others_stays_if_it_has_boxes(tmp_path):
    def change(content):
        each('categories', lambda r: r.update(supercategory='cat'))(content)
        content['categories'][0]['supercategory'] = 'none'

    write_coco(tmp_path / 'data', change)
    assert not check(tmp_path / 'data', train=TRAIN, val=VAL).findings.repairs


def test_a_class_of_val_alone_is_refused_if_it_has_boxes(tmp_path):
    write_coco(tmp_path / 'data', unchanged, lambda c: c['categories'].append({'id': 9, 'name': 'elk'}))
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert any(
        '1 classes without a box are not in' in line and line.endswith(': elk') for line in data.findings.lines()
    )
    write_coco(tmp_path / 'data', unchanged, lambda c: c['categories'][0].update(name='Cat'))
    with pytest.raises(
        InputError, match=r'val\.json: has boxes of 1 classes that annotations/train\.json does not have: Cat'
    ):
        read(tmp_path / 'data')


# Crowds and images.


def test_crowds_and_ignored_boxes_stay_crowds(tmp_path):
    write_coco(
        tmp_path / 'data', lambda c: (c['annotations'][0].update(iscrowd=1), c['annotations'][1].update(ignore=1))
    )
    data = read(tmp_path / 'data')
    assert '2 annotations marked ignore, which are taken as crowd regions' in repairs_of(data)
    for part in data.splits.values():
        content = json.loads(part.ann_file.read_text())
        assert [record['iscrowd'] for record in content['annotations'][:3]] == [1, 1, 0]
    assert_perfect(data, 'val')


def test_a_missing_image_of_some_is_left_out_and_named(tmp_path):
    write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'images' / 'photo_02.jpg').unlink()
    data = check(tmp_path / 'data', train=[photo for photo in TRAIN if photo.stem != 'photo_02'], val=VAL)
    assert 'not used: 1 of the 5 images of annotations/train.json, which are not there: photo_02.jpg' in '\n'.join(
        data.findings.lines()
    )


def test_an_image_that_is_no_image_is_named(tmp_path):
    write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'images' / 'photo_02.jpg').rename(tmp_path / 'data' / 'images' / 'photo_02.xyz')
    path = tmp_path / 'data' / 'annotations' / 'train.json'
    path.write_text(path.read_text().replace('photo_02.jpg', 'photo_02.xyz'))
    with pytest.raises(InputError, match=r'photo_02\.xyz is there, but is no kind of image'):
        read(tmp_path / 'data')


def test_images_that_no_file_lists_are_named(tmp_path):
    write_coco(tmp_path / 'data')
    write_photo(TEST[0], tmp_path / 'data' / 'test_images' / 'more.jpg')
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert data.findings.unused == {'images without labels': ['test_images/more.jpg']}


def test_one_name_in_two_folders_is_refused(tmp_path):
    write_coco(tmp_path / 'data')
    write_photo(TEST[0], tmp_path / 'data' / 'img' / 'photo_00.jpg')
    with pytest.raises(InputError, match=r'train\.json: photo_00\.jpg fits several images: images/.* and img/'):
        read(tmp_path / 'data')


def test_boxes_of_another_scale_are_scaled(tmp_path):
    def change(content):
        each('images', lambda r: r.update(width=192, height=128))(content)
        each('annotations', lambda r: r.update(bbox=[2 * value for value in r['bbox']]))(content)

    write_coco(tmp_path / 'data', change)
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert '8 images whose labels are scaled to the size of the file' in repairs_of(data)


@pytest.mark.parametrize('is_upright', [True, False])
def test_boxes_are_turned_as_exif_turns_the_image(tmp_path, is_upright):
    """Drawn on the image as it is shown, or as it is stored: both are right afterwards."""
    write_coco(tmp_path / 'data')
    turned = []
    for photo in TRAIN + VAL:
        path = tmp_path / 'data' / 'images' / jpg(photo)
        pixels = Image.fromarray(cv2.imread(str(path)))
        exif = pixels.getexif()
        exif[274] = 6  # shown turned by a quarter, clockwise
        pixels.save(path, exif=exif)
        boxes = [(name, photo.height - y2, x1, photo.height - y1, x2) for name, x1, y1, x2, y2 in photo.boxes]
        turned.append(photo._replace(width=photo.height, height=photo.width, boxes=tuple(boxes)))
    if is_upright:
        for split, part in (('train', turned[:5]), ('val', turned[5:])):
            write_text(tmp_path / 'data' / 'annotations' / f'{split}.json', json.dumps(coco_content(part)))
    data = check(tmp_path / 'data', train=turned[:5], val=turned[5:])
    assert ('8 images whose labels are turned' in repairs_of(data)) is not is_upright


def test_damaged_annotations_of_the_kind_that_the_fuzzer_finds(tmp_path):
    """Ids of lists, names of halves of characters, numbers of hundreds of digits: refused, never a traceback."""
    for change in (
        first('images', id=[1]),
        first('images', id={}),
        first('images', file_name='\ud800'),
        first('categories', name='\ud800'),
        first('annotations', bbox=[10**400, 1, 2, 3]),
        first('annotations', image_id=True),
        first('annotations', category_id=[]),
        lambda c: c.update(annotations=None),
    ):
        write_coco(tmp_path / 'data', change, unchanged)
        with pytest.raises(InputError):
            read(tmp_path / 'data')
