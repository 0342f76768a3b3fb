"""VOC's XML: what an object is, which image a file is of, and what ImageSets declares."""

import math
import re

import cv2
import pytest
from folder_cases import CLASSES, check, photos, read, write_photo, write_text
from PIL import Image

from yolov7_simple.runtime.errors import InputError

TRAIN, VAL = photos(5), photos(3, 5)
FIRST = 'Annotations/photo_00.xml'


def voc_object(name, x1, y1, x2, y2, inside=''):
    box = f'<xmin>{x1:g}</xmin><ymin>{y1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax>'
    return f'<object><name>{name}</name><difficult>0</difficult>{inside}<bndbox>{box}</bndbox></object>\n'


def voc_text(photo, objects=None, head=None):
    """The XML of a photo, with the name of its image and its size unless ``head`` is in their place."""
    if head is None:
        head = (
            f'<folder>images</folder><filename>{photo.stem}.jpg</filename>'
            f'<size><width>{photo.width}</width><height>{photo.height}</height><depth>3</depth></size>'
        )
    objects = ''.join(voc_object(*box) for box in photo.boxes) if objects is None else objects
    return f'<annotation verified="yes">{head}{objects}</annotation>'


def write_voc(folder, parts=(TRAIN, VAL), images='JPEGImages', labels='Annotations', suffix='.jpg', **kwargs):
    """JPEGImages and Annotations, without a split."""
    for photo in (photo for part in parts for photo in part):
        write_photo(photo, folder / images / f'{photo.stem}{suffix}')
        write_text(folder / labels / f'{photo.stem}.xml', voc_text(photo, **kwargs))
    return folder


def write_lists(folder, lists, ending=''):
    """ImageSets/Main."""
    for name, part in lists.items():
        lines = ''.join(f'{photo.stem}{ending}\n' for photo in part)
        write_text(folder / 'ImageSets' / 'Main' / f'{name}.txt', lines)
    return folder


def edit(path, function):
    path.write_text(function(path.read_text()))


def test_without_a_split(tmp_path):
    data = check(write_voc(tmp_path / 'data'), everything=TRAIN + VAL)
    assert data.form == 'VOC' and not data.findings.repairs and not data.findings.unused


HEADS = {
    'no size, no filename': lambda photo: '<folder>images</folder>',
    'no size': lambda photo: f'<filename>{photo.stem}.jpg</filename>',
    'size 0': lambda photo: '<size><width>0</width><height>0</height></size>',
    'size empty': lambda photo: '<size><width/><height></height></size><filename/>',
    'filename without suffix': lambda photo: f'<filename>{photo.stem}</filename>',
    'filename with another suffix': lambda photo: f'<filename>{photo.stem}.png</filename>',
    'filename of no file': lambda photo: '<filename>unknown.jpg</filename>',
    'path of Windows': lambda photo: f'<filename>x</filename><path>C:\\Users\\me\\{photo.stem}.jpg</path>',
}


@pytest.mark.parametrize('kind', HEADS)
def test_what_is_known_of_the_image(tmp_path, kind):
    write_voc(tmp_path / 'data')
    for photo in TRAIN[:2]:
        path = tmp_path / 'data' / 'Annotations' / f'{photo.stem}.xml'
        write_text(path, voc_text(photo, head=HEADS[kind](photo)))
    check(tmp_path / 'data', everything=TRAIN + VAL)


@pytest.mark.parametrize('encoding', ['gb2312', 'gbk', 'utf-16', 'iso-8859-1', 'shift_jis'])
def test_declared_encodings(tmp_path, encoding):
    name = {'iso-8859-1': 'süß', 'shift_jis': '犬'}.get(encoding, '白細胞' if encoding == 'gbk' else '白细胞')
    part = [photo._replace(boxes=tuple((name, *box[1:]) for box in photo.boxes)) for photo in TRAIN]
    write_voc(tmp_path / 'data', [part])
    for path in (tmp_path / 'data' / 'Annotations').iterdir():
        write_text(path, f'<?xml version="1.0" encoding="{encoding}"?>\n{path.read_text()}', encoding)
    check(tmp_path / 'data', classes=[name], everything=part)


def test_what_calls_itself_gb2312_and_has_more_characters(tmp_path):
    part = [photo._replace(boxes=tuple(('白細胞', *box[1:]) for box in photo.boxes)) for photo in TRAIN]
    write_voc(tmp_path / 'data', [part])
    for path in (tmp_path / 'data' / 'Annotations').iterdir():
        write_text(path, f'<?xml version="1.0" encoding="GB2312"?>{path.read_text()}', 'gbk')
    check(tmp_path / 'data', classes=['白細胞'], everything=part)


def test_byte_order_mark(tmp_path):
    write_voc(tmp_path / 'data')
    for path in (tmp_path / 'data' / 'Annotations').iterdir():
        write_text(path, path.read_text(), 'utf-8-sig')
    check(tmp_path / 'data', everything=TRAIN + VAL)


def test_reversed_corners_are_swapped(tmp_path):
    write_voc(tmp_path / 'data')
    objects = ''.join(voc_object(name, x2, y1, x1, y2) for name, x1, y1, x2, y2 in TRAIN[0].boxes)
    write_text(tmp_path / 'data' / FIRST, voc_text(TRAIN[0], objects))
    data = check(tmp_path / 'data', everything=TRAIN + VAL)
    assert data.findings.repairs == {'boxes with swapped corners': len(TRAIN[0].boxes)}


def test_blanks_around_names(tmp_path):
    write_voc(tmp_path / 'data')
    edit(tmp_path / 'data' / FIRST, lambda text: re.sub('<name>(.*?)</name>', r'<name> \1\n</name>', text))
    data = check(tmp_path / 'data', everything=TRAIN + VAL)
    assert data.findings.repairs == {'boxes with blanks around the name of their class': len(TRAIN[0].boxes)}


def test_names_that_differ_in_capitals_are_told(tmp_path):
    write_voc(tmp_path / 'data')
    edit(tmp_path / 'data' / 'Annotations/photo_01.xml', lambda text: text.replace('dog', 'Dog'))
    assert any('capitals alone' in line for line in read(tmp_path / 'data').findings.lines())


def test_difficult_objects_are_used(tmp_path):
    write_voc(tmp_path / 'data')
    edit(tmp_path / 'data' / FIRST, lambda text: text.replace('<difficult>0', '<difficult>1'))
    data = check(tmp_path / 'data', everything=TRAIN + VAL)
    assert f'{len(TRAIN[0].boxes)} boxes are marked difficult, and used like the others' in data.findings.remarks


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = '<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>'
    write_voc(tmp_path / 'data')
    write_text(tmp_path / 'data' / FIRST, voc_text(TRAIN[0], ''.join(voc_object(*box, part) for box in TRAIN[0].boxes)))
    check(tmp_path / 'data', everything=TRAIN + VAL)


def test_objects_below_another_element(tmp_path):
    write_voc(tmp_path / 'data')
    objects = ''.join(voc_object(*box) for box in TRAIN[0].boxes)
    write_text(tmp_path / 'data' / FIRST, voc_text(TRAIN[0], f'<objects>{objects}</objects>'))
    check(tmp_path / 'data', everything=TRAIN + VAL)


def test_a_rotated_box_becomes_that_around_it(tmp_path):
    write_voc(tmp_path / 'data')
    box = f'<robndbox><cx>40</cx><cy>30</cy><w>20</w><h>10</h><angle>{math.pi / 2}</angle></robndbox>'
    write_text(tmp_path / 'data' / FIRST, voc_text(TRAIN[0], f'<object><name>cat</name>{box}</object>'))
    turned = TRAIN[0]._replace(boxes=(('cat', 35.0, 20.0, 45.0, 40.0),))
    data = check(tmp_path / 'data', everything=[turned, *TRAIN[1:], *VAL])
    assert data.findings.repairs == {'rotated boxes replaced by the boxes around them': 1}


def test_a_box_without_area_is_left_out(tmp_path):
    write_voc(tmp_path / 'data')
    flat = voc_object('cat', 9, 5, 9, 20)
    edit(tmp_path / 'data' / FIRST, lambda text: text.replace('</annotation>', f'{flat}</annotation>'))
    data = check(tmp_path / 'data', everything=TRAIN + VAL)
    assert data.findings.repairs == {'boxes without an area, left out': 1}


def test_an_xml_without_objects_is_background(tmp_path):
    write_voc(tmp_path / 'data')
    write_text(tmp_path / 'data' / FIRST, voc_text(TRAIN[0], ''))
    check(tmp_path / 'data', everything=[TRAIN[0]._replace(boxes=()), *TRAIN[1:], *VAL])


def test_images_without_xml_and_xml_without_image_are_not_used(tmp_path):
    write_voc(tmp_path / 'data')
    (tmp_path / 'data' / FIRST).unlink()
    (tmp_path / 'data' / 'JPEGImages' / 'photo_01.jpg').unlink()
    data = check(tmp_path / 'data', everything=TRAIN[2:] + VAL)
    assert data.findings.unused == {
        'images without labels': ['JPEGImages/photo_00.jpg'],
        'labels without an image': ['Annotations/photo_01.xml'],
    }


def test_the_suffix_of_the_image_before_that_of_the_label(tmp_path):
    for photo in TRAIN:
        write_photo(photo, tmp_path / 'data' / f'{photo.stem}.jpg')
        write_text(tmp_path / 'data' / f'{photo.stem}.jpg.xml', voc_text(photo, head=''))
    check(tmp_path / 'data', everything=TRAIN)


def test_the_folder_decides_between_pictures_of_one_name(tmp_path):
    write_voc(tmp_path / 'data', images='images')
    for photo in TRAIN:
        write_photo(photo._replace(boxes=()), tmp_path / 'data' / 'resized' / f'{photo.stem}.jpg')
    data = check(tmp_path / 'data', everything=TRAIN + VAL)
    assert all(name.startswith('resized/') for name in data.findings.unused['images without labels'])
    for path in (tmp_path / 'data' / 'Annotations').iterdir():
        edit(path, lambda text: text.replace('<folder>images', '<folder>resized'))
    assert read(tmp_path / 'data').findings.unused['images without labels'][0] == 'images/photo_00.jpg'


def test_masks_are_no_images(tmp_path):
    write_voc(tmp_path / 'data', head='')
    for photo in TRAIN:
        path = tmp_path / 'data' / 'SegmentationClass' / f'{photo.stem}.png'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.imread(str(tmp_path / 'data' / 'JPEGImages' / f'{photo.stem}.jpg')))
        # The mask's own name, which tools write where it was labelled.
        head = f'<filename>{photo.stem}.png</filename>'
        write_text(tmp_path / 'data' / 'Annotations' / f'{photo.stem}.xml', voc_text(photo, head=head))
    check(tmp_path / 'data', everything=TRAIN + VAL)


def test_a_mask_does_not_stand_in_for_its_image(tmp_path):
    write_voc(tmp_path / 'data', head='')
    (tmp_path / 'data' / 'masks').mkdir()
    (tmp_path / 'data' / 'JPEGImages' / 'photo_00.jpg').rename(tmp_path / 'data' / 'masks' / 'photo_00.jpg')
    data = check(tmp_path / 'data', everything=TRAIN[1:] + VAL)
    assert data.findings.unused['labels without an image'] == [FIRST]


def test_a_set_in_a_folder_called_like_drawings(tmp_path):
    write_voc(tmp_path / 'data' / 'annotated')
    check(tmp_path / 'data', everything=TRAIN + VAL)


def test_the_path_where_no_other_name_fits(tmp_path):
    write_voc(tmp_path / 'data')
    for i, photo in enumerate(TRAIN):
        head = f'<filename>image</filename><path>/home/me/{photo.stem}.jpg</path>'
        (tmp_path / 'data' / 'Annotations' / f'{photo.stem}.xml').unlink()
        write_text(tmp_path / 'data' / 'Annotations' / f'{i}.xml', voc_text(photo, head=head))
    check(tmp_path / 'data', everything=TRAIN + VAL)


def test_one_name_in_two_folders(tmp_path):
    for site, part in (('site_a', TRAIN), ('site_b', [photo._replace(boxes=TRAIN[0].boxes[:1]) for photo in TRAIN])):
        write_voc(tmp_path / 'data' / site, [part], 'images', 'xml')
    data = read(tmp_path / 'data')
    assert sum(split.num_images for split in data.splits.values()) == 10
    assert sum(split.num_boxes for split in data.splits.values()) == sum(len(photo.boxes) for photo in TRAIN) + 5


def test_copies_that_name_the_first_image(tmp_path):
    write_voc(tmp_path / 'data')
    flipped = TRAIN[0].renamed('photo_00_flipped')._replace(boxes=TRAIN[1].boxes)
    write_photo(flipped, tmp_path / 'data' / 'JPEGImages' / f'{flipped.stem}.jpg')
    text = voc_text(flipped).replace(flipped.stem, 'photo_00')
    write_text(tmp_path / 'data' / 'Annotations' / f'{flipped.stem}.xml', text)
    data = check(tmp_path / 'data', everything=[*TRAIN, flipped, *VAL])
    assert data.findings.repairs == {'labels that name the image of another, given that of their own name': 1}


def test_a_label_of_another_size(tmp_path):
    double = [photo._replace(width=192, height=128) for photo in TRAIN]
    write_voc(tmp_path / 'data', [TRAIN])
    for photo in double:
        objects = ''.join(voc_object(name, *(2 * side for side in box)) for name, *box in photo.boxes)
        write_text(tmp_path / 'data' / 'Annotations' / f'{photo.stem}.xml', voc_text(photo, objects))
    check(tmp_path / 'data', everything=TRAIN)


def test_a_label_of_an_image_that_exif_turns(tmp_path):
    write_voc(tmp_path / 'data')
    turned = []
    for photo in TRAIN:
        path = tmp_path / 'data' / 'JPEGImages' / f'{photo.stem}.jpg'
        with Image.open(path) as image:
            exif = image.getexif()
            exif[274] = 6  # shown a quarter to the right
            image.save(path, exif=exif)
        boxes = tuple((name, photo.height - y2, x1, photo.height - y1, x2) for name, x1, y1, x2, y2 in photo.boxes)
        turned.append(photo._replace(width=photo.height, height=photo.width, boxes=boxes))
    check(tmp_path / 'data', everything=turned + VAL)


@pytest.mark.parametrize(
    'lists, ending',
    [
        ({'train': TRAIN, 'val': VAL}, ''),
        ({'Train': TRAIN, 'Validation': VAL}, ''),
        ({'train': TRAIN, 'val': VAL, 'trainval': TRAIN + VAL}, '.jpg'),
        ({'train': TRAIN, 'trainval': TRAIN + VAL}, '  '),
        ({'TRAIN': TRAIN, 'test_val': [], 'VAL': VAL, 'cat_train': VAL, 'cat_val': TRAIN}, ' 1'),
    ],
)
def test_lists_of_splits(tmp_path, lists, ending):
    write_voc(tmp_path / 'data')
    check(write_lists(tmp_path / 'data', lists, ending), train=TRAIN, val=VAL)


def test_lists_of_one_class_and_of_other_tasks_are_no_splits(tmp_path):
    write_voc(tmp_path / 'data')
    write_lists(tmp_path / 'data', {'train': TRAIN, 'val': VAL})
    flags = ''.join(f'{photo.stem} {-1 if i % 2 else 1}\n' for i, photo in enumerate(TRAIN + VAL))
    write_text(tmp_path / 'data' / 'ImageSets' / 'Main' / 'train_val.txt', flags)
    write_text(tmp_path / 'data' / 'ImageSets' / 'Segmentation' / 'train.txt', f'{VAL[0].stem}\n')
    check(tmp_path / 'data', train=TRAIN, val=VAL)


def test_trainval_is_shared_out(tmp_path):
    test = photos(2, 8)
    write_lists(write_voc(tmp_path / 'data', (TRAIN, VAL, test)), {'trainval': TRAIN + VAL, 'test': test})
    check(tmp_path / 'data', everything=TRAIN + VAL, test=test)


def test_what_lists_name_and_is_not_there_is_told(tmp_path):
    write_lists(write_voc(tmp_path / 'data'), {'train': [*TRAIN, TRAIN[0].renamed('lost')], 'val': VAL})
    data = check(tmp_path / 'data', train=TRAIN, val=VAL)
    assert any('train.txt: 1 of its 6 images are not there: lost' in line for line in data.findings.lines())


def test_two_years(tmp_path):
    for year, part in (('VOC2007', TRAIN), ('VOC2012', [photo._replace(boxes=photo.boxes[:1]) for photo in TRAIN])):
        write_lists(write_voc(tmp_path / 'data' / year, [part]), {'train': part[:3], 'val': part[3:]})
    data = read(tmp_path / 'data')
    assert {split: part.num_images for split, part in data.splits.items()} == {'train': 6, 'val': 4}


def test_folders_of_splits_as_rt_odlab_and_roboflow_have_them(tmp_path):
    write_voc(tmp_path / 'data' / 'train', [TRAIN], 'images', 'annotations')
    write_voc(tmp_path / 'data' / 'valid', [VAL], '', '')
    write_text(tmp_path / 'data' / 'README.roboflow.txt', 'cells\n\nexported with 3 images\n')
    check(tmp_path / 'data', train=TRAIN, val=VAL)


def test_other_xml_is_not_used(tmp_path):
    write_voc(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'settings.xml', '<project><annotation/></project>')
    data = check(tmp_path / 'data', everything=TRAIN + VAL)
    assert data.findings.unused == {'XML files that are not of VOC': ['settings.xml']}


REFUSED = {
    'no box': ('<bndbox>.*?</bndbox>', '', r'photo_00\.xml, object 1: has no bndbox'),
    'no corner': ('<xmax>.*?</xmax>', '', r'object 1: xmax must be a number, got None'),
    'not a number': ('<xmin>.*?</xmin>', '<xmin>12,5</xmin>', r"object 1: xmin must be a number, got '12,5'"),
    'not finite': ('<ymin>.*?</ymin>', '<ymin>nan</ymin>', r"object 1: ymin must be a number, got 'nan'"),
    'no name': ('<name>.*?</name>', '<name> </name>', r'object 1: has no name of a class'),
    'cut': ('(?s)</object>.*', '', r'photo_00\.xml: not XML, or cut short'),
    'empty': ('(?s).*', '', r'photo_00\.xml: is empty'),
    'size': ('<width>.*?</width>', '<width>wide</width>', r"photo_00\.xml: width must be a number, got 'wide'"),
    'another picture': (
        '<width>.*?</width>',
        '<width>500</width>',
        r'photo_00\.xml: was drawn on an image of 500 x 64',
    ),
    'image of another': ('photo_00.jpg', 'photo_07.jpg', 'has two labels, .*photo_00.xml and .*photo_07.xml'),
    'encoding': ('^', '<?xml version="1.0" encoding="klingon"?>', r'photo_00\.xml: is not klingon'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refused_by_name(tmp_path, kind):
    pattern, new, message = REFUSED[kind]
    write_voc(tmp_path / 'data')
    edit(tmp_path / 'data' / FIRST, lambda text: re.sub(pattern, new, text, count=1))
    if kind == 'image of another':
        (tmp_path / 'data' / 'JPEGImages' / 'photo_00.jpg').unlink()
    with pytest.raises(InputError, match=message):
        read(tmp_path / 'data')


def test_bytes_of_another_encoding_are_refused(tmp_path):
    write_voc(tmp_path / 'data')
    text = voc_text(TRAIN[0]).replace('cat', 'Kätzchen')
    write_text(tmp_path / 'data' / FIRST, text, 'latin-1')
    with pytest.raises(InputError, match=r'photo_00\.xml: is not utf-8 .*save it as UTF-8'):
        read(tmp_path / 'data')


def test_two_labels_of_one_image_are_refused(tmp_path):
    write_voc(tmp_path / 'data')
    write_text(tmp_path / 'data' / 'old' / 'photo_00.xml', voc_text(TRAIN[0], ''))
    message = 'has two labels, Annotations/photo_00.xml and old/photo_00.xml'
    with pytest.raises(InputError, match=message):
        read(tmp_path / 'data')


def test_a_label_with_the_name_of_one_image_that_names_another_is_refused(tmp_path):
    write_voc(tmp_path / 'data')
    (tmp_path / 'data' / 'Annotations' / 'photo_01.xml').unlink()
    edit(tmp_path / 'data' / FIRST, lambda text: text.replace('photo_00.jpg', 'photo_01.jpg'))
    with pytest.raises(
        InputError, match=r'names JPEGImages/photo_01.jpg as its image, but JPEGImages/photo_00.jpg has'
    ):
        read(tmp_path / 'data')


def test_fractions_are_refused(tmp_path):
    for photo in TRAIN:
        write_photo(photo, tmp_path / 'data' / f'{photo.stem}.jpg')
        objects = ''.join(voc_object(name, *(side / 100 for side in box)) for name, *box in photo.boxes)
        write_text(tmp_path / 'data' / f'{photo.stem}.xml', voc_text(photo, objects))
    with pytest.raises(InputError, match='as if they were fractions of the image'):
        read(tmp_path / 'data')


def test_labels_without_any_image_are_told(tmp_path):
    write_voc(tmp_path / 'data')
    for path in (tmp_path / 'data' / 'JPEGImages').iterdir():
        path.rename(path.with_stem(f'x{path.stem}'))
    with pytest.raises(
        InputError, match=r'There are 8 labels of VOC, but no image of theirs: Annotations/photo_00\.xml'
    ):
        read(tmp_path / 'data')


def test_classes_are_sorted(tmp_path):
    assert read(write_voc(tmp_path / 'data')).classes == tuple(sorted(CLASSES))
