"""Assignment and loss: mmdet's YOLOXHead and ours on the same tensors, in one run.

Prints medians, ratios and peak memory, and draws how our time grows with boxes, classes and images. Forward and
backward, from raw predictions, on the CPU, or on a GPU with ``--device cuda``. With ``--step CONFIG`` alone: what share
of a whole training step with that config and its data they take, and what it costs to look for numbers that are not
finite.
"""

import argparse
import gc
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import yolov7_simple  # noqa: F401
from yolov7_simple import YOLOv7SimpleHead
from yolov7_simple.apis.inference import quiet
from yolov7_simple.engine.hooks import NonFiniteLossHook

STRIDES = (8, 16, 32)


def make_inputs(images: int, boxes: int, classes: int, size: int, device: str) -> tuple[list, list]:
    """Raw predictions of three levels, as early in training, and boxes with sides of 8 pixels to half the image."""
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
        sizes = 8 + torch.rand(boxes, 2, generator=generator) * (size / 2 - 8)
        corners = torch.rand(boxes, 2, generator=generator) * (size - sizes)
        labels = torch.randint(classes, (boxes,), generator=generator)
        truth.append(InstanceData(bboxes=torch.cat([corners, corners + sizes], 1).to(device), labels=labels.to(device)))
    return predictions, truth


def make_head(name: str, classes: int, device: str) -> torch.nn.Module:
    """Heads of no width: only their loss is measured."""
    if name == 'ours':
        return YOLOv7SimpleHead(classes, in_channels=8).to(device)
    assigner = {'assigner': {'type': 'SimOTAAssigner', 'center_radius': 2.5}}
    head = {'type': 'YOLOXHead', 'num_classes': classes, 'in_channels': 8, 'feat_channels': 8, 'train_cfg': assigner}
    return MODELS.build(head).to(device)


def measure_step(config: str, repeats: int, device: str) -> None:
    """Print how much of a training step, first batch of the config's data, both losses and the finite check take."""
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
    outputs = [[level.detach().requires_grad_() for level in levels] for levels in model(data['inputs'], mode='tensor')]
    theirs = make_head('mmdet', model.bbox_head.num_classes, device)
    check, loss = NonFiniteLossHook(), {'loss': torch.ones((), device=device)}
    weights = dict.fromkeys(('state_dict', 'ema_state_dict'), model.state_dict())
    hub.update_scalar('train/grad_norm', 1.0)
    runner = SimpleNamespace(iter=0, message_hub=hub, optim_wrapper=None)

    def whole_step() -> None:
        model.zero_grad()
        sum(model(**data, mode='loss').values()).backward()

    tasks = {
        'step': whole_step,
        'ours': lambda: step(model.bbox_head, outputs, truth),
        'mmdet': lambda: step(theirs, outputs, truth),
        'check': lambda: check.after_train_iter(runner, 0, outputs=loss),
        'check weights': lambda: check.before_save_checkpoint(runner, weights),
    }
    took = measure(tasks, dict.fromkeys(tasks, repeats))
    rest = took['step'] - took['ours']
    boxes = sum(map(len, truth)) / len(truth)
    print(f'{config}: batch of {len(truth)}, {boxes:.1f} boxes an image; forward and backward {took["step"]:.0f} ms')
    for name in ('mmdet', 'ours'):
        print(
            f'  assignment and loss, {name}: {took[name]:.0f} ms, {took[name] / (rest + took[name]):.1%} of such a step'
        )
    print(
        f'  numbers that are not finite: {took["check"]:.3f} ms, {took["check"] / took["step"]:.3%} of it; '
        f'{took["check weights"]:.0f} ms a checkpoint'
    )


def step(head: torch.nn.Module, predictions: list, truth: list) -> None:
    """One forward and backward through assignment and loss."""
    for level in itertools.chain(*predictions):
        level.grad = None
    sum(head.loss_by_feat(*predictions, truth, [{}] * len(truth)).values()).backward()
    if predictions[0][0].is_cuda:
        torch.cuda.synchronize()


def measure(tasks: dict[str, Callable[[], None]], repeats: dict[str, int]) -> dict[str, float]:
    """Median milliseconds of each task, taken in turns, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(max(repeats.values()) + 1):
        for name, task in tasks.items():
            if round_ <= repeats[name]:
                start = time.perf_counter()
                task()
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_memory(name: str, images: int, boxes: int, classes: int, size: int, device: str) -> float:
    """Most megabytes held at once beyond the inputs, in a process of its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_peak_memory, (name, images, boxes, classes, size, device))


def _peak_memory(name: str, images: int, boxes: int, classes: int, size: int, device: str) -> float:
    init_default_scope('mmdet')
    head = make_head(name, classes, device)
    step(head, *make_inputs(1, 2, classes, 64, device))  # load what loads lazily
    inputs = make_inputs(images, boxes, classes, size, device)
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


def draw(sweeps: dict[str, list[tuple[int, float]]], target: Path) -> None:
    """Time over boxes, classes and images, beside the straight line through the largest."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.5))
    for axis, (name, points) in zip(axes, sweeps.items()):
        sizes, times = zip(*points)
        axis.plot(sizes, times, 'o-', label='measured')
        axis.plot((0, sizes[-1]), (0, times[-1]), ':', label='linear')
        axis.set(xlabel=name, ylabel='ms, forward and backward', xlim=0, ylim=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--size', type=int, default=640)
    parser.add_argument('--classes', type=int, default=80)
    parser.add_argument('--boxes', type=int, nargs='+', default=[10, 40, 150])
    parser.add_argument('--repeats', type=int, default=9, help='counted runs of ours; mmdet gets a third of them')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--no-sweep', action='store_true', help='leave out the sweep and its drawing')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_loss.png'), help='drawing of the sweep')
    parser.add_argument('--step', metavar='CONFIG', help='measure a training step with this config instead')
    args = parser.parse_args()
    init_default_scope('mmdet')
    torch.set_num_threads(args.threads)
    if args.step:
        measure_step(args.step, args.repeats, args.device)
        return
    repeats = {'mmdet': max(3, args.repeats // 3), 'ours': args.repeats}
    print(
        f'torch {torch.__version__}, {args.device}, {args.threads} threads; batch {args.images} at {args.size}, '
        f'{args.classes} classes; medians of {repeats["ours"]} (ours) and {repeats["mmdet"]} (mmdet) runs in turns'
    )

    print('| boxes | mmdet ms | ours ms | times faster | mmdet MB | ours MB | share of memory |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for boxes in args.boxes:
        shape = (args.images, boxes, args.classes, args.size, args.device)
        inputs = make_inputs(*shape)
        times = measure(
            {name: partial(step, make_head(name, args.classes, args.device), *inputs) for name in repeats}, repeats
        )
        del inputs
        memory = {name: peak_memory(name, *shape) for name in repeats}
        print(
            f'| {boxes} | {times["mmdet"]:.0f} | {times["ours"]:.0f} | {times["mmdet"] / times["ours"]:.1f} '
            f'| {memory["mmdet"]:.0f} | {memory["ours"]:.0f} | {memory["ours"] / memory["mmdet"]:.2f} |',
            flush=True,
        )
    if args.no_sweep:
        return

    print('\nOurs alone: | images | boxes | classes | ms | MB |')
    sweeps: dict[str, list[tuple[int, float]]] = {'boxes an image': [], 'classes': [], 'images': []}
    grid = [('boxes an image', (args.images, n, args.classes), n) for n in (10, 40, 150, 300, 600)]
    grid += [('classes', (args.images, 40, n), n) for n in (1, 20, 80, 365, 1203)]
    grid += [('images', (n, 40, args.classes), n) for n in (1, 4, 16, 32)]
    for name, (images, boxes, classes), value in grid:
        inputs = make_inputs(images, boxes, classes, args.size, args.device)
        task = partial(step, make_head('ours', classes, args.device), *inputs)
        took = measure({'ours': task}, {'ours': max(3, args.repeats // 3)})['ours']
        del inputs, task
        memory = peak_memory('ours', images, boxes, classes, args.size, args.device)
        print(f'| {images} | {boxes} | {classes} | {took:.0f} | {memory:.0f} |', flush=True)
        sweeps[name].append((value, took))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(sweeps, args.out)
    print(f'Drawn in {args.out}')


if __name__ == '__main__':
    main()
