"""Time assignment and loss, forward and backward from raw predictions: mmdet's YOLOXHead and ours on the same tensors.

    python tools/benchmarks/benchmark_loss.py

compares time and memory over boxes an image; with ``--log-sizes`` most boxes are small. With ``--sweep`` ours alone is
timed over boxes, classes and images, with ``--step CONFIG`` both as shares of a training step with that config and its
data, on a GPU in the config's mixed precision.
"""

import argparse
import gc
import itertools
import multiprocessing
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from timing import measure

from yolov7_simple import YOLOv7SimpleHead
from yolov7_simple.apis.inference import quiet
from yolov7_simple.engine.non_finite import NonFiniteLossHook

IMAGES, SIZE, CLASSES = 16, 640, 80
STRIDES = (8, 16, 32)


def make_inputs(
    images: int, boxes: int, classes: int, device: str, log_sizes: bool = False, size: int = SIZE
) -> tuple[list, list]:
    """Draw raw predictions as early in training, and boxes with sides from 8 pixels to half the image.

    With ``log_sizes`` sides are uniform in the logarithm, from 8 to 300 pixels.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, mean: float, deviation: float) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * deviation + mean
        return values.to(device).requires_grad_()

    cells = [(size // stride, size // stride) for stride in STRIDES]
    predictions = [
        [normal(images, classes, *cell, mean=-3.0, deviation=1.0) for cell in cells],
        [normal(images, 4, *cell, mean=0.5, deviation=0.5) for cell in cells],
        [normal(images, 1, *cell, mean=-2.0, deviation=1.0) for cell in cells],
    ]
    truth = []
    for _ in range(images):
        sizes = torch.rand(boxes, 2, generator=generator)
        sizes = 8 * (300 / 8) ** sizes if log_sizes else 8 + sizes * (size / 2 - 8)
        corners = torch.rand(boxes, 2, generator=generator) * (size - sizes)
        labels = torch.randint(classes, (boxes,), generator=generator)
        truth.append(InstanceData(bboxes=torch.cat([corners, corners + sizes], 1).to(device), labels=labels.to(device)))
    return predictions, truth


def make_head(name: str, classes: int, device: str) -> torch.nn.Module:
    """Build a head as thin as can be, since only its loss is measured."""
    if name == 'ours':
        return YOLOv7SimpleHead(classes, in_channels=8).to(device)
    assigner = {'assigner': {'type': 'SimOTAAssigner', 'center_radius': 2.5}}
    head = {'type': 'YOLOXHead', 'num_classes': classes, 'in_channels': 8, 'feat_channels': 8, 'train_cfg': assigner}
    return MODELS.build(head).to(device)


def measure_step(config: str, repeats: int, device: str) -> None:
    """Print the share of both losses and of the search for non-finite numbers in a step on the config's first batch."""
    cfg = Config.fromfile(config)
    with quiet():
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        model = MODELS.build(cfg.model).to(device).train()
        model.init_weights()
    batch = pseudo_collate([dataset[i] for i in range(cfg.train_dataloader.batch_size)])
    hub = MessageHub.get_current_instance()
    hub.update_info('iter', 0)  # read by the batch augmentation
    data = model.data_preprocessor(batch, training=True)
    truth = [sample.gt_instances for sample in data['data_samples']]
    autocast = autocast_of(cfg, device)
    with autocast:
        outputs = model(data['inputs'], mode='tensor')
    outputs = [[level.detach().requires_grad_() for level in levels] for levels in outputs]
    theirs = make_head('mmdet', model.bbox_head.num_classes, device)
    check, loss = NonFiniteLossHook(), {'loss': torch.ones((), device=device)}
    weights = dict.fromkeys(('state_dict', 'ema_state_dict'), model.state_dict())
    hub.update_scalar('train/grad_norm', 1.0)
    runner = SimpleNamespace(iter=0, message_hub=hub, optim_wrapper=None)

    def whole_step() -> None:
        model.zero_grad()
        with autocast:
            losses = model(**data, mode='loss')
        sum(losses.values()).backward()

    tasks = {
        'step': whole_step,
        'ours': lambda: step(model.bbox_head, outputs, truth, autocast),
        'mmdet': lambda: step(theirs, outputs, truth, autocast),
        'check': lambda: check.after_train_iter(runner, 0, outputs=loss),
        'check weights': lambda: check.before_save_checkpoint(runner, weights),
    }
    took = {name: 1000 * seconds for name, seconds in measure(tasks, repeats, device).items()}  # in ms
    rest = took['step'] - took['ours']
    boxes = sum(map(len, truth)) / len(truth)
    print(f'{config}: batch of {len(truth)}, {boxes:.1f} boxes an image; forward and backward {took["step"]:.0f} ms')
    for name in ('mmdet', 'ours'):
        share = took[name] / (rest + took[name])
        print(f'  assignment and loss, {name}: {took[name]:.0f} ms, {share:.1%} of a step with it')
    print(
        f'  search for non-finite numbers: {took["check"]:.3f} ms, {took["check"] / took["step"]:.3%} of it; '
        f'{took["check weights"]:.0f} ms a checkpoint'
    )
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        whole_step()
        print(f'  most memory in a step: {torch.cuda.max_memory_allocated() / 2**20:.0f} MB')


def autocast_of(cfg: Config, device: str) -> torch.autocast:
    """Mixed precision as the config trains with: on a CPU none."""
    kind, wrapper = torch.device(device).type, cfg.optim_wrapper
    enabled = kind != 'cpu' and wrapper.get('type') == 'AmpOptimWrapper'
    return torch.autocast(kind, getattr(torch, wrapper.get('dtype') or 'float16') if enabled else None, enabled)


def step(head: torch.nn.Module, predictions: list, truth: list, autocast: AbstractContextManager | None = None) -> None:
    """One forward, under ``autocast``, and backward through assignment and loss."""
    for level in itertools.chain(*predictions):
        level.grad = None
    with autocast or nullcontext():
        losses = head.loss_by_feat(*predictions, truth, [{}] * len(truth))
    sum(losses.values()).backward()


def peak_memory(*arguments) -> float:
    """Call :func:`_peak_memory` in a process of its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_peak_memory, arguments)


def _peak_memory(name: str, images: int, boxes: int, classes: int, device: str, log_sizes: bool = False) -> float:
    """Most megabytes that a head holds at once beyond its inputs."""
    init_default_scope('mmdet')
    head = make_head(name, classes, device)
    step(head, *make_inputs(1, 2, classes, device, size=64))  # imports and allocates what only the first call does
    inputs = make_inputs(images, boxes, classes, device, log_sizes)
    gc.collect()
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(head, *inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak that Linux keeps
    before = status('VmRSS')
    step(head, *inputs)
    return status('VmHWM') - before


def status(field: str) -> float:
    """A field of this process' status, in megabytes."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def compare(boxes: list[int], repeats: int, device: str, log_sizes: bool) -> None:
    """Print time and memory of both heads over boxes an image."""
    print('| boxes | mmdet ms | ours ms | times faster | mmdet MB | ours MB | share of memory |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for count in boxes:
        shape = (IMAGES, count, CLASSES, device, log_sizes)
        inputs = make_inputs(*shape)
        names = ('mmdet', 'ours')
        tasks = {name: partial(step, make_head(name, CLASSES, device), *inputs) for name in names}
        took = measure(tasks, repeats, device)
        del inputs, tasks
        memory = {name: peak_memory(name, *shape) for name in names}
        print(
            f'| {count} | {took["mmdet"] * 1000:.0f} | {took["ours"] * 1000:.0f} '
            f'| {took["mmdet"] / took["ours"]:.1f} | {memory["mmdet"]:.0f} | {memory["ours"]:.0f} '
            f'| {memory["ours"] / memory["mmdet"]:.2f} |',
            flush=True,
        )


def sweep(target: Path, repeats: int, device: str) -> None:
    """Print and draw time of ours over boxes, classes and images, beside the straight line through the largest."""
    grid = {
        'boxes an image': [(IMAGES, n, CLASSES) for n in (10, 40, 150, 300, 600)],
        'classes': [(IMAGES, 40, n) for n in (1, 20, 80, 365, 1203)],
        'images': [(n, 40, CLASSES) for n in (1, 4, 16, 32)],
    }
    figure = Figure(figsize=(4 * len(grid), 3.5), layout='constrained')
    print('| images | boxes | classes | ms | MB |\n| --- | --- | --- | --- | --- |')
    for axis, column, (name, shapes) in zip(figure.subplots(1, len(grid)), (1, 2, 0), grid.items()):
        times = []
        for shape in shapes:
            inputs = make_inputs(*shape, device)
            task = partial(step, make_head('ours', shape[2], device), *inputs)
            times.append(1000 * measure({'ours': task}, repeats, device)['ours'])
            del inputs, task
            memory = peak_memory('ours', *shape, device)
            print('| ' + ' | '.join(map(str, shape)) + f' | {times[-1]:.0f} | {memory:.0f} |', flush=True)
        sizes = [shape[column] for shape in shapes]
        axis.plot(sizes, times, 'o-', label='measured')
        axis.plot((0, sizes[-1]), (0, times[-1]), ':', label='linear')
        axis.set(xlabel=name, ylabel='ms, forward and backward', xlim=0, ylim=0)
        axis.legend()
    figure.savefig(target, dpi=120)
    print(f'Drawn in {target}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--boxes', type=int, nargs='+', default=[10, 40, 150], help='an image; default: 10 40 150')
    parser.add_argument('--log-sizes', action='store_true', help='sides uniform in the logarithm, 8 to 300 pixels')
    parser.add_argument('--repeats', type=int, default=5, help='default: 5')
    parser.add_argument('--device', default='cpu', help='such as cuda; default: cpu')
    parser.add_argument('--sweep', type=Path, metavar='OUT.png', help='measure ours over sizes instead, and draw that')
    parser.add_argument('--step', metavar='CONFIG', help='measure a training step with this config instead')
    args = parser.parse_args()
    init_default_scope('mmdet')
    torch.set_num_threads(2)
    if args.step:
        measure_step(args.step, args.repeats, args.device)
        return
    print(
        f'torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; medians of {args.repeats} runs, '
        f'at {SIZE} pixels; unless told otherwise {IMAGES} images and {CLASSES} classes\n'
    )
    if args.sweep:
        sweep(args.sweep, args.repeats, args.device)
    else:
        compare(args.boxes, args.repeats, args.device, args.log_sizes)


if __name__ == '__main__':
    main()
