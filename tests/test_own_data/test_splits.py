"""Which split an image is for: what the folder declares, then names of folders, else a random fifth."""

import pytest
from folder_cases import CLASSES, check, photos, read, write_photo, write_text
from test_yolo import write_flat, write_yolo, yolo_line

from yolov7_simple.own_data.names import split_in, split_of_file, split_of_folders
from yolov7_simple.runtime.errors import InputError

TRAIN, VAL, TEST = photos(5), photos(3, 5), photos(2, 8)
NAMES = f'names: {list(CLASSES)}\n'


def write_one_folder(folder, parts, images='images', labels='labels'):
    """All images in one folder; lists are up to the case."""
    for photo in parts:
        write_photo(photo, folder / images / f'{photo.stem}.jpg')
        write_text(folder / labels / f'{photo.stem}.txt', ''.join(f'{yolo_line(photo, box)}\n' for box in photo.boxes))
    write_text(folder / 'classes.txt', '\n'.join(CLASSES))
    return folder


def lines(part, form='./images/{}.jpg'):
    return ''.join(f'{form.format(photo.stem)}\n' for photo in part)


@pytest.mark.parametrize(
    ('text', 'split'),
    [
        ('train2017', 'train'), ('instances_val2017', 'val'), ('Validation', 'val'), ('eval', 'val'), ('dev', 'val'),
        ('instances_minival2014', 'val'), ('test-images', 'test'), ('trainval', 'trainval'), ('training', 'train'),
        ('latest', None), ('constraints', None), ('train_and_val', None), ('images', None),
    ],
)  # fmt: skip
def test_words(text, split):
    assert split_in(text) == split


def test_the_innermost_folder_counts_and_a_file_before_its_folders():
    assert split_of_folders('test_data/train/val_1.jpg') == 'train'
    assert split_of_folders('val_1.jpg') is None
    assert split_of_file('train/instances_val.json') == 'val'
    assert split_of_file('train/_annotations.coco.json') == 'train'


@pytest.mark.parametrize(
    'yaml',
    [
        'train: images/train\nval: images/val\n',
        'path: .\ntrain: images/train/\nval: ./images/val\n',
        'path: /content/data\ntrain: /content/data/images/train\nval: /content/data/images/val\n',
        'train: ../data/images/train\nval: ..\\data\\images\\val\n',
        'train: [images/train]\nvalid: [images/val]\n',
        '',
    ],
)
def test_folders_of_data_yaml(tmp_path, yaml):
    check(write_yolo(tmp_path / 'data', yaml=yaml + NAMES), train=TRAIN, val=VAL)


def test_folders_of_any_name(tmp_path):
    folder = write_yolo(tmp_path / 'data', {'a': TRAIN, 'b': VAL, 'c': TEST}, yaml='')
    write_text(folder / 'data.yaml', f'train: images/a\nval: images/b\ntest: images/c\n{NAMES}')
    check(folder, train=TRAIN, val=VAL, test=TEST)


def test_several_folders_of_a_split(tmp_path):
    folder = write_yolo(tmp_path / 'data', {'site1': TRAIN[:3], 'site2': TRAIN[3:], 'site3': VAL}, yaml='')
    write_text(folder / 'data.yaml', f'train: [images/site1, images/site2]\nval: images/site3\n{NAMES}')
    check(folder, train=TRAIN, val=VAL)


@pytest.mark.parametrize(
    'form', ['./images/{}.jpg', 'data/images/{}.jpg', '/home/me/data/images/{}.jpg', '{}.jpg', '{}']
)
def test_lists_of_data_yaml(tmp_path, form):
    folder = write_one_folder(tmp_path / 'data', [*TRAIN, *VAL])
    (folder / 'classes.txt').unlink()
    write_text(folder / 'part_a.txt', lines(TRAIN, form))
    write_text(folder / 'part_b.txt', lines(VAL, form))
    write_text(folder / 'data.yaml', f'path: .\ntrain: part_a.txt\nval: part_b.txt\n{NAMES}')
    check(folder, train=TRAIN, val=VAL)


@pytest.mark.parametrize('where', ['{}.txt', 'ImageSets/Main/{}.txt', 'splits/{}.txt', 'lists/{}2024.txt'])
@pytest.mark.parametrize('names', [('train', 'val'), ('Train', 'Validation'), ('TRAIN', 'VALID')])
def test_lists_anywhere(tmp_path, where, names):
    folder = write_one_folder(tmp_path / 'data', [*TRAIN, *VAL])
    for name, part in zip(names, (TRAIN, VAL)):
        write_text(folder / where.format(name), lines(part))
    check(folder, train=TRAIN, val=VAL)


def test_blanks_in_names_and_flags_behind_them(tmp_path):
    parts = [photo.renamed(f'my photo {i} (2)') for i, photo in enumerate([*TRAIN, *VAL])]
    folder = write_one_folder(tmp_path / 'data', parts)
    write_text(folder / 'train.txt', lines(parts[:5], '{}.jpg'))
    write_text(folder / 'val.txt', lines(parts[5:], '{}  1'))
    check(folder, train=parts[:5], val=parts[5:])


def test_trainval_is_shared_out_and_test_stays(tmp_path):
    folder = write_one_folder(tmp_path / 'data', [*TRAIN, *VAL, *TEST])
    write_text(folder / 'trainval.txt', lines([*TRAIN, *VAL]))
    write_text(folder / 'test.txt', lines(TEST))
    check(folder, everything=[*TRAIN, *VAL], test=TEST)


def test_trainval_beside_train_and_val_is_their_sum(tmp_path):
    folder = write_one_folder(tmp_path / 'data', [*TRAIN, *VAL])
    for name, part in {'train': TRAIN, 'val': VAL, 'trainval': [*TRAIN, *VAL]}.items():
        write_text(folder / f'{name}.txt', lines(part))
    check(folder, train=TRAIN, val=VAL)


def test_an_image_in_two_lists_is_in_both_splits_and_named(tmp_path):
    folder = write_one_folder(tmp_path / 'data', [*TRAIN, *VAL])
    write_text(folder / 'train.txt', lines(TRAIN))
    write_text(folder / 'val.txt', lines([*VAL, TRAIN[0]]))
    data = check(folder, train=TRAIN, val=[*VAL, TRAIN[0]])
    assert any('1 images are in more than one split' in line and 'photo_00' in line for line in data.findings.lines())


def test_val_may_be_train_as_in_coco128(tmp_path):
    folder = write_yolo(tmp_path / 'data', {'train2017': TRAIN}, yaml='')
    write_text(folder / 'data.yaml', f'train: images/train2017\nval: images/train2017\n{NAMES}')
    data = check(folder, train=TRAIN, val=TRAIN)
    assert any('5 images are in more than one split' in line for line in data.findings.lines())


def test_what_a_list_names_and_is_not_there_is_said(tmp_path):
    folder = write_one_folder(tmp_path / 'data', [*TRAIN, *VAL])
    write_text(folder / 'train.txt', lines(TRAIN) + 'images/gone.jpg\n')
    write_text(folder / 'val.txt', lines(VAL))
    data = check(folder, train=TRAIN, val=VAL)
    assert 'train.txt: 1 of its 6 images are not there: images/gone.jpg' in data.findings.lines()


def test_what_data_yaml_declares_and_is_not_there_is_said(tmp_path):
    folder = write_yolo(tmp_path / 'data', {'train': TRAIN}, yaml='')
    write_text(folder / 'data.yaml', f'train: images/train\nval: images/val\n{NAMES}')
    data = check(folder, everything=TRAIN)
    text = '\n'.join(data.findings.lines())
    assert 'data.yaml: val: images/val is not there' in text
    assert 'Nothing is set aside for validation' in text and 'a random fifth is, 1 images of 5' in text


def test_folders_speak_before_names_of_files(tmp_path):
    train = [photo.renamed(f'COCO_val2014_{i:012d}') for i, photo in enumerate(TRAIN)]
    val = [photo.renamed(f'train_{i}') for i, photo in enumerate(VAL)]
    check(write_yolo(tmp_path / 'data', {'train': train, 'val': val}, yaml=NAMES), train=train, val=val)


def test_one_file_called_test_among_those_for_training(tmp_path):
    train = [*TRAIN[:-1], TRAIN[-1].renamed('test_001')]
    check(write_yolo(tmp_path / 'data', {'train': train, 'val': VAL}, yaml=NAMES), train=train, val=VAL)


def test_names_of_files_speak_where_all_do(tmp_path):
    train = [photo.renamed(f'train_{i}') for i, photo in enumerate(TRAIN)]
    val = [photo.renamed(f'val_{i}') for i, photo in enumerate(VAL)]
    check(write_one_folder(tmp_path / 'data', [*train, *val]), train=train, val=val)
    some = [*train[:-1], TRAIN[-1], *val]
    check(write_one_folder(tmp_path / 'other', some), everything=some)


@pytest.mark.parametrize('name', ['train', 'test', 'val', 'test_data'])
def test_a_word_that_all_images_share_is_no_split(tmp_path, name):
    check(write_flat(tmp_path / 'data' / name).parent, everything=TRAIN)


def test_a_split_without_labels_is_still_that_split(tmp_path):
    parts = {'train': TRAIN, 'val': VAL, 'test': TEST}
    yaml = f'train: images/train\nval: images/val\ntest: images/test\n{NAMES}'
    folder = write_yolo(tmp_path / 'data', parts, yaml=yaml)
    (folder / 'labels' / 'test' / f'{TEST[0].stem}.txt').unlink()
    check(folder, train=TRAIN, val=VAL, test=[TEST[0]._replace(boxes=()), TEST[1]])


def test_background_in_a_folder_of_its_own_is_trained_on(tmp_path):
    folder = write_yolo(tmp_path / 'data')
    extra = [photo._replace(boxes=()) for photo in TEST]
    for photo in extra:
        write_photo(photo, folder / 'images' / 'background' / f'{photo.stem}.jpg')
    check(folder, train=[*TRAIN, *extra], val=VAL)


def test_nothing_to_train_on(tmp_path):
    folder = write_yolo(tmp_path / 'data', {'val': VAL, 'test': TEST}, yaml=NAMES)
    with pytest.raises(InputError, match='nothing to train on: all its images are for'):
        read(folder)


def test_the_same_fifth_each_time(tmp_path):
    first, second = (read(write_flat(tmp_path / name)) for name in 'ab')
    assert [part.ann_file.name for part in first.splits.values()] == ['train.json', 'val.json']
    for split, part in first.splits.items():
        assert part.num_images == second.splits[split].num_images == {'train': 4, 'val': 1}[split]


def test_one_image_cannot_be_shared_out(tmp_path):
    with pytest.raises(InputError, match='one image is too few'):
        read(write_one_folder(tmp_path / 'data', TRAIN[:1]))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_split_without_boxes_is_refused(tmp_path, split):
    parts = {'train': TRAIN, 'val': VAL}
    parts[split] = [photo._replace(boxes=()) for photo in parts[split]]
    with pytest.raises(InputError, match=f'no boxes to .* on in the {split} split'):
        read(write_yolo(tmp_path / 'data', parts))


def test_a_test_split_without_boxes_is_said(tmp_path):
    test = [photo._replace(boxes=()) for photo in TEST]
    folder = write_yolo(tmp_path / 'data', {'train': TRAIN, 'val': VAL, 'test': test}, yaml=NAMES)
    data = check(folder, train=TRAIN, val=VAL)
    assert 'The 2 test images have no box: the val split is tested on' in data.findings.lines()
