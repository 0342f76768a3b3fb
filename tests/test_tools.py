"""The command lines, run as a user runs them, on a set of eight images and a model of an eighth of Tiny's width."""

import functools
import json
import multiprocessing.forkserver
import os
import pickle
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ROOT, write_coco

CONFIG = """
_base_ = {base!r}
data_root = {data!r}
metainfo = dict(classes=('box', 'disc'))
model = dict(
    backbone=dict(widen_factor=0.125),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, num_classes=2),
)
dataset = dict(data_root=data_root, metainfo=metainfo, ann_file='annotations/all.json', data_prefix=dict(img='images/'))
train_dataloader = dict(
    batch_size=2, num_workers={workers}, persistent_workers={persistent}, dataset=dict(dataset=dict(dataset))
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/all.json')
test_evaluator = val_evaluator
train_pipeline = _base_.train_pipeline
train_pipeline[0].img_scale = (96, 96)
train_dataloader['dataset']['pipeline'] = train_pipeline
test_pipeline = _base_.test_pipeline
for transform in test_pipeline:
    if transform['type'] == 'Resize':
        transform['scale'] = (96, 96)
val_dataloader['dataset']['pipeline'] = test_pipeline
train_cfg = dict(max_epochs=2, val_interval=1, dynamic_intervals=None)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=1)
model['data_preprocessor'] = dict(
    batch_augments=[dict(type='BatchMultiScale', random_size_range=(64, 128), min_bbox_size=4)]
)
custom_hooks = _base_.custom_hooks
for hook in custom_hooks:
    if hook['type'] == 'LastStageHook':
        hook['num_last_epochs'] = 1
"""


@functools.cache
def fork_server():
    """Start a process that has imported everything: a copy of it is a tool's process without the seconds for that."""
    context = multiprocessing.get_context('forkserver')
    mmdet = [f'mmdet.{name}' for name in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'utils')]
    context.set_forkserver_preload(['yolov7_simple', 'test_tools', *mmdet])
    path = os.pathsep.join([str(ROOT), f'{ROOT}/tests', os.environ.get('PYTHONPATH', '')])
    places = {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}  # threads cannot be forked
    with mock.patch.dict(os.environ, places):
        multiprocessing.forkserver.ensure_running()
    return context


def be_a_tool(path, arguments, environment, log, cwd, before):
    """What a copy of the server does."""
    os.chdir(cwd)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(environment)
    warnings.filterwarnings('error', category=UserWarning, module='yolov7_simple')
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    if before:
        before()
    runpy.run_path(path, run_name='__main__')


def tool(name, *arguments, ok=True, fresh=False, cwd='.', before=None, **environment):
    """Run a tool in a process of its own; return what it printed.

    Args:
        name: File in tools/.
        arguments: Those of its command line.
        ok: Whether it must end well, or must not.
        fresh: Start Python anew, as a user does.
        cwd: Folder to run it in.
        before: Function of a module to call first, unless `fresh`.
        environment: Variables.
    """
    command = [f'{ROOT}/tools/{name}', *map(str, arguments)]
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', **environment}
    if name.endswith('.py') and not fresh:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / 'log'
            cwd = os.path.abspath(cwd)
            process = fork_server().Process(
                target=be_a_tool, args=(command[0], command[1:], environment, log, cwd, before)
            )
            process.start()
            process.join(300)
            process.kill()
            output = log.read_text()
        assert (process.exitcode == 0) == ok, output[-4000:]
        return output
    if fresh:
        command = [sys.executable, '-W', 'error::UserWarning:yolov7_simple', *command]
    result = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert (result.returncode == 0) == ok, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A foreign project: data and a config of its own."""
    folder = tmp_path_factory.mktemp('project')
    write_coco(folder / 'data')
    write_config(folder / 'config.py', folder / 'data')
    return folder


def write_config(path: Path, data: Path, workers=0):
    base = str(ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_8xb16-300e_coco.py')
    text = CONFIG.format(base=base, data=f'{data}/', workers=workers, persistent=workers > 0)
    path.write_text(text)


@pytest.fixture(scope='module')
def trained(project):
    """Two epochs, the second of them the last stage."""
    return tool('train.py', project / 'config.py', '--work-dir', project / 'work', fresh=True)


def scalars(work_dir):
    """All logged records of all runs in a folder."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def metric(output):
    return re.findall(r'coco/bbox_mAP: (\S+)', output)[-1]


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def test_training(project, trained):
    assert trained.count('No GPU: training in float32') == 1
    assert 'Last stage from epoch 2' in trained
    records = [record for record in scalars(project / 'work') if 'loss' in record]
    assert len(records) == 8  # two epochs of four steps: the image without a box is used
    assert ['loss_l1' in record for record in records] == [False] * 4 + [True] * 4
    assert {'loss_obj', 'loss_cls', 'loss_bbox', 'grad_norm', 'lr'} <= set(records[0])
    names = {path.name for path in (project / 'work').iterdir()}
    assert {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint', 'config.py'} <= names
    assert any(name.startswith('best_coco_bbox_mAP') for name in names)
    checkpoint = torch.load(project / 'work' / 'epoch_2.pth', weights_only=True)
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub'} <= set(checkpoint)


def test_judging_the_dumped_config_gives_the_same(project, trained):
    output = tool('test.py', project / 'work' / 'config.py', project / 'work' / 'epoch_2.pth',
                  '--work-dir', project / 'test')  # fmt: skip
    assert metric(output) == metric(trained)


def test_judging_leaves_the_config_that_training_saved(project, trained):
    """With --tta, or other options, it would be that of another model, and the other tools could not use it."""
    saved = (project / 'work' / 'config.py').read_bytes()
    tool('test.py', project / 'work' / 'config.py', project / 'work' / 'epoch_2.pth', '--work-dir', project / 'work',
         '--cfg-options', 'model.test_cfg.score_thr=0.1')  # fmt: skip
    assert (project / 'work' / 'config.py').read_bytes() == saved


def test_resuming_goes_on_where_it_stopped(project, trained):
    output = tool('train.py', project / 'config.py', '--work-dir', project / 'resumed', '--resume',
                  project / 'work' / 'epoch_1.pth')  # fmt: skip
    assert 'resumed epoch: 1, iter: 4' in output
    assert 'Last stage from epoch 2' in output
    records = [record for record in scalars(project / 'resumed') if 'loss' in record]
    assert len(records) == 4 and all('loss_l1' in record for record in records)
    before = [record for record in scalars(project / 'work') if 'loss' in record]
    assert [record['lr'] for record in records] == [record['lr'] for record in before[4:]]


def test_any_tool_of_mmdet_runs(project):
    output = tool('mmdet_tool.py', 'misc/print_config.py', project / 'config.py', fresh=True)
    assert 'YOLOv7SimpleHead' in output
    assert 'analysis_tools/browse_dataset.py' in tool('mmdet_tool.py', 'no_such_tool.py', ok=False)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['model.backbone.arch=small'], "arch must be one of ['huge', 'large', 'tiny'], got 'small'"),
        (['model.backbone.widen_factor=0.25'], 'set neck.in_channels to what the backbone puts out'),
        (['model.bbox_head.in_channels=32'], 'set bbox_head.in_channels to the out_channels of the neck'),
        (['model.bbox_head.num_classes=3'], '`num_classes` (3) in YOLOv7SimpleHead'),
        (['train_dataloader.dataset.dataset.ann_file=nowhere.json'], 'No annotation file at'),
    ],
)
def test_mistakes_stop_the_run_before_the_first_step(project, tmp_path, options, message):
    output = tool('train.py', project / 'config.py', '--work-dir', tmp_path, '--cfg-options', *options, ok=False)
    assert message in output
    assert 'Epoch(train)' not in output
    assert not list(tmp_path.glob('*.pth'))


def test_a_checkpoint_of_another_size_is_refused(project, trained, tmp_path):
    output = tool('test.py', project / 'config.py', project / 'work' / 'epoch_2.pth', '--work-dir', tmp_path,
                  '--cfg-options', 'model.bbox_head.num_classes=5', ok=False)  # fmt: skip
    assert 'the checkpoint is not of this model: 6 of another shape, such as bbox_head.cls_preds.0.weight' in output


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder,)


@pytest.mark.parametrize(
    'command',
    [
        'test.py CONFIG EVIL --work-dir WORK',
        'train.py CONFIG --resume EVIL --work-dir WORK',
        'train.py CONFIG --cfg-options load_from=EVIL --work-dir WORK',
        'model_converters/rtodlab_to_mmdet.py EVIL OUT.pth',
        'export_onnx.py CONFIG EVIL OUT.onnx',
        'detect.py CONFIG EVIL IMAGES --out-dir WORK',
    ],
)
def test_a_malicious_checkpoint_does_nothing_and_is_refused(project, tmp_path, command):
    evil, made = tmp_path / 'evil.pth', tmp_path / 'made'
    torch.save({'state_dict': {'weight': torch.ones(1)}, 'payload': Payload(made)}, evil)
    pickle.loads(pickle.dumps(Payload(made)))
    made.rmdir()  # it would have worked
    places = {
        'CONFIG': project / 'config.py',
        'EVIL': evil,
        'WORK': tmp_path / 'work',
        'OUT': tmp_path / 'out',
        'IMAGES': project / 'data/images',
    }
    output = tool(*re.sub(r'[A-Z]+', lambda match: str(places[match[0]]), command).split(), ok=False)
    assert not made.exists()
    assert f'{evil}: not a checkpoint that can be read safely' in output and 'makedirs' in output
    assert 'Traceback' not in output and 'weights_only' not in output
    assert not list(tmp_path.glob('out*')) and not list(tmp_path.glob('work/*.pth'))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_launchers_say_how_they_are_used(script):
    assert f'{script} ' in tool(script, ok=False)
    subprocess.run(['bash', '-n', ROOT / 'tools' / script], check=True)
