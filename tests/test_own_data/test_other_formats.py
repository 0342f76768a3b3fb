"""CVAT, VIA, CSV, CreateML, Supervisely, KITTI, Label Studio, Datumaro: folders as these write them."""

import base64
import io
import json
import math
import zlib

import numpy as np
import pytest
from folder_cases import CLASSES, check, photos, read, write_photo, write_text
from PIL import Image
from pycocotools import mask as coco_mask

from yolov7_simple.runtime.errors import InputError

TRAIN, VAL = photos(5), photos(3, 5)
ALL = TRAIN + VAL


def write_images(folder, part=ALL, suffix='.jpg'):
    for photo in part:
        write_photo(photo, folder / f'{photo.stem}{suffix}')


def with_first(boxes):
    """All photographs, the first with other boxes."""
    return [ALL[0]._replace(boxes=tuple(boxes)), *ALL[1:]]


def refuses(folder, message):
    with pytest.raises(InputError, match=message):
        read(folder)


# CVAT


def cvat_box(name, x1, y1, x2, y2, more=''):
    return f'<box label="{name}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" z_order="0" {more}/>\n'


def write_cvat(folder, first=None, labels=CLASSES, subset=lambda photo: '', name='annotations.xml', tag='image'):
    """annotations.xml beside images; ``first`` takes the place of the shapes of the first image."""
    write_images(folder / 'images')
    images = ''
    for i, photo in enumerate(ALL):
        shapes = first if first is not None and i == 0 else ''.join(cvat_box(*box) for box in photo.boxes)
        images += (
            f'<{tag} id="{i}" name="{photo.stem}.jpg" {subset(photo)} width="{photo.width}" height="{photo.height}">'
            f'{shapes}</{tag}>'
        )
    meta = ''.join(f'<label><name>{label}</name><attributes/></label>' for label in labels)
    meta = f'<meta><task><labels>{meta}</labels></task></meta>' if labels else ''
    write_text(folder / name, f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{images}</annotations>')
    return folder


def test_cvat(tmp_path):
    data = check(write_cvat(tmp_path / 'data'), everything=ALL)
    assert data.form == 'CVAT' and not data.findings.repairs and not data.findings.unused


def test_cvat_classes_are_in_the_order_of_the_task(tmp_path):
    check(write_cvat(tmp_path / 'data', labels=('owl', 'dog', 'cat')), classes=('owl', 'dog', 'cat'), everything=ALL)


CVAT_SHAPES = {
    'polygon': ('<polygon label="owl" points="10,20;30.5,22;14,40"/>', (10, 20, 30.5, 40)),
    'ellipse': ('<ellipse label="owl" cx="40" cy="30" rx="10" ry="5"/>', (30, 25, 50, 35)),
    'turned ellipse': ('<ellipse label="owl" cx="40" cy="30" rx="10" ry="5" rotation="90"/>', (35, 20, 45, 40)),
    'mask': ('<mask label="owl" rle="3, 5" left="10" top="20" width="30" height="15"/>', (10, 20, 40, 35)),
    'rotated box': (cvat_box('owl', 30, 25, 50, 35, 'rotation="90.0"'), (35, 20, 45, 40)),
    'cuboid': (
        '<cuboid label="owl" xtl1="10" ytl1="20" xbl1="10" ybl1="40" xtr1="30" ytr1="20" xbr1="30" ybr1="40" '
        'xtl2="50" ytl2="15" xbl2="50" ybl2="35" xtr2="40" ytr2="15" xbr2="40" ybr2="35"/>',
        (10, 15, 50, 40),
    ),
}


@pytest.mark.parametrize('kind', CVAT_SHAPES)
def test_cvat_shapes(tmp_path, kind):
    shape, box = CVAT_SHAPES[kind]
    check(write_cvat(tmp_path / 'data', shape), everything=with_first([('owl', *box)]))


def test_cvat_shapes_without_area_are_left_out(tmp_path):
    shapes = '<points label="cat" points="3,4"/><polyline label="cat" points="3,4;5,6"/><tag label="dog"/>'
    data = check(write_cvat(tmp_path / 'data', shapes), everything=with_first([]))
    assert sum(data.findings.repairs.values()) == 3


def test_cvat_subsets_are_splits(tmp_path):
    subset = lambda photo: f'subset="{"Train" if photo in TRAIN else "Validation"}"'  # noqa: E731
    check(write_cvat(tmp_path / 'data', subset=subset), train=TRAIN, val=VAL)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'labels': ()}, 'annotations.xml: has no <meta> with the labels of the task'),
        ({'tag': 'track'}, 'annotations.xml: is CVAT for video; export the task as'),
        (
            {'first': cvat_box('cow', 1, 2, 3, 4)},
            'image photo_00.jpg, shape 1: class .cow. is not one of those declared',
        ),
        ({'first': cvat_box('cat', 1, 'x', 3, 4)}, "image photo_00.jpg, shape 1: ytl must be a number, got 'x'"),
        ({'first': '<star label="cat"/>'}, 'image photo_00.jpg, shape 1: a shape of the unknown kind star'),
        ({'first': '<polygon label="cat" points="1,2;3"/>'}, 'points of a polygon cannot be read'),
        ({'labels': ('cat', 'dog', 'owl', 'cat ')}, 'names of classes of CVAT must differ and not be empty, got cat'),
    ],
)
def test_cvat_refused_by_name(tmp_path, kwargs, message):
    refuses(write_cvat(tmp_path / 'data', **kwargs), message)


def test_cvat_that_is_cut(tmp_path):
    path = write_cvat(tmp_path / 'data') / 'annotations.xml'
    path.write_bytes(path.read_bytes()[:900])
    refuses(tmp_path / 'data', 'annotations.xml: not XML, or cut short')


def test_two_jobs_with_one_image(tmp_path):
    write_cvat(tmp_path / 'data')
    write_cvat(tmp_path / 'data', name='job_2.xml')
    refuses(tmp_path / 'data', 'has two labels, annotations.xml, image photo_00.jpg and job_2.xml, image photo_00.jpg')


# VIA


def via_rect(name, x1, y1, x2, y2, **attributes):
    shape = {'name': 'rect', 'x': x1, 'y': y1, 'width': x2 - x1, 'height': y2 - y1}
    return {'shape_attributes': shape, 'region_attributes': {'type': name, **attributes}}


def via_content(part=ALL, first=None):
    images = {}
    for i, photo in enumerate(part):
        regions = first if first is not None and i == 0 else [via_rect(*box) for box in photo.boxes]
        name = f'{photo.stem}.jpg'
        images[f'{name}1234'] = {'filename': name, 'size': 1234, 'regions': regions, 'file_attributes': {}}
    return images


def write_via(folder, content, name='via_region_data.json'):
    write_images(folder)
    write_text(folder / name, json.dumps(content))
    return folder


def via_old(content):
    """Regions by number, as VIA 1 has them."""
    for image in content.values():
        image['regions'] = {str(i): region for i, region in enumerate(image['regions'])}
    return content


@pytest.mark.parametrize('form', ['export', 'project', 'VIA 1'])
def test_via(tmp_path, form):
    content = via_content()
    if form == 'project':
        content = {'_via_settings': {}, '_via_img_metadata': content, '_via_attributes': {'region': {'type': {}}}}
    data = check(write_via(tmp_path / 'data', via_old(content) if form == 'VIA 1' else content), everything=ALL)
    assert data.form == 'VIA' and not data.findings.repairs


VIA_SHAPES = {
    'polygon': ({'name': 'polygon', 'all_points_x': [10, 30, 14], 'all_points_y': [20, 22, 40]}, (10, 20, 30, 40)),
    'circle': ({'name': 'circle', 'cx': 40, 'cy': 30, 'r': 9.5}, (30.5, 20.5, 49.5, 39.5)),
    'ellipse': ({'name': 'ellipse', 'cx': 40, 'cy': 30, 'rx': 10, 'ry': 5}, (30, 25, 50, 35)),
    'turned ellipse': (
        {'name': 'ellipse', 'cx': 40, 'cy': 30, 'rx': 10, 'ry': 5, 'theta': math.pi / 2},
        (35, 20, 45, 40),
    ),
}


@pytest.mark.parametrize('kind', VIA_SHAPES)
def test_via_shapes(tmp_path, kind):
    shape, box = VIA_SHAPES[kind]
    first = [{'shape_attributes': shape, 'region_attributes': {'type': 'owl'}}]
    check(write_via(tmp_path / 'data', via_content(first=first)), everything=with_first([('owl', *box)]))


def test_via_points_are_left_out(tmp_path):
    point = {'shape_attributes': {'name': 'point', 'cx': 1, 'cy': 2}, 'region_attributes': {'type': 'eye'}}
    data = check(write_via(tmp_path / 'data', via_content(first=[point])), everything=with_first([]))
    assert data.findings.repairs == {'points without an area, left out': 1}


def test_via_without_attributes_is_one_class(tmp_path):
    content = via_content()
    for image in content.values():
        for region in image['regions']:
            region['region_attributes'] = {}
    part = [photo._replace(boxes=tuple(('object', *box[1:]) for box in photo.boxes)) for photo in ALL]
    data = check(write_via(tmp_path / 'data', content), classes=['object'], everything=part)
    assert any('all are of one class, called object' in line for line in data.findings.lines())


def test_via_files_of_splits(tmp_path):
    for split, part in (('train', TRAIN), ('val', VAL)):
        write_images(tmp_path / 'data' / split, part)
        write_text(tmp_path / 'data' / split / 'via_region_data.json', json.dumps(via_content(part)))
    check(tmp_path / 'data', train=TRAIN, val=VAL)


def test_via_csv(tmp_path):
    write_images(tmp_path / 'data')
    rows = ['#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes']
    for image in via_content(first=[]).values():
        regions = image['regions'] or [{'shape_attributes': {}, 'region_attributes': {}}]
        for region in regions:
            cells = [json.dumps(region[key]).replace('"', '""') for key in ('shape_attributes', 'region_attributes')]
            rows.append(f'{image["filename"]},1234,"{{}}",{len(image["regions"])},0,"{cells[0]}","{cells[1]}"')
    write_text(tmp_path / 'data' / 'via.csv', '\n'.join(rows))
    assert check(tmp_path / 'data', everything=with_first([])).form == 'VIA'
    write_text(tmp_path / 'data' / 'via.csv', '\n'.join([*rows[:3], rows[3].replace('""rect""', '""rect')]))
    refuses(tmp_path / 'data', r'via.csv, line 4: the attributes of its region cannot be read')


@pytest.mark.parametrize(
    'first, message',
    [
        ([via_rect('cat', 1, 2, 30, 40, quality='good')], 'several attributes could name the class: quality, type'),
        (
            [{'shape_attributes': {'name': 'rect'}, 'region_attributes': {'type': 'cat'}}],
            'region 1: x must be a number',
        ),
        ([{'shape_attributes': {'name': 'star'}, 'region_attributes': {'type': 'cat'}}], "unknown kind 'star'"),
        ([{'shape_attributes': {'name': 'rect'}}], 'jpg1234, region 1: region_attributes must be an object, got None'),
        ([via_rect('', 1, 2, 30, 40)], 'region 1: has no name of a class'),
        (['cat'], "region 1: must be an object, got 'cat'"),
        (7, 'image photo_00.jpg1234: regions must be a list, got 7'),
    ],
)
def test_via_refused_by_name(tmp_path, first, message):
    refuses(write_via(tmp_path / 'data', via_content(first=first)), message)


# CSV

ROBOFLOW = 'filename,width,height,class,xmin,ymin,xmax,ymax'
CSV_FORMS = {
    'Roboflow': (ROBOFLOW, lambda p, n, x1, y1, x2, y2: (f'{p.stem}.jpg', p.width, p.height, n, x1, y1, x2, y2)),
    'Kaggle': ('image_id,x,y,w,h,class', lambda p, n, x1, y1, x2, y2: (p.stem, x1, y1, x2 - x1, y2 - y1, n)),
    'RSNA': ('patientId,x,y,width,height,Target', lambda p, n, x1, y1, x2, y2: (p.stem, x1, y1, x2 - x1, y2 - y1, n)),
    'makesense': (
        'label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height',
        lambda p, n, x1, y1, x2, y2: (n, x1, y1, x2 - x1, y2 - y1, f'{p.stem}.jpg', p.width, p.height),
    ),
    'bbox as text': (
        'image_id,width,height,bbox,label',
        lambda p, n, x1, y1, x2, y2: (p.stem, p.width, p.height, f'"[{x1}, {y1}, {x2 - x1}, {y2 - y1}]"', n),
    ),
    'bbox of corners': (
        'image_id,bbox,label',
        lambda p, n, x1, y1, x2, y2: (p.stem, f'"[{x1 + 0.5} {y1} {x2} {y2}]"', n),
    ),
    'centres': (
        'Image Path,X_Center,Y_Center,Width,Height,Label',
        lambda p, n, x1, y1, x2, y2: (f'C:\\me\\{p.stem}.jpg', (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, n),
    ),
    'RetinaNet': (None, lambda p, n, *box: (f'/home/me/{p.stem}.jpg', *box, n)),
    'Open Images': (
        'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf',
        lambda p, n, x1, y1, x2, y2: (
            *(p.stem, 'xclick', f'/m/{n[::-1]}', 1),
            *(x1 / p.width, x2 / p.width, y1 / p.height, y2 / p.height, 0, 0, 0),
        ),
    ),
}


def csv_text(form, part=ALL, separator=','):
    header, row = CSV_FORMS[form]
    lines = [','.join(map(str, row(photo, *box))) for photo in part for box in photo.boxes]
    return '\r\n'.join([header] * bool(header) + lines).replace(',', separator) + '\n'


def write_csv(folder, text, encoding='utf-8'):
    write_images(folder / 'images')
    write_text(folder / 'labels.csv', text, encoding)
    return folder


@pytest.mark.parametrize('form', CSV_FORMS)
def test_csv(tmp_path, form):
    write_csv(tmp_path / 'data', csv_text(form))
    if form == 'Open Images':
        names = ''.join(f'/m/{name[::-1]},{name}\n' for name in CLASSES)
        write_text(tmp_path / 'data' / 'class-descriptions-boxable.csv', names)
    data = check(tmp_path / 'data', everything=ALL)
    assert data.form == 'CSV'


@pytest.mark.parametrize('separator, encoding', [(';', 'utf-8-sig'), ('\t', 'utf-16')])
def test_csv_separators_and_encodings(tmp_path, separator, encoding):
    check(write_csv(tmp_path / 'data', csv_text('Roboflow', separator=separator), encoding), everything=ALL)


@pytest.mark.parametrize('form', ['Roboflow', 'RSNA', 'RetinaNet', 'bbox as text'])
def test_csv_rows_without_a_box_are_background(tmp_path, form):
    empty = {
        'Roboflow': f'{ALL[0].stem}.jpg,96,64,,,,,',
        'RSNA': f'{ALL[0].stem},NaN,NaN,NaN,NaN,0',
        'RetinaNet': f'{ALL[0].stem}.jpg,,,,,',
        'bbox as text': f'{ALL[0].stem},96,64,,',
    }[form]
    check(write_csv(tmp_path / 'data', f'{csv_text(form, ALL[1:])}{empty}\n'), everything=with_first([]))


def test_csv_files_of_splits(tmp_path):
    for split, part in (('train', TRAIN), ('valid', VAL)):
        write_images(tmp_path / 'data' / split, part)
        write_text(tmp_path / 'data' / split / '_annotations.csv', csv_text('Roboflow', part))
    check(tmp_path / 'data', train=TRAIN, val=VAL)


def test_csv_a_set_whose_only_word_is_train(tmp_path):
    write_images(tmp_path / 'data' / 'train')
    write_text(tmp_path / 'data' / 'train.csv', csv_text('Kaggle'))
    write_text(tmp_path / 'data' / 'sample_submission.csv', 'image_id,PredictionString\nx,1 2 3\n')
    data = check(tmp_path / 'data', everything=ALL)
    assert data.findings.unused == {'CSV files without boxes': ['sample_submission.csv']}


def test_csv_one_table_for_all_says_no_split(tmp_path):
    write_images(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'validation_labels.csv', csv_text('Kaggle'))
    check(tmp_path / 'data', everything=ALL)


def test_csv_a_second_table_that_cannot_be_read(tmp_path):
    write_csv(tmp_path / 'data', csv_text('Roboflow', TRAIN))
    write_text(tmp_path / 'data' / 'more.csv', csv_text('Roboflow', VAL).replace('cat', 'Kätzchen'), 'latin-1')
    refuses(tmp_path / 'data', r'more\.csv: is not utf-8')


def test_csv_column_of_splits(tmp_path):
    header, *rows = csv_text('Roboflow').split()
    splits = {photo.stem: 'train' if photo in TRAIN else 'val' for photo in ALL}
    rows = [f'{row},{splits[row.partition(".")[0]]}' for row in rows]
    check(write_csv(tmp_path / 'data', '\n'.join([f'{header},split', *rows])), train=TRAIN, val=VAL)


def test_csv_of_one_class(tmp_path):
    header, *rows = csv_text('bbox as text').splitlines()
    text = '\n'.join([header.replace('label', 'source'), *rows])
    part = [photo._replace(boxes=tuple(('object', *box[1:]) for box in photo.boxes)) for photo in ALL]
    data = check(write_csv(tmp_path / 'data', text), classes=['object'], everything=part)
    assert any('has no column of classes' in line for line in data.findings.lines())


def test_csv_groups_of_open_images_are_crowds(tmp_path):
    text = csv_text('Open Images') + f'{ALL[0].stem},xclick,/m/tac,1,0.1,0.9,0.1,0.9,0,0,1\n'
    data = read(write_csv(tmp_path / 'data', text))
    content = json.loads(data.splits['train'].ann_file.read_text()), json.loads(data.splits['val'].ann_file.read_text())
    assert sum(one['iscrowd'] for part in content for one in part['annotations']) == 1


def test_csv_stated_size(tmp_path):
    text = csv_text('Roboflow', [photo._replace(width=192, height=128) for photo in ALL])
    half = [photo._replace(boxes=tuple((n, *(side / 2 for side in box)) for n, *box in photo.boxes)) for photo in ALL]
    check(write_csv(tmp_path / 'data', text), everything=half)


ROW = csv_text('Roboflow').split()[1]
CSV_REFUSED = {
    'unknown columns': ('picture,wo,was\na,b,c\n', 'labels.csv: its columns are picture, wo, was: those of an image'),
    'no class': ('filename,kind,xmin,ymin,xmax,ymax\na,b,1,2,3,4\n', 'no column is called class, and kind could be it'),
    'two classes': (
        'filename,class,label,xmin,ymin,xmax,ymax\na,b,c,1,2,3,4\n',
        'class and label could both be the class',
    ),
    'cut': (f'{ROBOFLOW}\n{ROW}\nphoto_01.jpg,96,6', r'labels.csv, line 3: has 3 cells, but there are 8 columns'),
    'half a box': (
        f'{ROBOFLOW}\nphoto_01.jpg,96,64,cat,1,2,3,\n',
        "line 2: a side of the box must be a number, got ''",
    ),
    'not a number': (
        f'{ROBOFLOW}\nphoto_01.jpg,96,64,cat,1,2,3,x\n',
        "line 2: a side of the box must be a number, got 'x'",
    ),
    'no image': (f'{ROBOFLOW}\n,96,64,cat,1,2,3,4\n', r'labels.csv, line 2: names no image'),
    'no name': (f'{ROBOFLOW}\nphoto_01.jpg,96,64, ,1,2,3,4\n', 'line 2: has no name of a class'),
    'three numbers': ('image_id,bbox,label\nphoto_01,"[1, 2, 3]",cat\n', 'line 2: a box must be four numbers'),
    'two readings': ('image_id,bbox,label\nphoto_01,"[1, 2, 13, 14]",cat\n', 'could be x, y, width, height as well as'),
    'encoding': (f'{ROBOFLOW}\nphoto_01.jpg,96,64,Kätzchen,1,2,3,4\n', 'labels.csv: is not utf-8'),
}


@pytest.mark.parametrize('kind', CSV_REFUSED)
def test_csv_refused_by_name(tmp_path, kind):
    text, message = CSV_REFUSED[kind]
    refuses(write_csv(tmp_path / 'data', text, 'latin-1'), message)


# CreateML


def createml_content(part=ALL):
    return [
        {
            'image': f'{photo.stem}.jpg',
            'annotations': [
                {
                    'label': name,
                    'coordinates': {'x': (x1 + x2) / 2, 'y': (y1 + y2) / 2, 'width': x2 - x1, 'height': y2 - y1},
                }
                for name, x1, y1, x2, y2 in photo.boxes
            ],
        }
        for photo in part
    ]


def test_createml(tmp_path):
    for split, part in (('train', TRAIN), ('valid', VAL)):
        write_images(tmp_path / 'data' / split, part)
        write_text(tmp_path / 'data' / split / '_annotations.createml.json', json.dumps(createml_content(part)))
    assert check(tmp_path / 'data', train=TRAIN, val=VAL).form == 'CreateML'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: content[0].pop('image'), 'a.json, record 1: image must be a text'),
        (lambda content: content[1].pop('annotations'), 'a.json, record 2: annotations must be a list, got None'),
        (lambda content: content[0]['annotations'][0].pop('label'), 'image photo_00.jpg, annotation 1: has no name'),
        (
            lambda content: content[0]['annotations'][0].pop('coordinates'),
            'annotation 1: coordinates must be an object',
        ),
        (
            lambda content: content[0]['annotations'][0]['coordinates'].pop('x'),
            'annotation 1: x must be a number, got None',
        ),
        (lambda content: content.append(content[0]), 'has two labels, a.json, image photo_00.jpg and a.json'),
    ],
)
def test_createml_refused_by_name(tmp_path, change, message):
    write_images(tmp_path / 'data')
    content = createml_content()
    change(content)
    write_text(tmp_path / 'data' / 'a.json', json.dumps(content))
    refuses(tmp_path / 'data', message)


def test_json_that_is_cut(tmp_path):
    write_images(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'a.json', json.dumps(createml_content())[:-30])
    refuses(tmp_path / 'data', 'a.json: not JSON, or cut short')


# Supervisely


def supervisely_content(photo):
    objects = [
        {'classTitle': name, 'geometryType': 'rectangle', 'points': {'exterior': [[x2, y1], [x1, y2]], 'interior': []}}
        for name, x1, y1, x2, y2 in photo.boxes
    ]
    return {'description': '', 'tags': [], 'size': {'height': photo.height, 'width': photo.width}, 'objects': objects}


def write_supervisely(folder, first=None, tag=None, part=ALL):
    """meta.json, ds/img, ds/ann."""
    write_images(folder / 'ds' / 'img', part)
    for i, photo in enumerate(part):
        content = supervisely_content(photo)
        if i == 0 and first is not None:
            content['objects'] = first
        if tag:
            content['tags'] = [{'name': tag(photo)}]
        write_text(folder / 'ds' / 'ann' / f'{photo.stem}.jpg.json', json.dumps(content))
    classes = [{'title': name, 'shape': 'any'} for name in CLASSES[::-1]]
    write_text(folder / 'meta.json', json.dumps({'classes': classes, 'tags': []}))
    return folder


def test_supervisely(tmp_path):
    data = check(write_supervisely(tmp_path / 'data'), classes=CLASSES[::-1], everything=ALL)
    assert data.form == 'Supervisely' and not data.findings.unused


def test_supervisely_tags_are_splits(tmp_path):
    write_supervisely(tmp_path / 'data', tag=lambda photo: 'train' if photo in TRAIN else 'val')
    check(tmp_path / 'data', classes=CLASSES[::-1], train=TRAIN, val=VAL)


def test_supervisely_shapes(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.ones((10, 20), bool)).save(png, 'png')
    first = [
        {'classTitle': 'cat', 'geometryType': 'polygon', 'points': {'exterior': [[1, 2], [30, 4], [5, 40]]}},
        {
            'classTitle': 'dog',
            'geometryType': 'bitmap',
            'bitmap': {'origin': [5, 6], 'data': base64.b64encode(zlib.compress(png.getvalue())).decode()},
        },
        {'classTitle': 'dog', 'geometryType': 'point', 'points': {'exterior': [[1, 2]]}},
    ]
    truth = with_first([('cat', 1, 2, 30, 40), ('dog', 5, 6, 25, 16)])
    data = check(write_supervisely(tmp_path / 'data', first), classes=CLASSES[::-1], everything=truth)
    assert data.findings.repairs == {'points without an area, left out': 1}


@pytest.mark.parametrize(
    'first, message',
    [
        ([{'geometryType': 'rectangle'}], 'photo_00.jpg.json, object 1: points must be an object, got None'),
        ([{'geometryType': 'star'}], "object 1: a figure of the unknown kind 'star'"),
        ([{'geometryType': 'rectangle', 'points': {'exterior': [[1, 2]]}}], 'object 1: must have at least 2 points'),
        (
            [{'geometryType': 'rectangle', 'points': {'exterior': [[1, 2], [30, 40]]}}],
            'object 1: has no name of a class',
        ),
        ([{'geometryType': 'bitmap', 'bitmap': {'origin': [1, 2], 'data': 'x'}}], 'its bitmap cannot be decoded'),
        ('cat', "photo_00.jpg.json: objects must be a list, got 'cat'"),
    ],
)
def test_supervisely_refused_by_name(tmp_path, first, message):
    refuses(write_supervisely(tmp_path / 'data', first), message)


# KITTI


def write_kitti(folder, first=None):
    write_images(folder / 'training' / 'image_2', suffix='.png')
    for i, photo in enumerate(ALL):
        lines = ''.join(
            f'{name} 0.00 0 -1.58 {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f} 1.5 1.6 3.7 -2.7 1.7 3.7e1 -1.6\n'
            for name, x1, y1, x2, y2 in photo.boxes
        )
        write_text(
            folder / 'training' / 'label_2' / f'{photo.stem}.txt', first if i == 0 and first is not None else lines
        )
    return folder


def test_kitti(tmp_path):
    write_images(tmp_path / 'data' / 'training' / 'image_3', suffix='.png')  # of the other camera
    write_images(tmp_path / 'data' / 'testing' / 'image_2', photos(2, 20), suffix='.png')
    data = check(write_kitti(tmp_path / 'data'), everything=ALL)
    assert data.form == 'KITTI' and len(data.findings.unused['images without labels']) == len(ALL) + 2


def test_kitti_regions_that_nobody_labelled_are_left_out(tmp_path):
    line = 'DontCare -1 -1 -10 10 20 30 40 -1 -1 -1 -1000 -1000 -1000 -10\n'
    data = check(write_kitti(tmp_path / 'data', line), everything=with_first([]))
    assert data.findings.repairs == {'regions called DontCare, left out': 1}


def test_kitti_empty_file_is_background(tmp_path):
    check(write_kitti(tmp_path / 'data', ''), everything=with_first([]))


def test_kitti_line_that_is_cut(tmp_path):
    refuses(write_kitti(tmp_path / 'data', 'cat 0.00 0 -1.58 10'), 'photo_00.txt, line 1: not a label of KITTI')


# Label Studio


def studio_result(name, x1, y1, x2, y2, kind='rectanglelabels', **value):
    box = {'x': x1 / 0.96, 'y': y1 / 0.64, 'width': (x2 - x1) / 0.96, 'height': (y2 - y1) / 0.64, 'rotation': 0}
    value = {**(box if not value else {}), **value, kind: [name]}
    return {'id': 'a', 'type': kind, 'value': value, 'original_width': 96, 'original_height': 64, 'image_rotation': 0}


def studio_content(first=None, image='/data/upload/3/0a1b2c3d-{}.jpg'):
    tasks = []
    for i, photo in enumerate(ALL):
        results = first if i == 0 and first is not None else [studio_result(*box) for box in photo.boxes]
        annotations = [{'id': i, 'result': results, 'was_cancelled': False}]
        tasks.append({'id': i + 10, 'data': {'image': image.format(photo.stem)}, 'annotations': annotations})
    return tasks


def write_studio(folder, content, part=ALL):
    write_images(folder / 'images', part)
    write_text(folder / 'project-1.json', json.dumps(content))
    return folder


@pytest.mark.parametrize(
    'image', ['/data/upload/3/0a1b2c3d-{}.jpg', '/data/local-files/?d=images/{}.jpg', 's3://bucket/images/{}.jpg']
)
def test_label_studio(tmp_path, image):
    data = check(write_studio(tmp_path / 'data', studio_content(image=image)), everything=ALL)
    assert data.form == 'Label Studio'


STUDIO_SHAPES = {
    'polygon': (
        studio_result('owl', 0, 0, 0, 0, 'polygonlabels', points=[[10, 20], [50, 25], [30, 75]]),
        (9.6, 12.8, 48, 48),
    ),
    'ellipse': (
        studio_result('owl', 0, 0, 0, 0, 'ellipselabels', x=50, y=50, radiusX=10, radiusY=25, rotation=0),
        (38.4, 16, 57.6, 48),
    ),
    # A quarter to the right about the upper left corner.
    'rotated': (
        studio_result('owl', 0, 0, 0, 0, x=50, y=25, width=25, height=25, rotation=90),
        (32, 16, 48, 40),
    ),
}


@pytest.mark.parametrize('kind', STUDIO_SHAPES)
def test_label_studio_shapes(tmp_path, kind):
    result, box = STUDIO_SHAPES[kind]
    check(write_studio(tmp_path / 'data', studio_content([result])), everything=with_first([('owl', *box)]))


def test_label_studio_labels_apart_from_their_shape(tmp_path):
    box = ALL[0].boxes[0]
    labels, shape = studio_result(*box, kind='labels'), studio_result(*box)
    shape['type'] = 'rectangle'
    del shape['value']['rectanglelabels']
    check(write_studio(tmp_path / 'data', studio_content([shape, labels])), everything=with_first([box]))


def test_label_studio_tasks_that_nobody_annotated(tmp_path):
    content = studio_content()
    content[0]['annotations'] = []
    content[1]['annotations'][0]['was_cancelled'] = True
    content[2]['annotations'][0]['result'] = []
    data = check(write_studio(tmp_path / 'data', content), everything=[ALL[2]._replace(boxes=()), *ALL[3:]])
    assert len(data.findings.unused['tasks of Label Studio that nobody has annotated']) == 2


def test_label_studio_ground_truth_among_annotators(tmp_path):
    content = studio_content()
    content[0]['annotations'].append({'result': []})
    refuses(write_studio(tmp_path / 'data', content), 'task 10: has 2 annotations. Mark the one that counts')
    content[0]['annotations'][0]['ground_truth'] = True
    check(write_studio(tmp_path / 'data', content), everything=ALL)


@pytest.mark.parametrize(
    'result, message',
    [
        (studio_result('cat', 0, 0, 0, 0, 'brushlabels', rle=[1]), 'task 10, result 1: masks of a brush are not read'),
        ({**studio_result('cat', 1, 2, 3, 4), 'original_width': None}, 'result 1: original_width must be a number'),
        ({**studio_result('cat', 1, 2, 3, 4), 'value': {'x': 1}}, 'result 1: a rectanglelabels without a label'),
        ({**studio_result('cat', 1, 2, 3, 4), 'image_rotation': 90}, 'turned in Label Studio'),
        (studio_result('cat', 0, 0, 0, 0, x='a'), "task 10, result 1: x must be a number, got 'a'"),
        ('cat', "task 10, result 1: result must be an object, got 'cat'"),
    ],
)
def test_label_studio_refused_by_name(tmp_path, result, message):
    refuses(write_studio(tmp_path / 'data', studio_content([result])), message)


def test_label_studio_json_min(tmp_path):
    content = [{'id': 3, 'image': 'x.jpg', 'label': [{'x': 1, 'original_width': 96, 'rectanglelabels': ['cat']}]}]
    refuses(
        write_studio(tmp_path / 'data', content), 'task 3: has no data, as in "JSON-MIN"; export the project as "JSON"'
    )


# Datumaro


def datumaro_content(part=ALL, first=None):
    items = []
    for i, photo in enumerate(part):
        boxes = [
            {'type': 'bbox', 'label_id': CLASSES.index(name), 'bbox': [x1, y1, x2 - x1, y2 - y1], 'attributes': {}}
            for name, x1, y1, x2, y2 in photo.boxes
        ]
        image = {'path': f'{photo.stem}.jpg', 'size': [photo.height, photo.width]}
        annotations = first if i == 0 and first is not None else boxes
        items.append({'id': photo.stem, 'annotations': annotations, 'image': image})
    labels = [{'name': name, 'parent': ''} for name in CLASSES]
    return {'info': {}, 'categories': {'label': {'labels': labels}, 'points': {}}, 'items': items}


def test_datumaro(tmp_path):
    for split, part in (('train', TRAIN), ('val', VAL)):
        write_images(tmp_path / 'data' / 'images' / split, part)
        write_text(tmp_path / 'data' / 'annotations' / f'{split}.json', json.dumps(datumaro_content(part)))
    assert check(tmp_path / 'data', train=TRAIN, val=VAL).form == 'Datumaro'


def write_datumaro(folder, first):
    write_images(folder / 'images')
    write_text(folder / 'annotations' / 'default.json', json.dumps(datumaro_content(first=first)))
    return folder


@pytest.mark.parametrize('is_compressed', [True, False])
def test_datumaro_shapes(tmp_path, is_compressed):
    pixels = np.zeros((64, 96), np.uint8, order='F')
    pixels[10:30, 20:50] = 1
    counts = coco_mask.encode(pixels)['counts'].decode()
    if not is_compressed:
        runs = np.flatnonzero(np.diff(pixels.ravel('F'), prepend=0, append=0)).tolist()
        counts = np.diff([0, *runs, pixels.size]).tolist()
    first = [
        {'type': 'polygon', 'label_id': 0, 'points': [1, 2, 30, 4, 5, 40]},
        {'type': 'mask', 'label_id': 1, 'rle': {'counts': counts, 'size': [64, 96]}},
        {'type': 'points', 'label_id': 1, 'points': [1, 2]},
    ]
    truth = with_first([('cat', 1, 2, 30, 40), ('dog', 20, 10, 50, 30)])
    check(write_datumaro(tmp_path / 'data', first), everything=truth)


@pytest.mark.parametrize(
    'first, message',
    [
        (
            [{'type': 'bbox', 'label_id': 7, 'bbox': [1, 2, 3, 4]}],
            'item 1, annotation 1: label_id 7, but the classes are',
        ),
        ([{'type': 'bbox', 'label_id': 0, 'bbox': [1, 2, 3]}], 'annotation 1: points must be pairs of numbers'),
        ([{'type': 'bbox', 'label_id': 0}], 'default.json, item 1, annotation 1: bbox must be a list, got None'),
        ([{'type': 'star', 'label_id': 0}], "annotation 1: an annotation of the unknown kind 'star'"),
        ([{'type': 'mask', 'label_id': 0, 'rle': {'counts': 3}}], 'annotation 1: its mask cannot be decoded'),
    ],
)
def test_datumaro_refused_by_name(tmp_path, first, message):
    refuses(write_datumaro(tmp_path / 'data', first), message)


# Several formats in one folder


def test_labels_of_two_formats_are_refused_by_name(tmp_path):
    write_cvat(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'labels.csv', csv_text('Roboflow'))
    refuses(tmp_path / 'data', r'has labels of CVAT \(annotations.xml\) and CSV \(labels.csv\)')
    check(tmp_path / 'data', source=tmp_path / 'data' / 'annotations.xml', everything=ALL)


def test_json_that_is_of_no_format(tmp_path):
    write_csv(tmp_path / 'data', csv_text('Kaggle'))
    for i, content in enumerate(
        ([], {}, 7, {'regions': {'filename': 1}}, {'items': [], 'categories': []}, [{'coordinates': 1}])
    ):
        write_text(tmp_path / 'data' / f'{i}.json', json.dumps(content))
    check(tmp_path / 'data', everything=ALL)
