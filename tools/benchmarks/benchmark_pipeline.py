"""Time the data paths: mmdet's YOLOX pipeline, its cached one, ours and ours with its cache, in one run on one core.

    python tools/benchmarks/benchmark_pipeline.py [--data DIR] [--samples 300]
    python tools/benchmarks/benchmark_pipeline.py --memory 20000
    python tools/benchmarks/benchmark_pipeline.py --photographs 300
    python tools/benchmarks/benchmark_pipeline.py --workers 1 2 4 8 --plot workers.png
    python tools/benchmarks/benchmark_pipeline.py --transfer 60

The first prints the milliseconds of a training and of a validation sample. The pipelines take turns, so that other
load on the machine slows all of them alike: quote the ratios. The second prints the memory of a process while it makes
samples, and that of eight workers together with and without the cache. The third does as the first for our path, on
images of --data that are enlarged to 12 megapixels. The fourth counts samples a second through a loader, and draws
them. The last prints what a batch costs the process that trains: to receive it from eight workers, and to preprocess
it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from yolov7_simple import config_path  # before mmdet: it stands in for missing mmcv ops

# isort: split

import cv2
import mmdet
import torch
from matplotlib.figure import Figure
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate, worker_init_fn
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from yolov7_simple.datasets.packing import packed_collate

SIZE = (640, 640)
NUM_NEEDED = 1000  # samples a second: about what eight GPUs that train Tiny ask for
PHOTOGRAPH = (4000, 3000)
SECONDS = 15.0  # that samples are counted for


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='data/coco', type=Path, help='COCO in its layout; default: data/coco')
    parser.add_argument('--samples', default=300, type=int, help='of each pipeline; default: 300')
    parser.add_argument('--memory', metavar='SAMPLES', type=int, help='watch the memory over so many samples instead')
    parser.add_argument('--photographs', metavar='N', type=int, help='time samples of so many large images instead')
    parser.add_argument('--workers', metavar='N', nargs='+', type=int, help='count samples a second instead')
    parser.add_argument('--transfer', metavar='BATCHES', type=int, help='time what the trainer does instead')
    parser.add_argument('--plot', type=Path, help='PNG file for --workers')
    args = parser.parse_args()
    for name in ('annotations/instances_train2017.json', 'annotations/instances_val2017.json'):
        if not (args.data / name).is_file():
            sys.exit(f'No {args.data / name}: give the folder of COCO, or of a part of it in its layout, as --data')
    return args


def our_config() -> Config:
    """Read the config of Tiny."""
    return Config.fromfile(config_path('yolov7_tiny_8xb16-300e_coco.py'))


def mmdet_config() -> Config:
    """Read mmdet's stock YOLOX config."""
    package = Path(mmdet.__file__).parent
    for folder in (package / '.mim/configs', package.parent / 'configs'):
        path = folder / 'yolox/yolox_s_8xb8-300e_coco.py'
        if path.is_file():
            return Config.fromfile(path)
    sys.exit(f'This mmdet ({package}) has no configs: install mmdet 3.x from its wheel, or from a checkout')


def build(dataset: dict, data: Path, split: str) -> Dataset:
    """Build a dataset of a config on the data."""
    inner = dataset.get('dataset', dataset)
    inner.update(
        data_root=f'{data}/', ann_file=f'annotations/instances_{split}.json', data_prefix=dict(img=f'{split}/')
    )
    return DATASETS.build(dataset)


def cached_by_mmdet(dataset: dict) -> dict:
    """Put mmdet's cached transforms in place of the others."""
    names = {'Mosaic': 'CachedMosaic', 'MixUp': 'CachedMixUp'}
    pipeline = [
        dict(step, type=names[step['type']], max_cached_images=40 if step['type'] == 'Mosaic' else 20)
        if step['type'] in names
        else step
        for step in dataset['pipeline']
    ]
    inner = dataset['dataset']
    inner['pipeline'] = [*inner['pipeline'], *pipeline]
    return inner


def training_sets(args: argparse.Namespace) -> dict[str, Dataset]:
    """Build the five training sets."""

    def ours(cache_images: str | None) -> dict:
        return dict(our_config().train_dataloader.dataset, cache_images=cache_images)

    configs = {
        "mmdet's YOLOX pipeline": mmdet_config().train_dataloader.dataset,
        'mmdet, cached transforms': cached_by_mmdet(mmdet_config().train_dataloader.dataset),
        'ours': ours(None),
        "ours, cache_images='ram'": ours('ram'),
        "ours, cache_images='disk'": ours('disk'),
    }
    return {name: build(config, args.data, 'train2017') for name, config in configs.items()}


def time_interleaved(datasets: dict[str, Dataset], num_samples: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of each sample, after some to warm up and to fill the caches.

    Processor time leaves out other work on the machine. The pipelines take turns of 20 samples: in turns of one, each
    would find the processor's caches full of another pipeline's data, which no worker does.
    """
    times: dict[str, list[float]] = {name: [] for name in datasets}
    turn, num_warm_up = 20, 60
    for first in range(0, num_warm_up + num_samples, turn):
        for name, dataset in datasets.items():
            for i in range(first, first + turn):
                start = time.process_time()
                dataset[i % len(dataset)]
                times[name].append((time.process_time() - start) * 1e3)
    return {name: values[num_warm_up:] for name, values in times.items()}


def print_times(title: str, times: dict[str, list[float]]) -> None:
    """Print medians, and how many times as fast as the first pipeline each one is."""
    print(
        f'\n{title}\n\n| pipeline | ms a sample (median) | 10% to 90% | times as fast |\n| --- | ---: | ---: | ---: |'
    )
    base = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        tenths = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        print(f'| {name} | {median:.1f} | {tenths[0]:.1f} to {tenths[-1]:.1f} | {base / median:.2f} |')


def compare(args: argparse.Namespace) -> None:
    """Time training and validation samples on one core."""
    times = time_interleaved(training_sets(args), args.samples)
    print_times(f'Training samples at {SIZE[0]}, one core, medians over {args.samples}', times)

    ours = our_config().val_dataloader.dataset
    configs = {"mmdet's validation pipeline": mmdet_config().val_dataloader.dataset, 'ours': ours}
    datasets = {name: build(config, args.data, 'val2017') for name, config in configs.items()}
    times = time_interleaved(datasets, args.samples)
    print_times(f'Validation samples at {SIZE[0]}, one core, medians over {args.samples}', times)


def watch_memory(args: argparse.Namespace) -> None:
    """Print the memory of a process that makes samples as a worker does, without and with the cache."""
    for name, dataset in list(training_sets(args).items())[2:4]:
        print(f'\n{name}: resident MiB after so many samples')
        history = []
        for i in range(1, args.memory + 1):
            dataset[i % len(dataset)]
            if i % max(1, args.memory // 20) == 0:
                pages = int(Path('/proc/self/statm').read_text().split()[1])
                history.append(pages * resource.getpagesize() / 2**20)
                print(f'{i:8d} {history[-1]:8.1f}', flush=True)
        growth = statistics.mean(history[-5:]) - statistics.mean(history[2:7])
        print(f'from samples {3 * args.memory // 20} on it grew by {growth:+.1f} MiB')


def watch_workers(args: argparse.Namespace, num_workers: int = 8) -> None:
    """Print the memory of a loader's processes together, a page that several share counted once."""
    for name, dataset in list(training_sets(args).items())[2:4]:
        options = {'num_workers': num_workers, 'persistent_workers': True, 'collate_fn': pseudo_collate}
        loader = DataLoader(dataset, 8, sampler=Endless(dataset), **options)
        batches = iter(loader)
        for _ in range(max(4 * num_workers, len(dataset) // 4)):
            next(batches)
        processes = [os.getpid(), *(worker.pid for worker in batches._workers)]
        total = sum(proportional_memory(process) for process in processes)
        cache = dataset.pipeline[0]._image_cache
        size = cache.plan.num_bytes(cache.num_images) if cache else 0
        print(f'{name}: {num_workers} workers and trainer {total:.0f} MiB together; cache {size / 2**20:.0f} MiB')


def proportional_memory(process: int) -> float:
    """MiB of a process, its share of pages that others have too."""
    lines = Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('Pss:')) / 1024


def compare_photographs(args: argparse.Namespace) -> None:
    """Time training samples of large images, made from those of --data."""
    content = json.loads((args.data / 'annotations/instances_train2017.json').read_text())
    sources, images = content['images'], []
    with TemporaryDirectory() as folder:
        data = Path(folder)
        for name in ('train2017', 'annotations'):
            (data / name).mkdir()
        for i in tqdm(range(args.photographs), 'Photographs', disable=None):
            pixels = cv2.imread(str(args.data / 'train2017' / sources[i % len(sources)]['file_name']))
            cv2.imwrite(f'{data}/train2017/{i}.jpg', cv2.resize(pixels, PHOTOGRAPH, interpolation=cv2.INTER_CUBIC))
            images.append(dict(id=i, file_name=f'{i}.jpg', width=PHOTOGRAPH[0], height=PHOTOGRAPH[1]))
        box = dict(bbox=[500, 500, 900, 900], area=810_000, iscrowd=0, category_id=content['categories'][0]['id'])
        content.update(images=images, annotations=[dict(box, id=i, image_id=i) for i in range(len(images))])
        (data / 'annotations/instances_train2017.json').write_text(json.dumps(content))
        args.data = data
        sets = dict(list(training_sets(args).items())[2:])
        for dataset in list(sets.values())[1:]:
            for info in tqdm(range(len(dataset)), 'Warm-up', disable=None):
                dataset[info]
        times = time_interleaved(sets, args.samples)
        print_times(f'Training samples at {SIZE[0]} of {len(images)} photographs of 12 megapixels, one core', times)


class Endless(Sampler):
    """Indexes of a dataset in random order, over and over."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self.dataset)).tolist()


def time_transfer(args: argparse.Namespace) -> None:
    """Print the processor time of the main process for each batch of the recipe, by the way that it is sent."""
    cfg = our_config()
    dataset = build(cfg.train_dataloader.dataset, args.data, 'train2017')
    cfg.model.data_preprocessor.pop('batch_augments')  # sizes that change would hide the rest
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    rows = {'pseudo_collate': pseudo_collate, 'packed_collate': packed_collate}
    options = {'num_workers': 8, 'worker_init_fn': lambda worker: cv2.setNumThreads(0)}
    loaders = {
        name: iter(DataLoader(dataset, 16, sampler=Endless(dataset), collate_fn=collate, **options))
        for name, collate in rows.items()
    }
    times: dict[str, list[list[float]]] = {name: [] for name in rows}
    num_warm_up = 20
    for _ in range(num_warm_up + args.transfer):
        for name, batches in loaders.items():
            start = time.process_time()
            batch = next(batches)
            received = time.process_time()
            preprocessor(batch, True)
            times[name].append([1e3 * (received - start), 1e3 * (time.process_time() - received)])
    print(
        f'\nThe main process, 16 images of {SIZE[0]} from 8 workers, medians over {args.transfer} batches\n\n'
        '| sent by | ms to receive | ms to preprocess | in all |\n| --- | ---: | ---: | ---: |'
    )
    for name, values in times.items():
        receive, preprocess = map(statistics.median, zip(*values[num_warm_up:]))
        print(f'| {name} | {receive:.2f} | {preprocess:.2f} | {receive + preprocess:.2f} |')


def count_samples(dataset: Dataset, num_workers: int) -> float:
    """Samples a second through a loader, once each worker has filled its queue."""

    def start(worker: int) -> None:
        cv2.setNumThreads(0)
        worker_init_fn(worker, num_workers, 0, 0)

    batch_size = 8
    options = {'num_workers': num_workers, 'collate_fn': pseudo_collate, 'worker_init_fn': start}
    loader = DataLoader(dataset, batch_size, sampler=Endless(dataset), **options)
    batches = iter(loader)
    for _ in range(4 * num_workers):
        next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - begin)


def count_over_workers(args: argparse.Namespace) -> None:
    """Count samples a second over workers, print them, and draw them."""
    datasets = training_sets(args)
    rates: dict[str, list[float]] = {name: [] for name in datasets}
    print(f'\nSamples a second, {os.cpu_count()} cores\n\n| workers | ' + ' | '.join(datasets) + ' |')
    print('| ---: ' * (1 + len(datasets)) + '|')
    for num_workers in args.workers:
        for name, dataset in datasets.items():
            rates[name].append(count_samples(dataset, num_workers))
        print(f'| {num_workers} | ' + ' | '.join(f'{values[-1]:.0f}' for values in rates.values()) + ' |', flush=True)
    for name, values in rates.items():
        best = max(rate / workers for rate, workers in zip(values, args.workers))
        print(f'{name}: {best:.0f} a second for each worker at best; {NUM_NEEDED} need {NUM_NEEDED / best:.0f} workers')
    if args.plot:
        plot(args.workers, rates, args.plot)


def plot(workers: list[int], rates: dict[str, list[float]], path: Path) -> None:
    """Draw samples a second over workers."""
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for name, values in rates.items():
        axes.plot(workers, values, 'o-', label=f'{name}: {values[-1]:.0f}')
    axes.set(xlabel='workers', ylabel=f'training samples a second at {SIZE[0]}', xticks=workers, ylim=(0, None))
    figure.legend(loc='outside upper center', ncols=2)
    figure.savefig(path, dpi=150)
    print(f'Plot in {path}')


def main() -> None:
    args = parse_args()
    init_default_scope('mmdet')
    MMLogger.get_instance('mmengine', log_level='WARNING')
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if args.memory:
        watch_memory(args)
        watch_workers(args)
    elif args.photographs:
        compare_photographs(args)
    elif args.workers:
        count_over_workers(args)
    elif args.transfer:
        time_transfer(args)
    else:
        compare(args)


if __name__ == '__main__':
    main()
