"""Options of the command line and configs in Python style, as a user runs them."""

import re
import shlex
import shutil

import pytest
from conftest import ROOT, write_coco
from mmengine.config import Config
from tool_runs import metric, scalars, tool, write_config

PYTHON_STYLE = """
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmengine.config import read_base
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper
from mmcv.transforms import LoadImageFromFile

from yolov7_simple import CheckImageFile, LastStageHook

with read_base():
    from .yolov7.yolov7_tiny_8xb16_300e_coco import *

default_scope = None
model.backbone.widen_factor = 0.125
model.neck.update(in_channels=[16, 32, 64], out_channels=16)
model.bbox_head.update(in_channels=16, num_classes=2)
model.test_cfg.nms_pre = 50
model.data_preprocessor.batch_augments[0].update(random_size_range=(64, 128), min_bbox_size=4)
dataset = dict(
    data_root={data!r},
    metainfo=dict(classes=('box', 'disc')),
    ann_file='annotations/all.json',
    data_prefix=dict(img='images/'),
)
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=CheckImageFile),
    dict(type=Resize, scale=(96, 96), keep_ratio=True),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader.dataset.dataset.update(dataset)
train_dataloader.dataset.pipeline[0].img_scale = (96, 96)
for loader in (val_dataloader, test_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.update(dataset)
    loader.dataset.pipeline = test_pipeline
val_evaluator.ann_file = test_evaluator.ann_file = {data!r} + 'annotations/all.json'
train_cfg.update(max_epochs=1, val_interval=1, dynamic_intervals=None)
optim_wrapper.type = AmpOptimWrapper
custom_hooks = [
    dict(type=EMAHook, ema_type='mmdet.ExpMomentumEMA', momentum=0.0002, gamma=2000, update_buffers=True, priority=49),
    dict(type=LastStageHook, num_last_epochs=1, priority=48),
]
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp('project')
    write_coco(folder / 'data')
    write_config(folder / 'config.py', folder / 'data')
    (folder / 'yolov7').symlink_to(ROOT / 'yolov7_simple' / 'configs')
    (folder / 'python_style.py').write_text(PYTHON_STYLE.format(data=f'{folder}/data/'))
    return folder


@pytest.fixture(scope='module')
def trained(project):
    return tool('train.py', project / 'python_style.py', '--work-dir', project / 'work', '--verbose')


@pytest.mark.parametrize('config', ['python_style.py', 'work/python_style.py'])
def test_python_style_configs_go_through_all_tools(project, trained, tmp_path, config):
    """Classes as types, and no default scope; its dump has names with modules as types."""
    assert 'Last stage from epoch 1 of 1' in trained
    config, checkpoint, image = project / config, project / 'work' / 'epoch_1.pth', project / 'data/images/0.png'
    tested = tool('test.py', config, checkpoint, '--work-dir', tmp_path / 'test', '--verbose')
    assert metric(tested) == metric(trained)
    tool('detect.py', config, checkpoint, image, '--out-dir', tmp_path / 'found', '--score-thr', '0')
    tool('export_onnx.py', config, checkpoint, tmp_path / 'model.onnx')
    tool('report.py', config, '--out', tmp_path / 'schedule.html')
    found = tool(
        'check_dataset.py', config, '--out-dir', tmp_path / 'checked', ok=False
    )  # a set of drawings has faults
    assert str(tmp_path / 'checked' / 'index.html') in found


def test_python_style_configs_with_data_of_ones_own(project, trained, tmp_path):
    tool('report.py', project / 'work', '--out', tmp_path / 'report.html')
    data = tmp_path / 'data'
    shutil.copytree(project / 'data', data)
    (data / 'annotations/all.json').rename(data / 'images/_annotations.coco.json')
    output = tool('train.py', project / 'python_style.py', '--data', data / 'images', '--work-dir', tmp_path / 'work',
                  '--verbose', '--epochs', '1', '--cfg-options', 'train_dataloader.batch_size=3',
                  'optim_wrapper.accumulative_counts=2')  # fmt: skip
    assert re.search('1 epochs of [23] steps', output) and '2 of them accumulated' in output
    assert 'learning rate 0.0026, as measured for random weights' in output  # for 6 images
    assert Config.fromfile(tmp_path / 'work' / 'work.py').optim_wrapper.accumulative_counts == 2


def test_a_variable_of_the_file_is_refused_and_the_advice_works(project, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(project / 'data', moved)
    lost = tmp_path / 'lost.py'
    lost.write_text((project / 'config.py').read_text().replace(f'{project}/data/', 'nowhere/'))
    output = tool('train.py', lost, '--work-dir', tmp_path / 'work', ok=False)
    advised = re.search(r'--cfg-options data_root=DIR', output)[0].replace('DIR', str(moved)).split()
    output = tool('train.py', lost, '--work-dir', tmp_path / 'work', *advised, ok=False)
    assert 'Traceback' not in output
    options = shlex.split(output.strip().splitlines()[-1].split('Set --cfg-options ')[1])
    output = tool('train.py', lost, '--work-dir', tmp_path / 'work', '--epochs', '1', '--cfg-options', *options)
    assert 'best mAP' in output


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('mmdet_tool.py misc/print_config.py CONFIG --cfg-options max_epochs=3', 'train_cfg.max_epochs=3'),
        ('test.py CONFIG none.pth --cfg-options data_root=x', 'Set --cfg-options train_dataloader.dataset'),
        ('train.py CONFIG --cfg-options train_cfg.max_epoch=3', 'did you mean max_epochs?'),
        ('train.py CONFIG --epochs 3 --cfg-options train_cfg.max_epochs=3', 'give one of them'),
        ('train.py CONFIG --epochs 0', 'must be at least 1'),
        ('train.py --cfg-options work_dir=x CONFIG', 'each one must be KEY=VALUE'),
        ('train.py CONFIG --data DATA --cfg-options max_epochs=3', 'Set --cfg-options train_cfg.max_epochs=3'),
    ],
)  # fmt: skip
def test_options_that_do_nothing_are_refused_in_one_line(project, tmp_path, arguments, message):
    places = {'CONFIG': project / 'config.py', 'DATA': project / 'data'}
    words = [str(places.get(word, word)) for word in arguments.split()]
    output = tool(*words, ok=False, cwd=tmp_path)
    assert message in output.splitlines()[-1]
    assert 'Traceback' not in output


@pytest.mark.parametrize('is_ours', [True, False])
def test_the_rate_fits_one_step_and_accumulated_batches(project, tmp_path, is_ours):
    """All images in one batch, a warm-up of one step; ours, and a config from before our runner."""
    cfg = Config.fromfile(project / 'config.py')
    if not is_ours:
        cfg.pop('runner_type')
        cfg.train_cfg.pop('type')
        cfg.train_cfg.by_epoch = True
    cfg.merge_from_dict({'train_dataloader.batch_size': 8, 'param_scheduler.0.end': 1, 'param_scheduler.1.begin': 1})
    cfg.dump(tmp_path / 'config.py')
    output = tool('train.py', tmp_path / 'config.py', '--epochs', '4', '--work-dir', tmp_path / 'work',
                  '--verbose', '--auto-scale-lr', '--cfg-options', 'optim_wrapper.accumulative_counts=2')  # fmt: skip
    assert 'Scaling the original LR by 0.125' in output  # 16 images an update, of 128
    rates = [record['lr'] for record in scalars(tmp_path / 'work') if 'loss' in record]
    assert rates[:2] == pytest.approx([0.002 * 0.125] * 2)
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] and len(rates) == 4
