import json

import pytest
from conftest import write_coco

from yolov7_simple.dataset import CheckedCocoDataset


def load(folder, classes=('box', 'disc'), test_mode=False):
    return CheckedCocoDataset(
        data_root=str(folder),
        ann_file='annotations/all.json',
        data_prefix={'img': 'images/'},
        metainfo={'classes': classes},
        test_mode=test_mode,
        pipeline=[],
    )


def rewrite(folder, change):
    path = folder / 'annotations' / 'all.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_loads_what_is_there(coco_folder, capfd):
    dataset = load(coco_folder)
    assert len(dataset) == 8
    info = dataset.get_data_info(0)
    assert len(info['instances']) == 1 and info['instances'][0]['ignore_flag'] == 0
    assert len(dataset.get_data_info(7)['instances']) == 0


def test_reports_repairs_and_what_is_left_out(coco_folder, monkeypatch):
    def change(content):
        first, second, third, fourth = content['annotations'][:4]
        first['bbox'] = [-10, 5, 30, 20]  # clipped
        second['bbox'] = [200, 5, 30, 20]  # outside
        third['bbox'] = [5, 5, 0.3, 20]  # no width
        fourth['iscrowd'] = 1
        content['categories'].append({'id': 9, 'name': 'unused'})

    rewrite(coco_folder, change)
    lines = []
    monkeypatch.setattr('yolov7_simple.dataset.print_log', lambda text, *_: lines.append(text))
    dataset = load(coco_folder, classes=('box', 'disc', 'unused'))
    assert dataset.get_data_info(0)['instances'][0]['bbox'] == [0, 5, 20, 25]
    assert len(dataset.get_data_info(1)['instances']) == len(dataset.get_data_info(2)['instances']) == 0
    assert dataset.get_data_info(3)['instances'][0]['ignore_flag'] == 1
    (line,) = lines
    for part in (
        '8 images (3 without a box), 5 boxes, 3 classes',
        '1 boxes clipped to their image',
        '1 boxes outside of their image left out',
        '1 boxes below one pixel left out',
        '1 classes without a box: unused',
    ):
        assert part in line


def test_a_box_without_area_is_kept(coco_folder):
    rewrite(coco_folder, lambda content: content['annotations'][0].pop('area'))
    assert len(load(coco_folder).get_data_info(0)['instances']) == 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('images'), 'no list of images'),
        (lambda c: c['images'].clear(), 'has no images'),
        (lambda c: c['annotations'].clear(), 'has no annotations'),
        (lambda c: c['categories'].clear(), 'has no categories'),
        (lambda c: c['images'][1].update(id=0), '1 ids of images are used more than once: 0'),
        (lambda c: c['annotations'][1].update(id=1), 'ids of annotations are used more than once: 1'),
        (lambda c: c['annotations'][2].update(image_id=77), r'annotations\[2\] \(id 3\): image_id 77 is not among'),
        (lambda c: c['annotations'][2].update(category_id=77), 'category_id 77 is not among categories'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 3]), 'bbox must be four finite numbers'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, float('nan'), 3]), 'bbox must be four finite numbers'),
        (lambda c: c['annotations'][0].pop('bbox'), r'annotations\[0\] has no usable bbox'),
        (lambda c: c['images'][3].pop('width'), r'images\[3\] has no usable width'),
        (lambda c: c['images'].__setitem__(0, 'text'), r'images\[0\] has no usable id'),
    ],
)
def test_what_cannot_be_right_is_refused(coco_folder, change, message):
    rewrite(coco_folder, change)
    with pytest.raises(ValueError, match=message) as raised:
        load(coco_folder)
    assert 'all.json' in str(raised.value)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'all\.json: set data_root'):
        load(tmp_path)
    write_coco(tmp_path)
    (tmp_path / 'annotations' / 'all.json').write_text('')
    with pytest.raises(ValueError, match=r'all\.json: not a JSON file'):
        load(tmp_path)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('box', 'discus'), '1 classes of the config are not in the file: discus. The file has box, disc'),
        (('disc', 'box'), r"in the order of the file, which is \('box', 'disc'\)"),
        ('box', 'tuple of names'),
    ],
)
def test_classes_that_disagree_are_named(coco_folder, classes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load(coco_folder, classes=classes)


def test_a_set_without_boxes_can_be_judged_on(coco_folder):
    rewrite(coco_folder, lambda content: content['annotations'].clear())
    assert len(load(coco_folder, test_mode=True)) == 8
