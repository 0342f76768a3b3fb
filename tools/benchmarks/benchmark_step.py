"""Time whole training steps of checkouts in turns, each in a process of its own.

    git worktree add ../before COMMIT
    python tools/benchmarks/benchmark_step.py ../before .

A step is preprocessing, network, assignment, loss, backward, optimiser and EMA, on images of noise at one size. Options
may follow a checkout: `.,optim_wrapper.optimizer.fused=True`. The ratios are to the first.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from timing import PAUSE

CONFIG = 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'


def serve(options: list[str], args: argparse.Namespace) -> None:
    """Train a step for each line of the standard input, with the package in the current folder, and answer seconds."""
    answers = os.dup(1)
    os.dup2(2, 1)  # logs
    import torch
    from mmengine.config import Config, DictAction
    from mmengine.logging import MessageHub
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope

    import yolov7_simple

    assert Path(yolov7_simple.__file__).is_relative_to(Path.cwd()), yolov7_simple.__file__
    from mmdet.registry import HOOKS, MODELS
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options]).cfg_options)
    cfg.model.data_preprocessor.batch_augments[0].random_size_range = (args.size, args.size)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = MODELS.build(cfg.model).train().to(args.device)
    runner = SimpleNamespace(model=model)
    for hook in cfg.default_hooks.values():
        if hook.type == 'MemoryFormatHook':
            HOOKS.build(hook).before_run(runner)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    ema = next(hook for hook in cfg.custom_hooks if hook.type == 'EMAHook')
    average = {key: value for key, value in ema.items() if key not in ('type', 'ema_type', 'priority')}
    average = MODELS.build({'type': ema.ema_type, 'model': model, **average})

    def make_batch() -> dict:
        images, samples = [], []
        for _ in range(args.images):
            sides = 8 + torch.rand(args.boxes, 2) * (args.size / 2 - 8)
            corners = torch.rand(args.boxes, 2) * (args.size - sides)
            sample = DetDataSample(metainfo={'img_shape': (args.size, args.size)})
            labels = torch.randint(model.bbox_head.num_classes, (args.boxes,))
            sample.gt_instances = InstanceData(bboxes=torch.cat([corners, corners + sides], 1), labels=labels)
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=labels[:0])
            images.append(torch.randint(256, (3, args.size, args.size), dtype=torch.uint8))
            samples.append(sample)
        return {'inputs': images, 'data_samples': samples}

    hub = MessageHub.get_current_instance()
    for i, _ in enumerate(sys.stdin):
        batch = make_batch()
        hub.update_info('iter', i)
        start = time.perf_counter()
        model.train_step(batch, wrapper)
        average.update_parameters(model)
        if torch.device(args.device).type == 'cuda':
            torch.cuda.synchronize()
        os.write(answers, f'{time.perf_counter() - start}\n'.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkouts', nargs='+', metavar='FOLDER[,OPTION=VALUE...]')
    parser.add_argument('--config', default=CONFIG, help=f'in each checkout; default: {CONFIG}')
    parser.add_argument('--images', type=int, default=8, help='of a batch; default: 8')
    parser.add_argument('--size', type=int, default=320, help='default: 320')
    parser.add_argument('--boxes', type=int, default=7, help='an image; default: 7')
    parser.add_argument('--rounds', type=int, default=10, help='default: 10')
    parser.add_argument('--threads', type=int, default=2, help='default: 2')
    parser.add_argument('--device', default='cpu', help='such as cuda; default: cpu')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.checkouts[0].split(',')[1:], args)
        return
    workers = []
    for checkout in args.checkouts:
        folder = Path(checkout.split(',')[0]).resolve()
        command = [sys.executable, '-W', 'ignore', __file__, '--serve', checkout]
        for name in ('config', 'images', 'size', 'boxes', 'threads', 'device'):
            command += [f'--{name}', str(getattr(args, name))]
        environment = {**os.environ, 'PYTHONPATH': str(folder)}
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL, 'text': True}
        workers.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    times: list[list[float]] = [[] for _ in workers]
    for i in range(args.rounds + 2):
        for worker, taken in zip(workers, times):
            time.sleep(PAUSE)
            print(file=worker.stdin, flush=True)
            answer = worker.stdout.readline()
            if not answer:
                sys.exit(f'{" ".join(worker.args)}: ended')
            if i >= 2:
                taken.append(float(answer))
    print(f'{args.config}: {args.images} x {args.size}, {args.boxes} boxes an image, {args.device}')
    for worker, checkout, taken in zip(workers, args.checkouts, times):
        worker.stdin.close()
        worker.wait()
        took = statistics.median(taken)
        print(f'{checkout}: {1000 * took:.0f} ms, {statistics.median(times[0]) / took:.2f} times as fast')


if __name__ == '__main__':
    main()
