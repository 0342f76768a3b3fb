import json

import pytest
from conftest import write_coco
from PIL import Image

from yolov7_simple.datasets.annotation_checks import AnnotationError
from yolov7_simple.datasets.coco import CheckedCocoDataset


def load(folder, classes=('box', 'disc'), test_mode=False, **options):
    return CheckedCocoDataset(
        data_root=str(folder),
        ann_file='annotations/all.json',
        data_prefix={'img': 'images/'},
        metainfo={'classes': classes},
        test_mode=test_mode,
        pipeline=[],
        **options,
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
    monkeypatch.setattr('yolov7_simple.datasets.coco.print_log', lambda text, *_: lines.append(text))
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
        (lambda c: c['categories'][1].update(name='box'), 'names of categories are used more than once: box'),
        (lambda c: c['images'][7].update(id='one'), 'some ids of images are numbers and some are texts'),
        (lambda c: c['images'][1].update(width=10**9), r'images\[1\] \(id 1\): 1000000000 x 64 pixels'),
        (
            lambda c: [a.update(bbox=[500, 5, 9, 9]) for a in c['annotations']],
            'has no box that can be trained on: 7 boxes',
        ),
        (lambda c: [i.update(file_name='a.png') for i in c['images']], '8 of 8 images are not there: .*Set data_root'),
        (lambda c: c['annotations'][1].update(id=1), 'ids of annotations are used more than once: 1'),
        (
            lambda c: c['annotations'][2].update(image_id=77),
            r'annotations\[2\] \(id 3\): image_id 77 is not among images',
        ),
        (lambda c: c['annotations'][2].update(category_id=77), 'category_id 77 is not among categories'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 3]), 'bbox must be four finite numbers'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, float('nan'), 3]), 'bbox must be four finite numbers'),
        (lambda c: c['annotations'][0].pop('bbox'), r'annotations\[0\] \(id 1\) has no bbox'),
        (lambda c: c['images'][3].pop('width'), r'images\[3\] \(id 3\) has no width'),
        (lambda c: c['images'].__setitem__(0, 'text'), r'images\[0\] must be a record'),
    ],
)
def test_what_cannot_be_right_is_refused(coco_folder, change, message):
    rewrite(coco_folder, change)
    with pytest.raises(ValueError, match=message) as raised:
        load(coco_folder)
    assert 'all.json' in str(raised.value)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r'all\.json: set data_root'):
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


def test_a_set_without_boxes_can_be_evaluated_on(coco_folder):
    rewrite(coco_folder, lambda content: content['annotations'].clear())
    assert len(load(coco_folder, test_mode=True)) == 8


def reported(monkeypatch):
    lines = []
    monkeypatch.setattr('yolov7_simple.datasets.coco.print_log', lambda text, *_: lines.append(text))
    return lines


def test_to_be_evaluated_on_a_set_needs_what_the_metric_reads(coco_folder):
    rewrite(coco_folder, lambda content: content['annotations'][2].pop('iscrowd'))
    load(coco_folder)
    with pytest.raises(AnnotationError, match=r"annotations\[2\] \(id 3\) has no iscrowd, which COCO's metric needs"):
        load(coco_folder, test_mode=True)
    rewrite(coco_folder, lambda content: content['annotations'][2].update(iscrowd=0, id=0))
    load(coco_folder)
    with pytest.raises(
        AnnotationError, match=r"an annotation has the id 0, which COCO's metric takes for 'not matched'"
    ):
        load(coco_folder, test_mode=True)


def test_missing_images_are_counted_and_refused_above_a_share(coco_folder, monkeypatch):
    (coco_folder / 'images' / '3.png').unlink()
    with pytest.raises(AnnotationError, match=r'1 of 8 images are not there: .*3\.png\. Set .*max_missing=0\.01'):
        load(coco_folder)
    lines = reported(monkeypatch)
    assert len(load(coco_folder, max_missing=0.2)) == 8
    assert '1 of 8 images are not there' in lines[0]
    with pytest.raises(AnnotationError, match='1 of 8 images are not there'):
        load(coco_folder, max_missing=0.2, test_mode=True)


def test_images_of_another_size_than_annotated_are_counted(coco_folder, monkeypatch):
    rewrite(coco_folder, lambda content: content['images'][2].update(width=200))
    lines = reported(monkeypatch)
    load(coco_folder)
    assert '1 of 8 images have another size than annotated' in lines[0]
    assert '2.png is 96 x 64, annotated as 200 x 64' in lines[0]


def test_all_images_are_compared_with_their_size_also_those_turned_by_exif(coco_folder, monkeypatch):
    with Image.open(coco_folder / 'images' / '5.png') as image:
        exif = image.getexif()
        exif[274] = 6
        image.save(coco_folder / 'images' / '5.png', exif=exif)
    lines = reported(monkeypatch)
    load(coco_folder)
    assert '1 of 8 images have another size than annotated' in lines[0]
    assert '1 of them turned by a quarter, as by EXIF: 5.png is 64 x 96, annotated as 96 x 64' in lines[0]


@pytest.mark.parametrize('name', ['../../outside.png', 'ABSOLUTE', 'link.png', 'linked/outside.png'])
def test_images_outside_of_the_data_are_refused_unless_allowed(tmp_path, name):
    folder = tmp_path / 'data'
    write_coco(folder)
    outside = tmp_path / 'outside.png'
    outside.write_bytes((folder / 'images' / '0.png').read_bytes())
    (folder / 'images' / 'link.png').symlink_to(outside)
    (folder / 'images' / 'linked').symlink_to(tmp_path)
    name = str(outside) if name == 'ABSOLUTE' else name
    rewrite(folder, lambda content: content['images'][1].update(file_name=name))
    with pytest.raises(AnnotationError, match=r'images\[1\] \(id 1\): .*outside of .* set allow_outside=True'):
        load(folder)
    assert load(folder, allow_outside=True).get_data_info(1)['img_path'].endswith(name)


@pytest.mark.parametrize('name', ['../more/8.png', 'link.png', 'linked/8.png'])
def test_images_elsewhere_in_the_data_and_links_to_the_whole_are_fine(tmp_path, name):
    folder = tmp_path / 'data'
    write_coco(folder)
    (folder / 'more').mkdir()
    (folder / 'more' / '8.png').write_bytes((folder / 'images' / '0.png').read_bytes())
    (folder / 'images' / 'link.png').symlink_to('../more/8.png')
    (folder / 'images' / 'linked').symlink_to(folder / 'more')
    (tmp_path / 'set').symlink_to(folder)
    rewrite(folder, lambda content: content['images'][1].update(file_name=name))
    assert len(load(tmp_path / 'set')) == 8


def test_what_the_filter_leaves_out_is_said(coco_folder, monkeypatch):
    lines = reported(monkeypatch)
    assert len(load(coco_folder, filter_cfg={'filter_empty_gt': True})) == 7
    assert "1 images left out by filter_cfg={'filter_empty_gt': True}" in lines[1]
    with pytest.raises(AnnotationError, match='no image is left by filter_cfg'):
        load(coco_folder, filter_cfg={'min_size': 1000})
