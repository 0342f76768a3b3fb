"""The questions of tests/manual/gpu.sh, in order of worth. Each is a function that yields rows (of what, answer).

Each runs in a process of its own, so that one that crashes, hangs or runs out of memory costs only its own rows. All
images are made here.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

# Asking for a GPU must not start CUDA in this process, from which the others are forked.
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'

from yolov7_simple import config_path  # before mmdet: it stands in for missing mmcv ops

# isort: split
import cv2
import mmcv
import mmdet
import mmengine
import numpy as np
import torch
from benchmark_loss import make_head, make_inputs, step
from launches import make_batch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from timing import measure

from yolov7_simple.engine.without_gpu import DeviceAwareDistributedDataParallel
from yolov7_simple.ops.mmcv_ext import MissingOps
from yolov7_simple.ops.nms import nms

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {'Tiny': 'yolov7_tiny_8xb16-300e_coco.py', 'L': 'yolov7_l_8xb16-300e_coco.py'}
LARGEST = {'Tiny': 960, 'L': 800}  # sizes of the recipe's multi-scale training
CLASSES = CocoDataset.METAINFO['classes']
NUM_CLASSES = len(CLASSES)
# What may make training faster or slower: options of a config.
SWITCHES = {
    'cudnn_benchmark': {'env_cfg.cudnn_benchmark': True},
    'channels first': {'default_hooks.memory_format.channels_last': False},
    'pageable memory': {'train_dataloader.pin_memory': False, 'model.data_preprocessor.non_blocking': False},
    "mmdet's preprocessor": {'model.data_preprocessor.type': 'DetDataPreprocessor'},
    'not fused': {'optim_wrapper.optimizer.fused': False},
    "mmdet's EMA": {'custom_hooks.0.ema_type': 'ExpMomentumEMA'},
    'small tiles': {'model.train_cfg.assigner.tile_size': 2**20},
    'bfloat16': {'optim_wrapper.dtype': 'bfloat16'},
    'float32': {'optim_wrapper.type': 'OptimWrapper'},
}
Rows = Iterator[tuple[str, str]]
QUESTIONS: dict[str, tuple[Callable, int]] = {}


class Asked(NamedTuple):
    """Where to ask.

    Args:
        device: ``cuda`` or ``cpu``.
        smoke: Whether the smallest sizes do.
        folder: For files.
    """

    device: str
    smoke: bool
    folder: Path


def question(seconds: int) -> Callable:
    """Add a question, which may take this long."""

    def add(function: Callable[[Asked], Rows]) -> Callable[[Asked], Rows]:
        QUESTIONS[function.__name__] = function, seconds
        return function

    return add


def synchronize(device: str) -> None:
    if device != 'cpu':
        torch.cuda.synchronize()


def in_full(ask: Asked, task: Callable[[], object]) -> Callable[[], None]:
    """Make a task end when the device has done its work."""

    def run() -> None:
        task()
        synchronize(ask.device)

    return run


def make_set(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write a set in COCO's form, with all 80 classes: noise with seven rectangles an image."""
    rng = np.random.default_rng(0)
    width, height = size
    (folder / 'images').mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        image = cv2.resize(rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8), size)
        for _ in range(7):
            w, h = (int(rng.integers(side // 8, side // 2)) for side in size)
            x, y, label = int(rng.integers(width - w)), int(rng.integers(height - h)), int(rng.integers(NUM_CLASSES))
            cv2.rectangle(image, (x, y), (x + w, y + h), (3 * label, 255 - 3 * label, 128), -1)
            box = {'bbox': [x, y, w, h], 'area': w * h, 'iscrowd': 0}
            annotations.append({'id': len(annotations) + 1, 'image_id': i, 'category_id': label + 1, **box})
        cv2.imwrite(str(folder / 'images' / f'{i}.jpg'), image)
        images.append({'id': i, 'file_name': f'{i}.jpg', 'width': width, 'height': height})
    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(CLASSES)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'all.json').write_text(json.dumps(content))
    return folder


@DATASETS.register_module()
class ReadySamples(torch.utils.data.Dataset):
    """Training samples that cost nothing: one, over and over."""

    metainfo = {'classes': CLASSES}

    def __init__(self, count: int, size: int, boxes: int = 7) -> None:
        torch.manual_seed(0)
        self.count = count
        self.batch = make_batch(1, size, boxes, NUM_CLASSES)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {key: values[0] for key, values in self.batch.items()}


@HOOKS.register_module()
class StepTimesHook(Hook):
    """Seconds of the steps after some to warm up, and of their waiting for data."""

    priority = 'LOWEST'

    def __init__(self, device: str, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        self.begin = self.seconds = self.data_seconds = self.ended = 0.0
        self.steps = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.begin:
            self.data_seconds += time.perf_counter() - self.ended

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.begin:
            self.steps += 1
        elif runner.iter + 1 >= self.warm_up:
            synchronize(self.device)
            self.begin = time.perf_counter()
        self.ended = time.perf_counter()

    def after_train(self, runner) -> None:
        synchronize(self.device)
        self.seconds = time.perf_counter() - self.begin


def make_config(ask: Asked, name: str = 'Tiny', data: Path | None = None, options: dict | None = None) -> Config:
    """Read one of our configs; with ``smoke`` the model is an eighth as wide, and images are small.

    Args:
        ask: Where to ask.
        name: Of ``CONFIGS``.
        data: A set of :func:`make_set` in place of COCO.
        options: As of ``--cfg-options``.
    """
    cfg = Config.fromfile(config_path(CONFIGS['Tiny' if ask.smoke else name]))
    changes = {'work_dir': str(ask.folder / 'work'), 'default_hooks.logger.interval': 1000, 'randomness.seed': 0}
    if ask.smoke:
        channels = {'backbone.widen_factor': 0.125, 'neck.in_channels': [16, 32, 64], 'neck.out_channels': 16}
        changes |= {f'model.{key}': value for key, value in {**channels, 'bbox_head.in_channels': 16}.items()}
        changes |= {'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0}
        changes |= {'train_dataloader.persistent_workers': False}
        cfg.train_dataloader.dataset.pipeline[0].img_scale = (64, 64)
        cfg.model.data_preprocessor.batch_augments[0].random_size_range = (64, 64)
    if data is not None:
        for dataset in ('train_dataloader.dataset.dataset', 'val_dataloader.dataset', 'test_dataloader.dataset'):
            changes |= {f'{dataset}.data_root': f'{data}/', f'{dataset}.ann_file': 'all.json'}
            changes |= {f'{dataset}.data_prefix.img': 'images/'}
        changes |= {f'{split}_evaluator.ann_file': f'{data}/all.json' for split in ('val', 'test')}
    cfg.merge_from_dict({**changes, **(options or {})})
    return cfg


def without_validation(cfg: Config) -> Config:
    for name in ('dataloader', 'evaluator', 'cfg'):
        cfg[f'val_{name}'] = cfg[f'test_{name}'] = None
    cfg.default_hooks.checkpoint = None
    return cfg


def train(
    ask: Asked, name: str, steps: int, options: dict | None = None, size: int | None = 640, data: Path | None = None
) -> StepTimesHook:
    """Train by mmengine's Runner, as users do, and take the time.

    Args:
        ask: Where to ask.
        name: Of ``CONFIGS``.
        steps: That are timed; half as many come before.
        options: As of ``--cfg-options``.
        size: Of all batches; None: as in the recipe.
        data: As in :func:`make_config`; None: samples that cost nothing.
    """
    cfg = without_validation(make_config(ask, name, data, options))
    size = 64 if ask.smoke else size
    warm_up, steps = (1, 2) if ask.smoke else (steps // 2, steps)
    if size:
        cfg.model.data_preprocessor.batch_augments[0].random_size_range = (size, size)
    count = cfg.train_dataloader.batch_size * (warm_up + steps)
    if data is None:
        cfg.train_dataloader.dataset = {'type': 'ReadySamples', 'count': count, 'size': size or 640}
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = None
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'LastStageHook']
    cfg.custom_hooks.append({'type': 'StepTimesHook', 'device': ask.device, 'warm_up': warm_up})
    runner = Runner.from_cfg(cfg)
    runner.train()
    return next(hook for hook in runner.hooks if isinstance(hook, StepTimesHook))


def describe(times: StepTimesHook, batch: int) -> str:
    took, waited = (1e3 * seconds / times.steps for seconds in (times.seconds, times.data_seconds))
    return f'{1e3 * batch / took:.0f} images/s, {took:.1f} ms a step, of it {waited:.1f} for data'


def fixed_model(ask: Asked, device: str) -> torch.nn.Module:
    """With the same weights each time, and without another size for each batch."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = make_config(ask)
    cfg.model.data_preprocessor.batch_augments = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(device).train()


def losses_and_gradients(ask: Asked, device: str, dtype: torch.dtype) -> tuple[dict, torch.Tensor]:
    """Of one batch with fixed weights: losses, and all gradients in one row."""
    model = fixed_model(ask, device)
    torch.manual_seed(1)
    data = model.data_preprocessor(make_batch(2 if ask.smoke else 8, 64 if ask.smoke else 320, 7, NUM_CLASSES), True)
    with torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext():
        losses = model(**data, mode='loss')
    sum(losses.values()).backward()
    gradients = torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])
    return {name: float(loss) for name, loss in losses.items()}, gradients.cpu()


@question(180)
def cpu_and_gpu_agree(ask: Asked) -> Rows:
    """Losses and gradients on the CPU in float32, and on the device in three dtypes."""
    torch.backends.cudnn.allow_tf32 = False
    losses, gradients = losses_and_gradients(ask, 'cpu', torch.float32)
    # In half precision some cells learn another box, as their costs are nearly equal.
    for dtype, bound in ((torch.float32, 1e-3), (torch.float16, 0.1), (torch.bfloat16, 0.2)):
        theirs, their_gradients = losses_and_gradients(ask, ask.device, dtype)
        loss = max(abs(theirs[name] / value - 1) for name, value in losses.items())
        gradient = float((their_gradients - gradients).norm() / gradients.norm())
        yield str(dtype), f'{"agree" if loss < bound else "DIFFER"}: losses by {loss:.2g}, gradients by {gradient:.2g}'


@question(90)
def training_waits(ask: Asked) -> Rows:
    """Whether loss and backward wait for the device, which is an error then; and who waits in a whole step."""
    cfg = make_config(ask)
    cfg.model.data_preprocessor.batch_augments = None
    model = MODELS.build(cfg.model).to(ask.device).train()
    mode = torch.cuda.set_sync_debug_mode if ask.device == 'cuda' else lambda mode: None
    for i in range(3):
        data = model.data_preprocessor(make_batch(4, 64, 7, NUM_CLASSES), True)
        synchronize(ask.device)
        mode('error' if i == 2 else 'default')
        with torch.autocast(ask.device, torch.float16 if ask.device == 'cuda' else torch.bfloat16):
            losses = model(**data, mode='loss')
        sum(losses.values()).backward()
        mode('default')
    yield 'loss and backward, sync_debug_mode error', 'no wait' if ask.device == 'cuda' else 'ran; a CPU has no waits'

    found: Counter = Counter()

    def note(message, category, filename, lineno, file=None, line=None) -> None:
        if 'synchronizing' in str(message):
            stack = traceback.extract_stack()[:-1]
            known = [frame for frame in stack if re.search('yolov7_simple/|mm(det|engine)/', frame.filename)]
            where = (known or stack)[-1]
            found['/'.join(Path(where.filename).parts[-3:]) + f':{where.lineno}'] += 1

    warnings.showwarning = note
    warnings.simplefilter('always')
    mode('warn')
    times = train(ask, 'Tiny', 10)
    mode('default')
    warnings.simplefilter('ignore')
    steps = times.steps + times.warm_up
    callers = ', '.join(f'{where} {count / steps:.1f}' for where, count in found.most_common(8))
    yield 'whole steps', f'{sum(found.values()) / steps:.1f} waits a step: {callers or "none"}'


def run_tool(ask: Asked, *command: str, log: str, signal_at: str = '') -> str:
    """Run a tool to its end, or send it SIGTERM once it has printed a pattern; returns what it printed."""
    path = ask.folder / log
    environment = {**os.environ, 'PYTHON': sys.executable, 'PORT': '29511'}
    if ask.device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    with path.open('w') as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.05)
            if signal_at and re.search(signal_at, path.read_text()):
                process.send_signal(signal.SIGTERM)
                signal_at = ''
    output = path.read_text()
    assert process.returncode in (0, 143), f'{" ".join(command[:3])} failed: {output[-1500:]}'
    return output


def differences(path: Path, other: Path) -> list[str]:
    """Names of the weights, averages and states of the optimiser in which two checkpoints differ, bit for bit."""
    one, two = (torch.load(file, map_location='cpu', weights_only=True) for file in (path, other))
    found = []
    for part in ('state_dict', 'ema_state_dict'):
        found += [name for name, value in one[part].items() if not torch.equal(value, two[part][name])]
    states = [checkpoint['optimizer']['state'] for checkpoint in (one, two)]
    found += [f'optimizer {key}' for key, value in states[0].items()
              if any(not torch.equal(value[name], states[1][key][name]) for name in value)]  # fmt: skip
    return found


@question(240)
def training_repeats(ask: Asked) -> Rows:
    """Deterministic training twice; and stopped by SIGTERM in its second epoch, then resumed: each the same bits."""
    count, size = (8, (96, 64)) if ask.smoke else (128, (640, 480))
    data = make_set(ask.folder / 'data', count, size)
    options = {'randomness.deterministic': True, 'default_hooks.logger.interval': 1, 'train_cfg.max_epochs': 3}
    options |= {'train_cfg.val_interval': 100, 'train_cfg.dynamic_intervals': None}
    cfg = make_config(ask, data=data, options=options)
    next(hook for hook in cfg.custom_hooks if hook.type == 'LastStageHook').num_last_epochs = 1
    # Deterministic products of matrices need this on CUDA.
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    cfg.dump(ask.folder / 'config.py')
    train_py = (sys.executable, 'tools/train.py', str(ask.folder / 'config.py'), '--verbose', '--work-dir')

    def last(name: str) -> Path:
        return ask.folder / name / 'epoch_3.pth'

    run_tool(ask, *train_py, str(ask.folder / 'a'), log='a.log')
    output = run_tool(ask, *train_py, str(ask.folder / 'c'), log='c.log', signal_at=r'Epoch\(train\)\s+\[2\]')
    stopped = re.search(r'SIGTERM: stopped after step \d+', output)
    yield 'SIGTERM', stopped[0] if stopped else 'FAILED: the run did not stop'
    resumed = run_tool(ask, *train_py, str(ask.folder / 'c'), '--resume', log='d.log')
    assert 'resumed epoch' in resumed, 'the run was not resumed'
    found = differences(last('a'), last('c'))
    yield 'resumed', 'the same bits' if not found else f'DIFFERS in {len(found)} tensors, such as {found[0]}'
    if ask.smoke:
        return
    run_tool(ask, *train_py, str(ask.folder / 'b'), log='b.log')
    found = differences(last('a'), last('b'))
    yield 'twice', 'the same bits' if not found else f'DIFFERS in {len(found)} tensors, such as {found[0]}'


@question(90)
def one_rank(ask: Asked) -> Rows:
    """tools/dist_train.sh with one process: NCCL, SyncBN and DDP."""
    data = make_set(ask.folder / 'data', 8 if ask.smoke else 64, (96, 64) if ask.smoke else (640, 480))
    options = {'train_cfg.max_epochs': 1, 'default_hooks.logger.interval': 1}
    cfg = without_validation(make_config(ask, data=data, options=options))
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'LastStageHook']
    cfg.dump(ask.folder / 'config.py')
    config, work_dir = str(ask.folder / 'config.py'), str(ask.folder / 'work')
    output = run_tool(ask, 'bash', 'tools/dist_train.sh', config, '1', '--work-dir', work_dir, log='log')
    losses = re.findall(r' loss: (\S+)', output)
    backend = 'gloo' if ask.device == 'cpu' else 'nccl'
    yield backend, f'trained {len(losses)} steps, loss {losses[0]} to {losses[-1]}'


def be_a_rank(rank: int, ask: Asked) -> None:
    """Loss and gradients of a share of one batch; with a GPU both ranks use it, and SyncBN."""
    torch.distributed.init_process_group('gloo', f'file://{ask.folder}/store', rank=rank, world_size=2)
    torch.save(sharded(ask, rank, 2), ask.folder / f'{rank}.pt')
    torch.distributed.destroy_process_group()


def sharded(ask: Asked, rank: int, world: int) -> dict:
    model = fixed_model(ask, ask.device)
    if world > 1:
        if ask.device == 'cuda':
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = DeviceAwareDistributedDataParallel(model, device_ids=[0] if ask.device == 'cuda' else None)
    if ask.device == 'cpu':  # which has no SyncBN
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    detector = getattr(model, 'module', model)
    torch.manual_seed(1)
    batch = make_batch(4, 64 if ask.smoke else 320, 7, NUM_CLASSES)
    share = 4 // world
    batch = {key: values[rank * share : (rank + 1) * share] for key, values in batch.items()}
    losses = model(**detector.data_preprocessor(batch, True), mode='loss')
    sum(losses.values()).backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in detector.parameters()])
    return {'losses': {name: float(loss) for name, loss in losses.items()}, 'gradients': gradients.cpu()}


@question(90)
def two_ranks_on_one_card(ask: Asked) -> Rows:
    """Two processes of gloo with two images each compute what one with four does."""
    context = multiprocessing.get_context('fork')
    ranks = [context.Process(target=be_a_rank, args=(rank, ask)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], 'a rank failed'
    found = [torch.load(ask.folder / f'{rank}.pt', weights_only=True) for rank in range(2)]
    one = sharded(ask, 0, 1)
    loss = max(abs(sum(r['losses'][name] for r in found) / 2 / value - 1) for name, value in one['losses'].items())
    gradient = float((found[0]['gradients'] - one['gradients']).norm() / one['gradients'].norm())
    agree = loss < 1e-3 and gradient < 1e-2
    kind = 'SyncBN' if ask.device == 'cuda' else 'BatchNorm in evaluation mode'
    yield kind, f'{"agree" if agree else "DIFFER"}: losses by {loss:.2g}, gradients by {gradient:.2g}'


@question(150)
def training_speed(ask: Asked) -> Rows:
    """Images a second at 640, as the config is."""
    for name in CONFIGS:
        batch = 2 if ask.smoke else 16
        yield f'{name}, 16 at 640', describe(train(ask, name, 40), batch)
    yield 'Tiny, sizes of the recipe', describe(train(ask, 'Tiny', 60, size=None), batch)


@question(120)
def loss_against_mmdet(ask: Asked) -> Rows:
    """Assignment and loss, forward and backward, of our head and of mmdet's, for 16 images at 640."""
    images, size = (2, 64) if ask.smoke else (16, 640)
    for boxes in (2,) if ask.smoke else (7, 40, 150):
        inputs = make_inputs(images, boxes, NUM_CLASSES, ask.device, size=size)
        heads = {name: make_head(name, NUM_CLASSES, ask.device) for name in ('mmdet', 'ours')}
        tasks = {name: in_full(ask, partial(step, head, *inputs)) for name, head in heads.items()}
        took = {name: 1e3 * seconds for name, seconds in measure(tasks, 1 if ask.smoke else 5).items()}
        ratio = f'{took["mmdet"] / took["ours"]:.1f} times'
        yield f'{boxes} boxes an image', f'ours {took["ours"]:.1f} ms, mmdet {took["mmdet"]:.1f}: {ratio}'


@question(90)
def nms_three_ways(ask: Asked) -> Rows:
    """NMS of one image with 2,400 boxes in heaps: ours, torchvision's and compiled mmcv's."""
    count = 240 if ask.smoke else 2400
    torch.manual_seed(0)
    centers = (torch.rand(count // 60, 2) * 600).repeat_interleave(60, 0) + torch.randn(count, 2) * 12
    sides = 20 + torch.rand(count, 2) * 100
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1).to(ask.device)
    scores, labels = torch.rand(count, device=ask.device), torch.randint(4, (count,), device=ask.device)
    tasks = {'ours': lambda: nms(boxes, scores, 0.7, labels=labels)}
    for version in ours_for_batches():
        tasks[f'ours, {version.__name__}'] = lambda version=version: version(
            boxes[None], scores[None], torch.ones_like(scores[None], dtype=torch.bool), 0.7, labels=labels[None]
        )
    try:
        import torchvision

        tasks['torchvision'] = lambda: torchvision.ops.batched_nms(boxes, scores, labels, 0.7)
    except ImportError:
        yield 'torchvision', 'is not installed'
    if isinstance(sys.modules['mmcv._ext'], MissingOps):
        yield 'mmcv', 'this one has no compiled ops'
    else:
        tasks['mmcv'] = lambda: mmcv.ops.batched_nms(boxes, scores, labels, {'type': 'nms', 'iou_threshold': 0.7})

    tasks = {name: in_full(ask, task) for name, task in tasks.items()}
    for name, took in measure(tasks, 2 if ask.smoke else 20).items():
        yield name, f'{took * 1e3:.2f} ms'


def ours_for_batches() -> list[Callable]:
    try:
        from yolov7_simple.ops.nms_batch import dense_nms
    except ImportError:
        return []
    return [dense_nms]


@question(300)
def speed_of_switches(ask: Asked) -> Rows:
    """Images a second with each switch of the config; what it is without one was asked before."""
    for name in ('Tiny',) if ask.smoke else CONFIGS:
        for switch, options in SWITCHES.items():
            # The search for the fastest convolutions pays where sizes repeat: it is asked with all of them.
            size = None if switch == 'cudnn_benchmark' else 640
            try:
                times = train(ask, name, 30 if size else 60, options, size)
                yield f'{name}, {switch}', describe(times, 2 if ask.smoke else 16)
            except Exception as error:
                traceback.print_exc()
                yield f'{name}, {switch}', f'FAILED: {one_line(error)}'


@question(180)
def memory(ask: Asked) -> Rows:
    """Most memory of training at the recipe's largest size, and the largest batch that fits."""
    for name in ('Tiny',) if ask.smoke else CONFIGS:
        batch = 2 if ask.smoke else 16
        while True:
            try:
                gc.collect()
                if ask.device == 'cuda':
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                options = {'num_workers': 0, 'persistent_workers': False, 'batch_size': batch}
                options = {f'train_dataloader.{key}': value for key, value in options.items()}
                train(ask, name, 4, options, LARGEST[name])
            except torch.OutOfMemoryError:
                yield f'{name} at {LARGEST[name]}, {batch} images', 'do not fit'
                break
            peak = torch.cuda.max_memory_allocated() / 2**30 if ask.device == 'cuda' else 0
            yield f'{name} at {LARGEST[name]}, {batch} images', f'{peak:.1f} GiB' if peak else 'ran'
            if ask.smoke:
                break
            batch *= 2


@question(240)
def waiting_for_data(ask: Asked) -> Rows:
    """Images a second of Tiny with its own data path, by workers and cache."""
    data = make_set(ask.folder / 'data', 8 if ask.smoke else 1600, (96, 64) if ask.smoke else (640, 480))
    yield 'cores', str(len(os.sched_getaffinity(0)))
    ask_of = ((4, None), (8, None), (16, None), (4, 'ram'), (8, 'ram'), (16, 'ram'), (8, 'disk'))
    for workers, cache in ((0, 'ram'),) if ask.smoke else ask_of:
        options = {'num_workers': workers, 'persistent_workers': workers > 0}
        options['dataset.cache_images'] = cache
        options = {f'train_dataloader.{key}': value for key, value in options.items()}
        times = train(ask, 'Tiny', 60, options, data=data)
        yield f'{workers} workers, cache: {cache}', describe(times, 2 if ask.smoke else 16)


@question(300)
def speed_compiled(ask: Asked) -> Rows:
    """Images a second with torch.compile; the first steps, which compile, do not count."""
    for name in ('Tiny',) if ask.smoke else CONFIGS:
        options = {'compile': {'backend': 'eager'} if ask.smoke else True}
        yield name, describe(train(ask, name, 40, options), 2 if ask.smoke else 16)


def machine(ask: Asked) -> Rows:
    """What answers."""
    card = torch.cuda.get_device_name() if ask.device == 'cuda' else 'no GPU'
    versions = ', '.join(f'{module.__name__} {module.__version__}' for module in (torch, mmengine, mmcv, mmdet))
    yield 'machine', f'{card}, {len(os.sched_getaffinity(0))} cores, {versions}, CUDA {torch.version.cuda}'


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return f'{type(error).__name__}: {text[0][:200]}'.replace('|', '/')


def answer(function: Callable, ask: Asked, sender, log: Path) -> None:
    """Answer one question in this process, which is forked; send each row."""
    os.setsid()  # so that all that it starts can be ended with it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    init_default_scope('mmdet')
    try:
        for row in function(ask):
            sender.send(row)
    except BaseException as error:
        traceback.print_exc()
        sender.send(('', f'FAILED: {one_line(error)}; see {log.name}'))
    sys.stdout.flush()
    sender.close()
    os._exit(0)


def ask_one(function: Callable, ask: Asked, seconds: float, log: Path) -> Iterator[tuple[str, str]]:
    """Ask in a process of its own, which is ended after so many seconds."""
    shutil.rmtree(ask.folder, ignore_errors=True)
    ask.folder.mkdir(parents=True)
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(function, ask, sender, log))
    process.start()
    sender.close()
    end = time.monotonic() + seconds
    try:
        while True:
            if not receiver.poll(max(0.0, end - time.monotonic())):
                yield '', f'STOPPED after {seconds:.0f} s; see {log.name}'
                break
            try:
                yield receiver.recv()
            except EOFError:
                process.join(5)
                if process.exitcode:
                    yield '', f'FAILED: the process ended with {process.exitcode}; see {log.name}'
                break
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', type=Path, default=Path(os.environ.get('OUT', 'work_dirs/gpu')))
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--smoke', action='store_true', help='smallest sizes: does it run at all?')
    parser.add_argument('--minutes', type=float, default=25, help='default: 25')
    parser.add_argument('--only', nargs='+', choices=list(QUESTIONS), default=list(QUESTIONS), metavar='NAME')
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out.resolve() / 'gpu.md'
    known = table.read_text() if table.is_file() else ''

    def write(line: str) -> None:
        print(line, flush=True)
        with table.open('a') as file:
            file.write(f'{line}\n')

    if not known:
        write('| question | of | answer |\n| --- | --- | --- |')
    failed, left_out = 0, []
    for name, (function, seconds) in {'machine': (machine, 60), **QUESTIONS}.items():
        if name != 'machine' and (name not in args.only or f'| {name} | seconds |' in known):
            continue
        left = end - time.monotonic()
        if left < seconds / 4:
            left_out.append(name)
            continue
        begin = time.monotonic()
        ask = Asked(args.device, args.smoke, args.out.resolve() / 'files' / name)
        log = args.out.resolve() / f'{name}.log'
        for of, text in ask_one(function, ask, min(seconds, left), log):
            failed += text.startswith(('FAILED', 'STOPPED', 'DIFFER'))
            write(f'| {name} | {of} | {text} |')
        if name != 'machine':
            write(f'| {name} | seconds | {time.monotonic() - begin:.0f} |')
    print(f'\n{failed} failed; left out for lack of time: {", ".join(left_out) or "nothing"}; the table is {table}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
