"""Windows of large pictures as training samples."""

import copy
import shutil

import cv2
import numpy as np
import pytest
from conftest import write_coco
from mmdet.registry import DATASETS
from mmengine.fileio import dump, load

from yolov7_simple.datasets.windows import cut_boxes
from yolov7_simple.engine.branches import walk_datasets
from yolov7_simple.utils.options import OptionError

SIZE = (330, 200)  # width, height


def write_pictures(folder):
    """Pictures with a bright box or disc each, and one with nothing, and a small one."""
    write_coco(folder, size=SIZE)
    path = folder / 'annotations/all.json'
    content = load(path)
    cv2.imwrite(str(folder / 'images/small.png'), np.full((50, 60, 3), 40, np.uint8))
    content['images'].append({'id': 100, 'file_name': 'small.png', 'width': 60, 'height': 50})
    dump(content, path)
    return {
        'type': 'SeededMixDataset',
        'dataset': {
            'type': 'TiledDataset',
            'tile': 96,
            'dataset': {
                'type': 'CheckedCocoDataset',
                'data_root': f'{folder}/',
                'metainfo': {'classes': ('box', 'disc')},
                'ann_file': 'annotations/all.json',
                'data_prefix': {'img': 'images/'},
                'filter_cfg': {'filter_empty_gt': False},
                'pipeline': [{'type': 'LoadAnnotations', 'with_bbox': True}],
            },
        },
        'pipeline': [
            {'type': 'MosaicAffineMixUp', 'img_scale': (96, 96), 'scaling_ratio_range': (0.5, 1.5), 'flip_prob': 0.0},
            {'type': 'PackDetInputs', 'meta_keys': ('img_path',)},
        ],
    }


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'))


@pytest.fixture
def dataset(config):
    dataset = DATASETS.build(copy.deepcopy(config))
    dataset.set_epoch(0, 0)
    return dataset


def test_windows_cover_each_picture_and_it_is_there_as_a_whole(dataset):
    tiled = dataset.dataset
    assert len(dataset) == len(tiled) == 8 * (1 + 4 * 3) + 1
    names = [type(one).__name__ for one in walk_datasets(dataset)]
    assert names == ['SeededMixDataset', 'TiledDataset', 'CheckedCocoDataset']
    assert 'window' not in tiled[0] and 'window' not in tiled[len(tiled) - 1]
    assert tiled.view_size(0) == SIZE and tiled.view_size(1) == (96, 96) and tiled.view_size(len(tiled) - 1) == (60, 50)
    tiled.box_share = 0.0
    np.random.seed(0)
    covered = np.zeros(SIZE[::-1], int)
    for _ in range(20):
        for i in range(1, 13):
            x1, y1, x2, y2 = tiled[i]['window'].tolist()
            assert (x2 - x1, y2 - y1) == (96, 96) and min(x1, y1) >= 0 and x2 <= SIZE[0] and y2 <= SIZE[1]
            covered[y1:y2, x1:x2] += 1
    assert covered.min() > 0
    with pytest.raises(IndexError):
        tiled[len(tiled)]


def test_windows_are_drawn_around_boxes(dataset):
    tiled = dataset.dataset
    for share, least, most in ((1.0, 120, 120), (0.0, 0, 100)):
        tiled.box_share = share
        whole = sum((~tiled[i]['gt_ignore_flags']).any() for _ in range(10) for i in range(1, 13))
        assert least <= whole <= most
    tiled.box_share = 1.0
    picture = 7 * 13  # without a box
    assert not any(len(tiled[i]['gt_bboxes_labels']) for i in range(picture, picture + 13))


def test_samples_are_drawn_anew_each_epoch_and_are_the_same_again(dataset, config):
    first = [dataset[i]['inputs'] for i in (1, 2, 20)]
    other = DATASETS.build(copy.deepcopy(config))
    other.set_epoch(0, 0)
    assert all((other[i]['inputs'] == one).all() for i, one in zip((20, 2, 1), reversed(first)))
    dataset.set_epoch(0, 1)
    assert not any((dataset[i]['inputs'] == one).all() for i, one in zip((1, 2, 20), first))
    assert dataset[5]['data_samples'].sample_index == 5
    assert len(dataset.sources(5)) >= 1


def brightest(image, label):
    """The box of what is bright in an image, as it is written there."""
    mask = image.max(2) > 130 if label == 0 else image[..., 1].astype(int) > 120
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize('cached', [False, True])
def test_boxes_are_where_the_pixels_are(config, cached):
    """Of windows, and of pictures as a whole: letterboxed, without mosaic."""
    config = copy.deepcopy(config)
    if cached:
        config['cache_images'] = 'ram'
    dataset = DATASETS.build(config)
    dataset.pipeline[0].close()
    dataset.set_epoch(0, 3)
    num_windows = 0
    for i in range(len(dataset)):
        sample = dataset[i]
        boxes, labels = (sample['data_samples'].gt_instances[key] for key in ('bboxes', 'labels'))
        if not len(labels):
            continue
        image = sample['inputs'].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(boxes.tensor[0], brightest(image, int(labels[0])), atol=1.6)
        num_windows += dataset.dataset._place(i)[1] > 0
    assert num_windows > 30


def test_samples_are_the_same_with_a_cache(config, tmp_path):
    """Windows of JPEG files are decoded at full size, and whole pictures at a fraction of it."""
    config = copy.deepcopy(config)
    folder = tmp_path / 'large'
    inner = config['dataset']['dataset']
    shutil.copytree(inner['data_root'], folder)
    content = load(folder / 'annotations/all.json')
    for image in content['images']:
        path = folder / 'images' / image['file_name']
        large = cv2.resize(cv2.imread(str(path)), None, fx=4, fy=4)
        image.update(file_name=f'{path.stem}.jpg', width=large.shape[1], height=large.shape[0])
        cv2.imwrite(str(path.with_suffix('.jpg')), large)
    for box in content['annotations']:
        box['bbox'] = [4 * side for side in box['bbox']]
    dump(content, folder / 'annotations/all.json')
    inner['data_root'] = f'{folder}/'
    config['dataset']['tile'] = 128
    plain, cached = (DATASETS.build(copy.deepcopy({**config, 'cache_images': kind})) for kind in (None, 'ram'))
    plan = cached.pipeline[0]._image_cache.plan
    assert (plan.reduced[0, 0] == content['images'][0]['width']).any() and plan.reduced[0, 3].all()
    for closed in (False, True):
        for dataset in (plain, cached):
            dataset.set_epoch(1, 1)
            dataset.pipeline[0].close(closed)
        for i in (0, 3, 40, 100):
            assert (plain[i]['inputs'] == cached[i]['inputs']).all()


def test_cut_boxes_are_kept_by_the_share_that_is_seen():
    window = np.array([100, 50, 200, 150])
    boxes = np.array(
        [[110, 60, 120, 80], [90, 60, 110, 80], [92, 60, 102, 80], [0, 0, 50, 50], [80, 140, 120, 160]], float
    )
    shown, ignored, kept = cut_boxes(boxes, window, 0.3)
    assert kept.tolist() == [0, 1, 2, 4] and ignored.tolist() == [False, False, True, True]
    assert shown.tolist() == [[10, 10, 20, 30], [0, 10, 10, 30], [0, 10, 2, 30], [0, 90, 20, 100]]


def test_a_damaged_picture_is_replaced(config, tmp_path):
    config = copy.deepcopy(config)
    folder = tmp_path / 'damaged'
    inner = config['dataset']['dataset']
    shutil.copytree(inner['data_root'], folder)
    (folder / 'images/0.png').write_bytes(b'no image')
    inner['data_root'] = f'{folder}/'
    dataset = DATASETS.build({**config, 'max_damaged': 0.2})
    dataset.set_epoch(0, 0)
    assert all(dataset[i] is not None for i in range(40)) and dataset.damaged.sum()
    # One that is smaller than annotated has no pixels for most of its windows.
    cv2.imwrite(str(folder / 'images/0.png'), np.zeros((60, 60, 3), np.uint8))
    dataset.pipeline[0].close()
    assert all(dataset[i] is not None for i in range(13))


def test_pictures_that_are_loaded_before_are_refused(config):
    config = copy.deepcopy(config)
    config['dataset']['dataset']['pipeline'].insert(0, {'type': 'LoadImageFromFile'})
    dataset = DATASETS.build(config)
    with pytest.raises(OptionError, match='must be LoadAnnotations alone'):
        dataset[1]
