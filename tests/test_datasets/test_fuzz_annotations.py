"""Annotation files by the thousand: each is refused with file, record and reason, or repaired and counted.

`YOLOV7_FUZZ=2000 python -m pytest tests/test_datasets/test_fuzz_annotations.py` draws 2000 files for each of the tests,
new ones each time; without it a few hundred, always the same.
"""

import copy
import json
import math
import os
import re
import signal
from collections import Counter
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from conftest import write_coco
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from mmdet.evaluation import CocoMetric

from yolov7_simple.datasets.annotation_checks import FIELDS, AnnotationError
from yolov7_simple.datasets.coco import CheckedCocoDataset

NUM_FILES = int(os.environ.get('YOLOV7_FUZZ', 0))
SECONDS = 60  # for one file; a hang is an error
fuzz = settings(
    max_examples=NUM_FILES or 150,
    derandomize=not NUM_FILES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
CLASSES = ('box', 'disc', 'Ring ☃ 圆')
NUM_IMAGES, WIDTH, HEIGHT = 6, 96, 64


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images whose annotations are overwritten by each file."""
    folder = tmp_path_factory.mktemp('fuzz') / 'data'
    write_coco(folder, NUM_IMAGES, CLASSES, (WIDTH, HEIGHT))
    (folder / 'images' / 'folder.png').mkdir()
    os.mkfifo(folder / 'images' / 'pipe.png')  # reading it would hang
    (folder.parent / 'outside.png').write_bytes((folder / 'images' / '0.png').read_bytes())
    (folder / 'images' / 'link_out.png').symlink_to(folder.parent / 'outside.png')
    (folder / 'images' / 'link_in.png').symlink_to(folder / 'images' / '0.png')
    (folder / 'images' / 'link_loop.png').symlink_to(folder / 'images' / 'link_loop.png')
    return folder


def valid_content(seed, num_boxes):
    """A file with gaps in its category ids, but nothing to repair."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(1, (WIDTH, HEIGHT), (num_boxes, 2))
    corners = rng.uniform(0, (WIDTH, HEIGHT) - sizes)
    return {
        'images': [
            {'id': i, 'file_name': f'{i}.png', 'width': WIDTH, 'height': HEIGHT}
            for i in rng.permutation(NUM_IMAGES).tolist()
        ],
        'annotations': [
            {
                'id': i + 1,
                'image_id': int(rng.integers(NUM_IMAGES)),
                'category_id': (3, 17, 90)[rng.integers(3)],
                'bbox': box,
                'area': box[2] * box[3],
                'iscrowd': int(rng.random() < 0.1),
            }
            for i, box in enumerate(np.hstack([corners, sizes]).tolist())
        ],
        'categories': [{'id': id_, 'name': name} for id_, name in zip((3, 17, 90), CLASSES)],
    }


NAN, INF = math.nan, math.inf
NOT_TEXTS = (None, 5, [], {}, '', ' ', 'a\0b', '\ud800')
NOT_NUMBERS = (None, '5', [], {}, NAN, INF, -INF, True, 10**400)
# Field -> values that cannot be right.
WRONG_VALUES = {
    ('images', 'id'): (None, 1.5, True, [], 2**63, '\udfff'),
    ('images', 'file_name'): (
        *NOT_TEXTS,
        'http://host/a.png',
        '../../outside.png',
        '../images/../../outside.png',
        '/etc/passwd',
        '/dev/zero',
        'link_out.png',
        'folder.png',
        'pipe.png',
    ),
    ('images', 'width'): (*NOT_NUMBERS, 0, -5, 1.5, 10**9, 10**20),
    ('images', 'height'): (*NOT_NUMBERS, 0, -5, 1.5, 10**9, 1e300),
    ('categories', 'id'): (None, 'a', 1.0, True, [], 2**70),
    ('categories', 'name'): NOT_TEXTS,
    ('annotations', 'id'): (None, '1', 1.5, True, {}, 2**63),
    ('annotations', 'image_id'): (None, 999, -1, '0', 0.5, [], True),
    ('annotations', 'category_id'): (None, 0, 1, '3', 3.0, [], True),
    ('annotations', 'bbox'): (
        *(None, 5, '1, 2, 3, 4', {}, [], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2, 3, 4]]),
        *([1, 2, value, 4] for value in NOT_NUMBERS),
        *([value, 2, 30, 40] for value in NOT_NUMBERS),
    ),
    ('annotations', 'area'): NOT_NUMBERS,
    ('annotations', 'iscrowd'): (None, '0', 2, -1, [], 0.0),
    ('annotations', 'ignore'): ('no', 2, None, {}),
}
# Value of a box -> how it must be repaired.
ODD_BOXES = {
    (-10, 5, 30, 20): 'clipped to their image',
    (50, 30, 500, 600.5): 'clipped to their image',
    (-1e15, -1e15, 2e15 - 1e15, 1e15): 'outside of their image left out',
    (0, 0, 1e15, 1e15): 'clipped to their image',
    (200, 5, 30, 20): 'outside of their image left out',
    (WIDTH, 0, 10, 10): 'outside of their image left out',
    (5, 5, 0.3, 20): 'below one pixel left out',
    (5, 5, 0, 0): 'below one pixel left out',
    (-9.5, 5, 10, 10): 'below one pixel inside of their image left out',
    (5, HEIGHT - 0.01, 10, 10): 'below one pixel inside of their image left out',
    (50, 50, -20, -20): 'with a negative side left out',
    (50, 50, 20, -1e-9): 'with a negative side left out',
    (-0.3, 0, WIDTH + 0.4, HEIGHT): None,
    (0, 0, WIDTH, HEIGHT): None,
}


@st.composite
def files(draw, wrong):
    """A file, and what must happen to it.

    wrong: Whether something in it must be refused.

    Returns content, evaluated, and either the name of the list whose record must be named, or the repairs.
    """
    num_boxes = draw(st.sampled_from((0, 1, 2, 7, 30, 30, 200, 1000)))
    evaluated = draw(st.booleans()) or (wrong and num_boxes == 0)  # nothing to train on is another mistake
    content = valid_content(draw(st.integers(0, 2**32)), num_boxes)
    repairs = Counter()
    annotations = content['annotations']
    for i in draw(st.sets(st.integers(0, max(num_boxes - 1, 0)), max_size=6)) if num_boxes else ():
        kind = draw(st.sampled_from(('box', 'box', 'ignore', 'area', 'extra')))
        if kind == 'box':
            box, what = draw(st.sampled_from(list(ODD_BOXES.items())))
            annotations[i]['bbox'] = list(box)
            repairs[f'boxes {what}'] += what is not None
        elif kind == 'ignore':
            annotations[i]['ignore'] = 1
            repairs['boxes marked ignore left out'] += 1
        elif kind == 'area':
            annotations[i]['area'] = draw(st.sampled_from((0, -5, -0.0)))
            repairs['boxes without an area given that of their sides'] += 1
        else:
            annotations[i]['segmentation'] = annotations[i]['score'] = draw(json_values)
    if draw(st.booleans()):
        content['info'] = content['images'][0]['date_captured'] = draw(json_values)
    if not evaluated and num_boxes and draw(st.booleans()):
        # One optional field is in no annotation.
        name = draw(st.sampled_from(('area', 'iscrowd')))
        for annotation in annotations:
            annotation.pop(name)
        if name == 'area':
            left_out = sum(count for what, count in repairs.items() if 'left out' in what)
            repairs['boxes without an area given that of their sides'] = num_boxes - left_out
    where = None
    if wrong:
        where = draw(st.sampled_from(('value', 'missing', 'duplicate', 'list', 'record', 'lie')))
        where = break_file(draw, content, evaluated, where)
    elif not evaluated and sum(n for what, n in repairs.items() if 'left out' in what) >= num_boxes:
        where = 'has no '  # nothing is left to train on
    return content, evaluated, where, +repairs


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, '\ud800', 1e308]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=30,
)


def break_file(draw, content, evaluated, how):
    """Put one mistake into a file; return a pattern of the message that must follow."""
    keys = [key for key in FIELDS if content[key]]
    key = draw(st.sampled_from(keys))
    i = draw(st.integers(0, len(content[key]) - 1))
    if how == 'value':
        key, name = draw(st.sampled_from([field for field in WRONG_VALUES if field[0] in keys]))
        i = draw(st.integers(0, len(content[key]) - 1))
        content[key][i][name] = draw(st.sampled_from(WRONG_VALUES[key, name]))
        return re.escape(f'{key}[{i}] (id ') + '.*' + ('' if name == 'file_name' else name)
    if how == 'missing':
        names = [
            field.name
            for field in FIELDS[key]
            if field.needed == 'always' or (field.needed == 'to evaluate' and evaluated)
        ]
        name = draw(st.sampled_from(names))
        content[key][i].pop(name, None)
        return re.escape(f'{key}[') + rf'\d+\] \(id .*\) has no {name}|has no (area|iscrowd)'
    if how == 'duplicate' and len(content[key]) > 1:
        j = (i + draw(st.integers(1, len(content[key]) - 1))) % len(content[key])
        content[key][i] = {**content[key][i], 'id': content[key][j]['id']}
        return f'ids of {key} are used more than once: {content[key][j]["id"]}'
    if how == 'list':
        content[key] = draw(st.sampled_from((None, {}, 'text', 5, [])))
        if content[key] == [] and key == 'annotations' and evaluated:
            content['images'] = []
            key = 'images'
        return f'has no (list of )?{key}'
    if how == 'lie':
        image = content['images'][i % NUM_IMAGES]
        image['file_name'] = draw(
            st.sampled_from(('nowhere.png', 'a' * 300, 'no/folder/0.png', 'link_loop.png', '0.png/0.png'))
        )
        return re.escape(f'1 of {NUM_IMAGES} images are not there: ') + '.*' + re.escape(image['file_name'])
    content[key][i] = draw(st.sampled_from((None, [], 'text', 5)))
    return re.escape(f'{key}[{i}] must be a record')


@contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError(f'hangs for {SECONDS} s')

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def load(folder, evaluated, **options):
    """Load the file as a config would; return the dataset and what it reported."""
    lines = []
    with mock.patch('yolov7_simple.datasets.coco.print_log', lambda text, *_: lines.append(text)), time_limit():
        dataset = CheckedCocoDataset(
            data_root=str(folder),
            ann_file='annotations/all.json',
            data_prefix={'img': 'images/'},
            metainfo={'classes': CLASSES},
            test_mode=evaluated,
            pipeline=[],
            serialize_data=False,  # which collects garbage for each dataset
            **options,
        )
    return dataset, '\n'.join(lines)


def write(folder, content):
    (folder / 'annotations' / 'all.json').write_text(json.dumps(content), encoding='utf-8', errors='surrogatepass')


def evaluate(folder, dataset):
    """Evaluate one detection an image with COCO's metric, which reads the file itself."""
    metric = CocoMetric(ann_file=str(folder / 'annotations' / 'all.json'), metric='bbox')
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        found = {'bboxes': np.float32([[1, 2, 30, 40]]), 'scores': np.float32([0.5]), 'labels': np.array([0])}
        sample = {'img_id': info['img_id'], 'ori_shape': (HEIGHT, WIDTH), 'pred_instances': found}
        metric.results.append(({'img_id': info['img_id'], **{}}, {**found, 'img_id': sample['img_id']}))
    return metric.compute_metrics(metric.results)


@fuzz
@given(file=files(wrong=False))
def test_what_can_be_used_is_used_and_every_change_is_counted(folder, file):
    content, evaluated, nothing_left, repairs = file
    event(f'{len(content["annotations"])} boxes, {"evaluated" if evaluated else "trained on"}')
    write(folder, content)
    if nothing_left:
        with pytest.raises(AnnotationError, match=nothing_left):
            load(folder, evaluated)
        return
    dataset, report = load(folder, evaluated)
    assert dataset.repairs == repairs
    assert all(f'{count} {what}' in report for what, count in repairs.items())
    boxes = [instance for i in range(len(dataset)) for instance in dataset.get_data_info(i)['instances']]
    left_out = sum(count for what, count in repairs.items() if 'left out' in what)
    assert len(dataset) == NUM_IMAGES and len(boxes) + left_out == len(content['annotations'])
    for instance in boxes:
        x1, y1, x2, y2 = instance['bbox']
        assert 0 <= x1 <= x2 - 1 and x2 <= WIDTH and 0 <= y1 <= y2 - 1 and y2 <= HEIGHT
    labels = Counter(instance['bbox_label'] for instance in boxes)
    unused = [name for label, name in enumerate(CLASSES) if not labels[label]]
    assert ('without a box: ' + ', '.join(unused) in report) == bool(unused)
    if evaluated and len(content['annotations']) < 10:
        evaluate(folder, dataset)


@fuzz
@given(file=files(wrong=True))
def test_what_cannot_be_right_is_refused_with_file_record_and_reason(folder, file):
    content, evaluated, reason, _ = file
    event(re.sub(r'\d+', 'N', reason))
    write(folder, content)
    with pytest.raises(AnnotationError, match='(?s)' + reason) as raised:
        load(folder, evaluated)
    message = str(raised.value)
    assert message.startswith(str(folder / 'annotations' / 'all.json'))
    assert len(message) < 2000
    message.encode()  # can be printed


@pytest.mark.parametrize(('key', 'name'), WRONG_VALUES)
def test_each_wrong_value_is_refused_in_each_field(folder, key, name):
    for value in WRONG_VALUES[key, name]:
        content = valid_content(0, 7)
        content[key][1][name] = value
        write(folder, content)
        with pytest.raises(AnnotationError, match=re.escape(f'all.json: {key}[1] (id ')):
            load(folder, evaluated=False)


@fuzz
@given(data=st.data())
def test_anything_at_all_is_refused_or_loaded(folder, data):
    """Values put anywhere, or bytes changed or cut, give only one kind of error."""
    content = valid_content(0, data.draw(st.sampled_from((0, 3, 20))))
    for _ in range(data.draw(st.integers(0, 3))):
        place = content
        while isinstance(place, (dict, list)) and place and data.draw(st.integers(0, 4)):
            parent = place
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            place = place[key]
        if place is not content:
            parent[key] = copy.deepcopy(data.draw(json_values))
    text = json.dumps(content).encode('utf-8', 'surrogatepass')
    how = data.draw(st.sampled_from(('whole', 'whole', 'cut', 'bytes', 'deep')))
    if how == 'cut':
        text = text[: data.draw(st.integers(0, len(text)))]
    elif how == 'bytes':
        for _ in range(data.draw(st.integers(1, 5))):
            i = data.draw(st.integers(0, len(text) - 1))
            text = text[:i] + data.draw(st.binary(max_size=3)) + text[i + 1 :]
    elif how == 'deep':
        text = b'[' * 10**5
    (folder / 'annotations' / 'all.json').write_bytes(text)
    evaluated = data.draw(st.booleans())
    try:
        dataset, _ = load(folder, evaluated, max_missing=data.draw(st.sampled_from((0.01, 1.0))))
    except AnnotationError as error:
        event('refused')
        assert str(error).startswith(str(folder / 'annotations' / 'all.json'))
        str(error).encode()
        return
    event('loaded')
    total = sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))
    left_out = sum(count for what, count in dataset.repairs.items() if 'left out' in what)
    assert total + left_out == len(json.loads(text)['annotations'])
    if evaluated:
        evaluate(folder, dataset)
