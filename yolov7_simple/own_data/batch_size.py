"""The batch that fits a GPU's memory, found by real steps at the largest size that training draws."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dist import all_reduce, get_world_size
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ..apis.inference import quiet
from ..runtime.errors import InputError
from ..utils.configs import type_name
from .box_sizes import BoxSizes
from .image_size import training_size
from .plan import MAX_RATE_GROWTH, MIN_STEPS_AN_EPOCH, ImageSize
from .schedule import num_processes

AUTO = 'auto'
BATCH_SIZE = 'train_dataloader.batch_size'
MEMORY_SHARE = 0.85  # of what is free; the rest is for fragments, the buckets of DDP and an evaluation
MIN_BOX_SIDE = 16.0


def largest_batch(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest batch that fits, to an eighth of it; 0 if none does.

    Args:
        fits: Whether a batch does; if it does, so do all smaller ones.
        start: The batch to try first.
        most: The largest of interest.
    """
    low, high = 0, most + 1  # fits, does not
    batch = min(start, most)
    while high - low > max(1, low // 8):
        if fits(batch):
            low = batch
        else:
            high = batch
        batch = min(2 * low, most) if low and high > most else (low + high) // 2
        if low == most:
            break
    return low


def within_memory(peak: Callable[[int], int], limit: float) -> Callable[[int], bool]:
    """Whether a batch stays below a limit in bytes and does not run out of memory.

    Args:
        peak: Trains with a batch, and returns the most bytes that it took.
        limit: In bytes.
    """

    def fits(batch: int) -> bool:
        try:
            return peak(batch) <= limit
        except torch.OutOfMemoryError:
            return False

    return fits


def most_images(cfg: Config, num_images: int) -> int:
    """The largest batch of each process with enough steps an epoch and a rate that is not too large."""
    own, processes = cfg.train_dataloader.batch_size, num_processes()
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size') or own * processes * counts
    by_rate = MAX_RATE_GROWTH * base / counts
    return max(own, int(min(num_images / MIN_STEPS_AN_EPOCH, by_rate) / processes))


def most_boxes(cfg: Config, boxes: BoxSizes) -> int:
    """Boxes of the fullest sample to reckon with: the fullest image among others of the mean, all of them in view."""
    per_image = boxes.per_image
    pipeline = cfg.train_dataloader.dataset.get('pipeline') or ()
    has_mixup = any(type_name(one) == 'MosaicAffineMixUp' and one.get('mixup_prob', 1.0) > 0 for one in pipeline)
    others = 4 if has_mixup else 3
    return int(per_image.max(initial=1) + others * per_image.mean()) if len(per_image) else 1


def largest_size(cfg: Config) -> ImageSize:
    """Width and height of the largest batch that training makes."""
    width, height = training_size(cfg) or (640, 640)
    for one in cfg.model.data_preprocessor.get('batch_augments') or ():
        if type_name(one) == 'BatchMultiScale':
            high = max(height, one['random_size_range'][1])
            width, height = width * high // height, high
    return width, height


def find_batch(cfg: Config, boxes: BoxSizes) -> tuple[int, bool]:
    """Find the batch of each process on the GPU at hand.

    Args:
        cfg: Of the training, with its classes and sizes.
        boxes: Of the training set.

    Returns:
        The batch, and whether it is the memory that allows no larger one. All ranks get the smallest of theirs.

    Raises:
        InputError: Not even one image fits.
    """
    most, size, count = most_images(cfg, len(boxes.images)), largest_size(cfg), most_boxes(cfg, boxes)
    free, _ = torch.cuda.mem_get_info()
    fits = within_memory(lambda batch: peak_memory(cfg, batch, size, count, 'cuda'), MEMORY_SHARE * free)
    with quiet():
        batch = largest_batch(fits, cfg.train_dataloader.batch_size, most)
    if get_world_size() > 1:
        smallest = torch.tensor(batch, device='cuda')
        all_reduce(smallest, 'min')
        batch = int(smallest)
    if not batch:
        raise InputError(
            f'{BATCH_SIZE}=auto: not even one image of {size[0]} x {size[1]} with {count} boxes fits the '
            f'{free / 2**30:.1f} GiB of memory that are free on this GPU: end what else runs on it, or take a smaller '
            'model or size'
        )
    return batch, batch < most


def peak_memory(cfg: Config, batch: int, size: ImageSize, num_boxes: int, device: str) -> int:
    """Train two steps of a batch of noise, of which the second has all of the optimiser's state.

    Args:
        cfg: Of the training.
        batch: Images.
        size: Their width and height.
        num_boxes: Boxes of each.
        device: Such as ``'cuda'``.

    Returns:
        The most bytes that were reserved; 0 on a CPU, which does not count them.

    Raises:
        torch.OutOfMemoryError: It does not fit.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    is_cuda = device == 'cuda'
    try:
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved() if is_cuda else 0
        train_noise(cfg, batch, size, num_boxes, device)
        return torch.cuda.max_memory_reserved() - before if is_cuda else 0
    finally:
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()


def train_noise(cfg: Config, batch: int, size: ImageSize, num_boxes: int, device: str) -> None:
    """Train two steps, with the L1 loss and the average of the weights, as the last stage has them."""
    preprocessor = {**cfg.model.data_preprocessor, 'batch_augments': None}
    model = MODELS.build({**cfg.model, 'data_preprocessor': preprocessor, 'init_cfg': None}).train().to(device)
    for module in model.modules():
        if hasattr(module, 'use_l1'):
            module.use_l1 = True
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    has_average = any(type_name(hook) == 'EMAHook' for hook in cfg.get('custom_hooks') or ())
    average = copy.deepcopy(model) if has_average else None
    width, height = size
    for _ in range(2):
        sides = MIN_BOX_SIDE + torch.rand(batch, num_boxes, 2) * (torch.tensor([width, height]) / 4 - MIN_BOX_SIDE)
        corners = torch.rand(batch, num_boxes, 2) * (torch.tensor([width, height]) - sides)
        samples = []
        for own in torch.cat([corners, corners + sides], 2):
            sample = DetDataSample(metainfo={'img_shape': (height, width)})
            labels = torch.randint(cfg.model.bbox_head.num_classes, (num_boxes,))
            sample.gt_instances = InstanceData(bboxes=own, labels=labels)
            sample.ignored_instances = InstanceData(bboxes=own[:0], labels=labels[:0])
            samples.append(sample)
        images = [torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in samples]
        model.train_step({'inputs': images, 'data_samples': samples}, wrapper)
    del average
