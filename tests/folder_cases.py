"""Folders as labelling tools write them, with a truth known by position: built, read, and compared.

A case writes photographs of :func:`photos` and labels in some form, and ends with :func:`check`, which reads the folder
as ``--data`` does, builds the dataset that training uses, compares images, boxes, classes and splits, and feeds the
truth back as detections: COCO's metric must give 1.000.
"""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmdet.registry import DATASETS, METRICS

from yolov7_simple.own_data.folder import OwnData, read_own_data

CLASSES = ('cat', 'dog', 'owl')


class Photo(NamedTuple):
    """An image to write and what is on it: (class, x1, y1, x2, y2) in pixels."""

    stem: str
    width: int
    height: int
    boxes: tuple

    def renamed(self, stem):
        """The same under another name."""
        return self._replace(stem=stem)


def photos(count=6, start=0, size=(96, 64)):
    """Photographs with two or three boxes each, all different; every class is on each of them or the next."""
    found = []
    for i in range(start, start + count):
        rng = np.random.default_rng(i)
        boxes = []
        for k in range(2 + i % 2):
            x, y = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
            w, h = rng.integers(10, size[0] // 2 - 2), rng.integers(10, size[1] // 2 - 2)
            boxes.append((CLASSES[(i + k) % 3], *map(float, (x, y, x + w, y + h))))
        found.append(Photo(f'photo_{i:02d}', *size, tuple(boxes)))
    return found


def write_photo(photo, path):
    """Write the image of a photo: noise of its own, its boxes bright."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, photo.stem)))
    pixels = rng.integers(0, 90, (photo.height, photo.width, 3)).astype(np.uint8)
    for name, x1, y1, x2, y2 in photo.boxes:
        pixels[round(y1) : round(y2), round(x1) : round(x2), CLASSES.index(name) if name in CLASSES else 0] = 220
    assert cv2.imwrite(str(path), pixels), path


def write_text(path, text, encoding='utf-8'):
    """Write a text, or bytes as they are."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))


def coco_content(photos, classes=CLASSES, name=lambda photo: f'{photo.stem}.jpg'):
    """COCO's content, all right, ids from 1."""
    content = {'images': [], 'annotations': [], 'categories': [{'id': i, 'name': n} for i, n in enumerate(classes, 1)]}
    for i, photo in enumerate(photos, 1):
        content['images'].append({'id': i, 'file_name': name(photo), 'width': photo.width, 'height': photo.height})
        for cls, x1, y1, x2, y2 in photo.boxes:
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': i,
                    'category_id': classes.index(cls) + 1,
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': 0,
                }
            )
    return content


def read(folder, source=None) -> OwnData:
    """Read a folder, or a file in it, with what is converted beside it and not in it; nothing in it may change."""
    before = snapshot(folder)
    data = read_own_data(source or folder, Path(folder).parent / 'run' / 'own_data')
    assert snapshot(folder) == before, 'the folder of the user was changed'
    return data


def snapshot(folder):
    """Names and sizes of all files."""
    return sorted((str(path), path.stat().st_size) for path in Path(folder).rglob('*') if path.is_file())


def boxes_of(data, split):
    """What training sees of a split: stem -> (class, x1, y1, x2, y2), through the dataset of the configs."""
    part = data.splits[split]
    dataset = DATASETS.build(
        {
            'type': 'CheckedCocoDataset',
            'data_root': f'{data.root}/',
            'ann_file': str(part.ann_file),
            'data_prefix': {'img': part.img_dir},
            'metainfo': {'classes': data.classes},
            'filter_cfg': {'filter_empty_gt': False, 'min_size': 0},
            'allow_outside': True,
            'pipeline': [],
            'serialize_data': False,  # which would collect garbage for a third of a second
        }
    )
    found = {}
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        assert Path(info['img_path']).is_file(), info['img_path']
        stem = Path(info['img_path']).stem
        assert stem not in found or len(Path(info['img_path']).parts) > 1
        found[stem] = sorted((data.classes[one['bbox_label']], *one['bbox']) for one in info['instances'])
    assert len(found) == len(dataset), 'images of one stem'
    return found


def assert_equal(found, photos, tolerance=1.0):
    """The boxes of a split are those of some photographs, within a pixel."""
    wanted = {photo.stem: sorted(photo.boxes) for photo in photos}
    assert set(found) == set(wanted)
    for stem, boxes in wanted.items():
        assert [box[0] for box in found[stem]] == [box[0] for box in boxes], stem
        for a, b in zip(found[stem], boxes):
            assert np.abs(np.array(a[1:]) - b[1:]).max() <= tolerance, (stem, a, b)


def check(folder, classes=CLASSES, source=None, everything=None, tolerance=1.0, **splits) -> OwnData:
    """Read a folder and compare it with its truth.

    Args:
        folder: To read.
        classes: In the order that is wanted.
        source: To name in place of the folder.
        everything: Photographs that train and val have together, shared out at random; or else give ``splits``.
        tolerance: Pixels.
        splits: Photographs of ``train``, ``val`` and ``test``.
    """
    data = read(folder, source)
    assert data.classes == tuple(classes)
    found = {split: boxes_of(data, split) for split in data.splits}
    if everything is not None:
        assert not set(found['train']) & set(found['val']) and found['train'] and found['val']
        found['train'] |= found.pop('val')
        splits = {'train': everything, **splits}
    assert set(found) == set(splits)
    for split, photos in splits.items():
        assert_equal(found[split], photos, tolerance)
    for split in data.splits:
        assert_perfect(data, split)
    return data


def assert_perfect(data, split):
    """With its own boxes as detections a split comes to a mAP of 1.000."""
    content = json.loads(data.splits[split].ann_file.read_text(encoding='utf-8-sig'))
    assert min((one['id'] for one in content['annotations']), default=1) > 0
    metric = METRICS.build(
        {'type': 'CocoMetric', 'ann_file': str(data.splits[split].ann_file), 'metric': 'bbox', 'format_only': False}
    )
    metric.dataset_meta = {'classes': data.classes}
    labels = {
        one['id']: data.classes.index(one['name']) for one in content['categories'] if one['name'] in data.classes
    }
    for image in content['images']:
        own = [one for one in content['annotations'] if one['image_id'] == image['id'] and not one['iscrowd']]
        boxes = np.array([one['bbox'] for one in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        detections = {
            'img_id': image['id'],
            'bboxes': boxes,
            'scores': np.full(len(own), 0.9, np.float32),
            'labels': np.array([labels[one['category_id']] for one in own], int),
        }
        truth = {'img_id': image['id'], 'width': image['width'], 'height': image['height']}
        metric.results.append((truth, detections))
    assert metric.compute_metrics(metric.results)['bbox_mAP'] == 1.0
