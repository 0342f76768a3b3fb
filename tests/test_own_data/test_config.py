"""A folder of one's own data -> a config with its classes, splits and schedule; and the tools on it."""

import importlib
import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, write_coco
from mmdet.registry import MODELS
from mmengine.config import Config
from tool_runs import SMALL_OPTIONS, metric, scalars, tool

from yolov7_simple.own_data import config
from yolov7_simple.own_data.config import own_config, set_schedule
from yolov7_simple.own_data.folder import read_own_data
from yolov7_simple.runtime.errors import InputError

CONFIG = ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_8xb16-300e_coco.py'
# Boxes of the images that are written, xyxy in pixels, by class.
BOXES = {'cat': (8, 4, 40, 28), 'dog': (50, 20, 90, 60)}


def write_image(path, size=(96, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 90, np.uint8))


def write_yolo(folder, names='names: [cat, dog]'):
    """Train and val, the same names of files in both, and an image without labels."""
    for split in ('train', 'val'):
        for i in range(3):
            write_image(folder / 'images' / split / f'{i}.jpg')
            (folder / 'labels' / split).mkdir(parents=True, exist_ok=True)
            label = i % 2
            x1, y1, x2, y2 = list(BOXES.values())[label]
            line = f'{label} {(x1 + x2) / 2 / 96} {(y1 + y2) / 2 / 64} {(x2 - x1) / 96} {(y2 - y1) / 64}\n'
            (folder / 'labels' / split / f'{i}.txt').write_text(line if split == 'train' else 2 * line)
        write_image(folder / 'images' / split / 'background.jpg')
    (folder / 'data.yaml').write_text(f'train: images/train\nval: images/val\n{names}\n')


def write_voc(folder):
    (folder / 'Annotations').mkdir()
    for i in range(4):
        write_image(folder / 'JPEGImages' / f'{i}.jpg')
        objects = ''.join(
            f'<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>'
            f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
            for name, (x1, y1, x2, y2) in BOXES.items()
        )
        (folder / 'Annotations' / f'{i}.xml').write_text(
            f'<annotation><filename>{i}.jpg</filename><size><width>96</width><height>64</height><depth>3</depth></size>'
            f'{objects}</annotation>'
        )
    (folder / 'ImageSets' / 'Main').mkdir(parents=True)
    (folder / 'ImageSets' / 'Main' / 'train.txt').write_text('0\n1\n')
    (folder / 'ImageSets' / 'Main' / 'val.txt').write_text('2\n')
    (folder / 'ImageSets' / 'Main' / 'test.txt').write_text('3\n')


def read(folder):
    return read_own_data(folder, folder / 'work_dirs' / 'own_data')


def write_splits(folder):
    """COCO files for train and val with images in folders of their own, as COCO has them."""
    for split in ('train', 'val'):
        write_coco(folder / split, classes=('cat', 'dog'))
        shutil.move(folder / split / 'images', folder / f'{split}2017')
        (folder / 'annotations').mkdir(exist_ok=True)
        shutil.move(folder / split / 'annotations' / 'all.json', folder / 'annotations' / f'instances_{split}2017.json')
        shutil.rmtree(folder / split)


def test_one_coco_file_a_split(tmp_path):
    write_splits(tmp_path)
    shutil.copy(
        tmp_path / 'annotations/instances_train2017.json', tmp_path / 'annotations/person_keypoints_train2017.json'
    )
    data = read(tmp_path)
    assert (data.form, data.classes) == ('COCO', ('cat', 'dog'))
    assert {split: part.img_dir for split, part in data.splits.items()} == {'train': 'train2017/', 'val': 'val2017/'}
    assert data.splits['val'].ann_file == tmp_path / 'annotations' / 'instances_val2017.json'
    assert not (tmp_path / 'work_dirs').exists()


def test_one_coco_file_is_split(tmp_path):
    write_coco(tmp_path, num_images=20)
    data = read(tmp_path)
    train, val = (json.loads(data.splits[split].ann_file.read_text()) for split in ('train', 'val'))
    names = [{image['file_name'] for image in part['images']} for part in (train, val)]
    assert [len(part) for part in names] == [16, 4] and not names[0] & names[1]
    for part in (train, val):
        assert {one['image_id'] for one in part['annotations']} <= {image['id'] for image in part['images']}
    assert json.loads(read(tmp_path).splits['val'].ann_file.read_text()) == val  # the same each time


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def spoil_box(path):
    annotations = json.loads(path.read_text())['annotations']
    annotations[2]['bbox'] = [1, 2, 'x', 4]
    change(path, annotations=annotations)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda folder: shutil.rmtree(folder), 'there is no such folder'),
        (lambda folder: shutil.rmtree(folder / 'annotations'), 'no labels found among its 16 files'),
        (lambda folder: (folder / 'annotations' / 'instances_train2017.json').write_text('{'), 'not a JSON file'),
        (lambda folder: (folder / 'annotations' / 'instances_train2017.json').unlink(), 'nothing to train on'),
        (
            lambda folder: (folder / 'annotations' / 'instances_train2017.json').write_text('{"images": []}'),
            '1 JSON files that are not COCO, .*instances_train2017.json',
        ),
        (lambda folder: shutil.rmtree(folder / 'train2017'), 'the folder of its own images is missing'),
        (
            lambda folder: [path.unlink() for path in sorted((folder / 'train2017').iterdir())[:4]],
            '4 of its 8 images are missing',
        ),
        (
            lambda folder: change(folder / 'annotations' / 'instances_train2017.json', annotations=[]),
            'no boxes to train on in the train split',
        ),
        (
            lambda folder: change(folder / 'annotations' / 'instances_val2017.json', images=[{'id': 1}]),
            'file_name must be a text, got None',
        ),
        (
            lambda folder: spoil_box(folder / 'annotations' / 'instances_val2017.json'),
            r"instances_val2017\.json: annotations\[2\] \(id 3\): bbox must be four .*got \[1, 2, 'x', 4\]",
        ),
        (
            lambda folder: shutil.copy(
                folder / 'annotations/instances_val2017.json', folder / 'annotations/instances_val.json'
            ),
            'several COCO files are for the val split',
        ),
    ],
)
def test_wrong_folders_are_named(tmp_path, spoil, message):
    write_splits(tmp_path / 'data')
    spoil(tmp_path / 'data')
    with pytest.raises(InputError, match=message):
        read(tmp_path / 'data')


@pytest.mark.parametrize(
    ('num_images', 'epochs', 'expected'),
    [
        # max_epochs, warm-up, last stage, interval of the validation; batch 16
        (100, None, (300, 15, 20, 10)),
        (1000, None, (80, 2, 20, 4)),
        (118287, None, (50, 1, 15, 2)),
        (100, 10, (10, 1, 3, 1)),
        (100, 1, (1, 1, 0, 1)),
    ],
)
def test_schedule_follows_the_size(num_images, epochs, expected):
    cfg = Config.fromfile(CONFIG)
    set_schedule(cfg, num_images, epochs)
    warmup, cosine = cfg.param_scheduler
    (hook,) = (hook for hook in cfg.custom_hooks if hook.type == 'LastStageHook')
    assert (cfg.train_cfg.max_epochs, warmup.end, hook.num_last_epochs, cfg.train_cfg.val_interval) == expected
    assert (cosine.begin, cosine.T_max) == (warmup.end, max(1, expected[0] - warmup.end)) and cosine.end > cosine.begin
    assert cfg.train_cfg.dynamic_intervals == [(expected[0] - expected[2], 1)]
    assert cfg.auto_scale_lr.enable


def test_what_the_config_gets(tmp_path):
    write_splits(tmp_path / 'data')
    path, _, _ = own_config(CONFIG, tmp_path / 'data', tmp_path / 'work', epochs=1)
    cfg = Config.fromfile(path)
    assert cfg.model.bbox_head.num_classes == 2
    assert cfg.train_dataloader.dataset.dataset.metainfo.classes == ('cat', 'dog')
    assert cfg.test_dataloader.dataset.metainfo.classes == ('cat', 'dog')
    assert cfg.val_evaluator.ann_file == str(tmp_path / 'data' / 'annotations' / 'instances_val2017.json')
    assert cfg.val_evaluator.classwise
    assert path == tmp_path / 'work' / 'own_data' / 'work.py'


@pytest.mark.parametrize(
    ('environment', 'told'),
    [({}, True), ({'RANK': '1'}, False), ({'SLURM_PROCID': '0'}, True), ({'SLURM_PROCID': '1'}, False)],
)
def test_one_rank_tells_what_it_found(tmp_path, monkeypatch, capsys, environment, told):
    write_splits(tmp_path / 'data')
    train = importlib.import_module('train')
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    work_dir = str(tmp_path / 'work')
    monkeypatch.setattr(
        'sys.argv', ['train.py', str(CONFIG), '--data', str(tmp_path / 'data'), '--work-dir', work_dir, '--amp']
    )
    train.use_own_data()
    assert ('in the form of COCO' in capsys.readouterr().out) == told
    assert sys.argv[1:] == [f'{work_dir}/own_data/work.py', '--work-dir', work_dir, '--amp']


SMALL = ['--cfg-options', *(f'{key}={value}'.replace(' ', '') for key, value in SMALL_OPTIONS.items())]


def test_from_folder_to_detections(tmp_path):
    """One command trains; config and checkpoint that it leaves are all that the other tools need."""
    write_yolo(tmp_path / 'pets')
    work = tmp_path / 'work'
    # With weights for another number of classes, all but the class layers are kept.
    config = ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_1xb8-40e_bccd.py'
    before = Config.fromfile(config).model
    before['backbone'] |= {'widen_factor': 0.125}
    before['neck'] |= {'in_channels': [16, 32, 64], 'out_channels': 16}
    before['bbox_head'] |= {'in_channels': 16, 'num_classes': 80}
    torch.save({'state_dict': MODELS.build(before).state_dict()}, tmp_path / 'coco.pth')
    output = tool('train.py', config, '--data', tmp_path / 'pets', '--epochs', '2', '--work-dir', work, '--verbose',
                  *SMALL, f'load_from={tmp_path / "coco.pth"}')  # fmt: skip
    assert 'in the form of YOLO, 2 classes: cat, dog' in output
    assert 'Other classes than in the checkpoint' in output and 'of class layers start anew' in output
    assert 'learning rate 0.00025, as measured for trained weights' in output  # for 2 images
    records = [record for record in scalars(work) if 'loss' in record]
    assert len(records) == 4 and 'loss_l1' in records[-1]
    config, checkpoint = work / 'work.py', work / 'epoch_2.pth'
    evaluated = tool('test.py', config, checkpoint, '--work-dir', tmp_path / 'test')
    assert metric(evaluated) == metric(output)
    image = tmp_path / 'pets' / 'images' / 'val' / '0.jpg'
    tool('detect.py', config, checkpoint, image, '--out-dir', tmp_path / 'out', '--score-thr', '0')
    found = json.loads((tmp_path / 'out' / 'detections.json').read_text())
    assert [category['name'] for category in found['categories']] == ['cat', 'dog']
    assert (tmp_path / 'out' / 'pictures' / '0.jpg').is_file()


def test_mistakes_end_in_one_line(tmp_path):
    (tmp_path / 'empty').mkdir()
    output = tool('train.py', CONFIG, '--data', tmp_path / 'empty', '--work-dir', tmp_path / 'work', ok=False)
    assert output.splitlines()[-1].startswith(f'error: {tmp_path}/empty: no labels found')
    assert 'Traceback' not in output
    assert not (tmp_path / 'work').exists()


def test_images_are_kept_in_memory_where_they_take_little_of_it(tmp_path, monkeypatch):
    write_yolo(tmp_path / 'data')

    def kept(name, **options):
        path, *_ = own_config(CONFIG, tmp_path / 'data', tmp_path / name, options=options)
        return Config.fromfile(path).train_dataloader.dataset.get('cache_images')

    assert kept('fits') == 'ram'
    assert kept('set', **{'train_dataloader.dataset.cache_images': None}) is None
    assert kept('disk', **{'train_dataloader.dataset.cache_images': 'disk'}) == 'disk'
    # Four images of 96 x 64, each at four fractions of its size, in 1.33 times its bytes.
    needed = 4 * 96 * 64 * 3 * 1.33
    for share, expected in ((3.0, None), (5.0, 'ram')):
        monkeypatch.setattr(config, 'free_bytes', lambda folder, share=share: share * needed + 4 * 4096)
        assert kept(f'{share}') == expected
