"""Windows for a folder of one's own: when, of what size, and what the config then is."""

import json

import cv2
import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from tool_runs import SMALL_OPTIONS, metric, scalars, tool

from yolov7_simple.apis.inference import load_config
from yolov7_simple.doctor.image_sets import input_size
from yolov7_simple.own_data.box_sizes import read_box_sizes, shorter_sides
from yolov7_simple.own_data.config import own_config
from yolov7_simple.own_data.tiles import choose_overlap, choose_side, plan_tiles
from yolov7_simple.runtime.errors import InputError

CONFIG = ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_8xb16-300e_coco.py'
SIZE = 320
OPTIONS = {
    'train_dataloader.dataset.pipeline.0.img_scale': (SIZE, SIZE),
    'val_dataloader.dataset.pipeline.2.scale': (SIZE, SIZE),
    'test_dataloader.dataset.pipeline.2.scale': (SIZE, SIZE),
}


def write_folder(folder, side=20, size=(1600, 1200), num_boxes=6, num_images=3):
    """COCO files for train and val, with boxes of about this side."""
    rng = np.random.default_rng(0)
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'images').mkdir()
    for split in ('train', 'val'):
        content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'thing'}]}
        for i in range(num_images):
            image = np.full((size[1], size[0], 3), 60, np.uint8)
            for _ in range(num_boxes):
                w, h = (side * rng.uniform(0.8, 1.2, 2)).round().astype(int).tolist()
                x, y = rng.integers(0, (size[0] - w, size[1] - h)).tolist()
                image[y : y + h, x : x + w] = 220
                own = {'id': len(content['annotations']) + 1, 'image_id': i, 'category_id': 1}
                content['annotations'].append({**own, 'bbox': [x, y, w, h], 'area': w * h, 'iscrowd': 0})
            cv2.imwrite(str(folder / f'images/{split}_{i}.jpg'), image)
            content['images'].append({'id': i, 'file_name': f'{split}_{i}.jpg', 'width': size[0], 'height': size[1]})
        (folder / f'annotations/{split}.json').write_text(json.dumps(content))
    return folder


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Pictures of 1600 x 1200 with boxes of 20 pixels, 4 at a size of 320."""
    return write_folder(tmp_path_factory.mktemp('small') / 'data')


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """Boxes of 200 pixels."""
    return write_folder(tmp_path_factory.mktemp('large') / 'data', side=200)


def plan(folder, tile, **changes):
    cfg = load_config(CONFIG, {**OPTIONS, **changes})
    return plan_tiles(cfg, folder / 'annotations/train.json', tile)


def test_boxes_are_measured(tmp_path):
    images = [{'id': 7, 'width': 400, 'height': 200}, {'id': 3, 'width': 100, 'height': 100}]
    boxes = [(3, [0, 0, 10, 20], 0), (7, [0, 0, 30, 8], 0), (7, [0, 0, 30, 8], 1), (3, [0, 0, 5, 5], 0)]
    annotations = [{'image_id': i, 'bbox': box, 'iscrowd': crowd} for i, box, crowd in boxes]
    (tmp_path / 'a.json').write_text(json.dumps({'images': images, 'annotations': annotations}))
    sizes = read_box_sizes(tmp_path / 'a.json')
    assert sizes.per_image.tolist() == [1, 2] and sizes.sides.tolist() == [[10, 20], [30, 8], [5, 5]]
    assert shorter_sides(tmp_path / 'a.json', (200, 200)).tolist() == [20, 4, 10]


def test_windows_come_by_themselves_where_boxes_would_be_lost(small, large):
    tiles, note = plan(small, None)
    # 16 pixels of 320 where boxes are 16 or more in the picture, in whole multiples of 32.
    assert 256 <= tiles.side <= 416 and tiles.side % 32 == 0 and tiles.overlap == 0.2 and note == ''
    assert '18 of 18 training boxes (100%) are below 8 pixels at 320 x 320, 0 in windows' in str(tiles)
    assert plan(large, None) == (None, '')
    tiles, note = plan(small, 0)
    assert tiles is None and '18 of 18 training boxes (100%) are below 8 pixels' in note and '--tile' in note
    assert plan(large, 'auto')[0].side == 800 and plan(large, 640)[0].side == 640


def test_a_few_small_boxes_are_told(tmp_path):
    folder = write_folder(tmp_path / 'data', side=200)
    path = folder / 'annotations/train.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][2] = 20
    path.write_text(json.dumps(content))
    tiles, note = plan(folder, None)
    assert tiles is None and note.startswith(
        '1 of 18 training boxes (6%) are below 8 pixels at 320 x 320: a larger size'
    )


@pytest.mark.parametrize(
    ('tile', 'changes', 'message'),
    [
        (100, {}, '--tile 100: must be a multiple of 32, such as 96'),
        (-32, {}, '--tile -32: must be the side of the windows in pixels'),
        (1600, {}, '--tile 1600: has no effect, as no side of a picture is longer than 1600 pixels'),
        (640, {'train_dataloader.dataset.pipeline.0.img_scale': (640, 384)}, '--tile needs a square img_scale'),
        (640, {'model.type': 'YOLOX'}, '--tile needs a model of type SingleStageDetector, and it is YOLOX'),
        (640, {'val_dataloader.dataset.pipeline.2.type': 'Pad'}, '--tile needs one Resize in the pipeline of val_'),
        (640, {'train_dataloader.dataset.pipeline.0.type': 'Mosaic'}, '--tile needs .* one MosaicAffineMixUp'),
        (640, {'train_dataloader.dataset.dataset.type': 'CocoDataset'}, '--tile needs a CheckedCocoDataset in it'),
    ],
)
def test_mistakes(small, tile, changes, message):
    cfg = load_config(CONFIG)
    cfg.merge_from_dict({**OPTIONS, **changes})
    with pytest.raises(InputError, match=message):
        plan_tiles(cfg, small / 'annotations/train.json', tile)
    if changes:  # nothing was asked for
        tiles, note = plan_tiles(cfg, small / 'annotations/train.json', None)
        assert tiles is None and (note.endswith('a larger size keeps more of them') or 'Mosaic' in str(changes))


def test_pictures_that_are_too_small_are_not_cut(tmp_path):
    folder = write_folder(tmp_path / 'data', side=8, size=(48, 40))
    with pytest.raises(InputError, match='--tile: pictures of at most 48 pixels are too small to be cut'):
        plan(folder, 'auto')
    assert plan(folder, None)[0] is None


def test_large_boxes_fit_into_what_windows_share(small):
    sizes = read_box_sizes(small / 'annotations/train.json')
    assert choose_overlap(sizes, 64) == pytest.approx(0.4) and choose_overlap(sizes, 32) == 0.5
    assert choose_side(sizes, 64) == 64 and choose_side(sizes, 3200) == 800


def test_the_config_holds_all_of_it(small, tmp_path):
    options = {**OPTIONS, 'train_dataloader.dataset.dataset.filter_cfg.filter_empty_gt': True}
    path, data, text = own_config(CONFIG, small, tmp_path / 'work', options=options)
    assert 'windows of ' in text and ', the last ' in text
    cfg = Config.fromfile(path)
    outer = cfg.train_dataloader.dataset
    names = [outer.type, outer.dataset.type, outer.dataset.dataset.type]
    assert names == ['SeededMixDataset', 'TiledDataset', 'CheckedCocoDataset']
    assert outer.dataset.dataset.filter_cfg.filter_empty_gt and outer.cache_images == 'ram'
    assert cfg.model.type == 'TiledDetector' and cfg.model.scale == SIZE and cfg.model.tile == outer.dataset.tile
    for stage in ('val', 'test'):
        steps = [step.type for step in cfg[f'{stage}_dataloader'].dataset.pipeline]
        assert steps == ['LoadImageFromFile', 'CheckImageFile', 'LoadAnnotations', 'PackDetInputs']
        assert cfg[f'{stage}_evaluator'].type == 'CocoMetric'
    assert 'tta_model' not in cfg
    size = input_size(cfg)
    assert (size.scale, size.tile) == ((SIZE, SIZE), cfg.model.tile)
    assert size.factors(np.array([[1600, 1200]])) == pytest.approx(SIZE / cfg.model.tile)


def test_large_pictures_hold_more_than_a_hundred_objects(tmp_path):
    folder = write_folder(tmp_path / 'data', num_boxes=700, num_images=1)
    path, *_ = own_config(CONFIG, folder, tmp_path / 'work', options=OPTIONS)
    cfg = Config.fromfile(path)
    assert cfg.val_evaluator.type == 'WholePictureCocoMetric' and cfg.val_evaluator.proposal_nums[-1] == 1400


def test_windows_are_trained_and_tested(small, tmp_path):
    """The tools as a user runs them, and the numbers that they print."""
    work = tmp_path / 'work'
    options = {**SMALL_OPTIONS, 'train_dataloader.dataset.pipeline.0.img_scale': (64, 64)}
    options.update({f'{split}_dataloader.dataset.pipeline.2.scale': (64, 64) for split in ('val', 'test')})
    options['model.data_preprocessor.batch_augments.0.random_size_range'] = (64, 64)
    given = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    arguments = [CONFIG, '--data', small, '--work-dir', work, '--epochs', 1]
    output = tool('train.py', *arguments, '--tile', 512, '--cfg-options', *given)
    assert 'windows of 512 pixels' in output and '39 samples an epoch of 3 pictures' in output
    assert 'in windows of 512' in output  # 2.5 pixels, still too few
    tested = tool('test.py', work / 'work.py', work / 'epoch_1.pth', '--work-dir', tmp_path / 'test')
    assert float(metric(tested)) == scalars(work)[-1]['coco/bbox_mAP']
    for wrong, message in (
        (['--tile', 100], '--tile 100: must be a multiple of 32'),
        (['--tile', 96, '--no-tile'], 'not allowed with argument'),
    ):
        assert message in tool('train.py', *arguments, *wrong, ok=False)
    assert '--tile: needs --data' in tool('train.py', CONFIG, '--tile', ok=False)
