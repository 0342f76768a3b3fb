"""A tool run as a user runs it, on a set of eight images and a model of an eighth of Tiny's width."""

import ast
import functools
import gc
import json
import multiprocessing.forkserver
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import mmengine.config.config
import yapf.yapflib.yapf_api
from conftest import ROOT

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
# What makes a recipe a matter of seconds: an eighth of the width, batches of two.
SMALL_OPTIONS = {
    'model.backbone.widen_factor': 0.125,
    'model.neck.in_channels': [16, 32, 64],
    'model.neck.out_channels': 16,
    'model.bbox_head.in_channels': 16,
    'model.test_cfg.nms_pre': 50,
    'train_dataloader.batch_size': 2,
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
    'randomness.seed': 1,
}


def format_quickly(text, **options):
    """Format a config as one line for each of its names, in place of yapf."""
    return ast.unparse(ast.parse(text)), True


def be_quick():
    """Spare this process what takes most of the time of a short run.

    yapf needs half a second for a config, which mmengine formats for each checkpoint; tools that are run with `fresh`
    have it. mmengine collects garbage for each data set, which goes through all that was imported.
    """
    yapf.yapflib.yapf_api.FormatCode = format_quickly
    if hasattr(mmengine.config.config, 'FormatCode'):  # onedl-mmengine looks it up each time
        mmengine.config.config.FormatCode = format_quickly
    gc.freeze()


@functools.cache
def fork_server():
    """Start a process that has imported everything; a tool runs in a copy of it, which saves seconds."""
    context = multiprocessing.get_context('forkserver')
    mmdet = [f'mmdet.{name}' for name in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'utils')]
    # torch imports its compiler when the first optimiser is made.
    context.set_forkserver_preload(['yolov7_simple', 'tool_runs', *mmdet, 'torch._dynamo'])
    path = os.pathsep.join([str(ROOT), f'{ROOT}/tests', os.environ.get('PYTHONPATH', '')])
    places = {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}  # threads cannot be forked
    with mock.patch.dict(os.environ, places):
        multiprocessing.forkserver.ensure_running()
    return context


def be_a_tool(path, arguments, environment, log, cwd, before):
    """Run a tool in a copy of the server."""
    os.chdir(cwd)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(environment)
    warnings.filterwarnings('error', category=UserWarning, module='yolov7_simple')
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    multiprocessing.set_start_method(None, force=True)  # that of the platform, as a user's; a copy has the server's
    be_quick()
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


def run_python(python, cwd, *arguments, ok=True, environment):
    """Run a Python with some variables changed; return what it printed."""
    result = subprocess.run(
        [python, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert (result.returncode == 0) == ok, result.stdout[-4000:]
    return result.stdout


def write_config(path: Path, data: Path, workers=0):
    base = str(ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_8xb16-300e_coco.py')
    text = CONFIG.format(base=base, data=f'{data}/', workers=workers, persistent=workers > 0)
    path.write_text(text)


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
