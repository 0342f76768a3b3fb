"""Large annotation files: read once, without polygons, and what is wrong is named as by the slow way."""

import gc
import json

import pytest
from conftest import write_coco
from folder_cases import coco_content, photos

from yolov7_simple.datasets import annotation_reading
from yolov7_simple.datasets.annotation_checks import AnnotationError, read_json
from yolov7_simple.datasets.annotation_reading import paused_gc, read_annotations
from yolov7_simple.datasets.coco import CheckedCocoDataset


@pytest.fixture
def path(tmp_path):
    content = coco_content(photos(4))
    for record in content['annotations']:
        record['segmentation'] = [[1.5, 2, 3, 4, 5, 6]]
    content['info'] = {'description': 'ä'}
    (tmp_path / 'all.json').write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
    return tmp_path / 'all.json'


def refuse_to_read(*args, **kwargs):
    raise AssertionError('read the slow way')


@pytest.mark.parametrize('evaluated', [False, True])
def test_what_is_needed_is_the_same_as_by_json(path, evaluated, monkeypatch):
    wanted = read_json(str(path))
    for record in wanted['annotations']:
        del record['segmentation']
    del wanted['info']
    monkeypatch.setattr(annotation_reading, 'read_json', refuse_to_read)
    assert read_annotations(str(path), evaluated) == wanted


def test_the_dataset_reads_no_second_time(tmp_path, monkeypatch):
    write_coco(tmp_path)
    for name in ('load', 'loads'):
        monkeypatch.setattr(json, name, refuse_to_read)
    dataset = CheckedCocoDataset(
        data_root=str(tmp_path),
        ann_file='annotations/all.json',
        data_prefix={'img': 'images/'},
        metainfo={'classes': ('box', 'disc')},
        pipeline=[],
    )
    assert len(dataset) == 8 and dataset.get_data_info(0)['instances'][0]['bbox_label'] == 0
    assert gc.isenabled()


def test_garbage_is_collected_again_after_an_error():
    with pytest.raises(ValueError, match='it'), paused_gc():
        assert not gc.isenabled()
        raise ValueError('it')
    assert gc.isenabled()


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('"description": "ä"'.encode(), b'"description": "\xe4"', "not a JSON file that can be read: 'utf-8' codec"),
        (b'"iscrowd": 0', b'"iscrowd": 2', r'annotations\[0\] \(id 1\): iscrowd must be 0 or 1, got 2'),
        (b'"id": 2, "image_id": 1', b'"id": 1, "image_id": 1', '1 ids of annotations are used more than once: 1'),
        (b'"id": 2, "image_id": 1', b'"id": 0, "image_id": 1', 'an annotation has the id 0'),
        (b'"image_id": 1', b'"image_id": "1"', r"annotations\[0\] \(id 1\): image_id '1' is not among images"),
        (b'"area"', b'"aria"', r"annotations\[0\] \(id 1\) has no area, which COCO's metric needs"),
        (b'"width": 96', b'"width": 0', r'images\[0\] \(id 1\): width must be a whole number of pixels, got 0'),
        (b'"name": "cat"', b'"name": "dog"', '1 names of categories are used more than once: dog'),
        (b'"name": "owl"}]', b'"name": "owl"}', 'not a JSON file that can be read'),
    ],
)
def test_what_is_wrong_is_named_as_ever(path, old, new, message):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(AnnotationError, match=message):
        read_annotations(str(path), evaluated=True)


@pytest.mark.parametrize('size', [1, 7, 100, 1000, 5000])
@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('is_first', [True, False])
def test_pieces_of_any_size_are_the_whole(path, monkeypatch, size, indent, is_first):
    """Cut anywhere: in a number, in a character, in what looks like the end of an annotation."""
    content = read_json(str(path))
    content['annotations'][2]['attributes'] = [{'a': '圆☃'}, {'b': '}, {'}]
    if is_first:
        content = {'annotations': content.pop('annotations'), **content}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent), encoding='utf-8')
    wanted = read_annotations(str(path), evaluated=True)
    monkeypatch.setattr(annotation_reading, 'PIECE', size)
    # Pieces that an annotation does not fit into are none of use.
    monkeypatch.setattr(annotation_reading, 'MAX_TRIES', 4 if size >= 1000 else 10**4)
    monkeypatch.setattr(annotation_reading, 'read_json', refuse_to_read)
    assert read_annotations(str(path), evaluated=True) == wanted


def test_of_two_lists_of_annotations_that_of_the_file_counts(path):
    content = read_json(str(path))
    content = {'info': {'annotations': content['annotations'][:1]}, **content}
    path.write_text(json.dumps(content))
    assert len(read_annotations(str(path), evaluated=True)['annotations']) == len(content['annotations'])


def test_a_file_without_annotations_is_read(path, monkeypatch):
    path.write_text(json.dumps({**read_json(str(path)), 'annotations': []}))
    monkeypatch.setattr(annotation_reading, 'read_json', refuse_to_read)
    assert read_annotations(str(path), evaluated=True)['annotations'] == []
