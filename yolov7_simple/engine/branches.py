"""What wrappers and branches hold: datasets, their transforms, the model, the samples of a batch."""

from __future__ import annotations

from collections.abc import Iterator

from mmdet.datasets.samplers import MultiSourceSampler
from mmdet.structures import DetDataSample
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Dataset

from ..utils.options import OptionError


def unwrapped_model(runner: Runner) -> nn.Module:
    """The model of a run itself, without DDP around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def walk_datasets(dataset: Dataset) -> Iterator[Dataset]:
    """Yield a dataset and all datasets that it wraps."""
    yield dataset
    # mmengine's num_batch_per_epoch keeps the dataset that it wraps as _dataset.
    inner = [getattr(dataset, name, None) for name in ('dataset', '_dataset')]
    for inner_dataset in (*inner, *getattr(dataset, 'datasets', ())):
        if inner_dataset is not None:
            yield from walk_datasets(inner_dataset)


def walk_transforms(dataset: Dataset) -> Iterator[tuple[Dataset, object]]:
    """Yield all transforms of a dataset and of those that it wraps, with the dataset that each is of."""
    for inner in walk_datasets(dataset):
        pipeline = getattr(inner, 'pipeline', ())
        for transform in getattr(pipeline, 'transforms', pipeline):
            yield inner, transform


def walk_samples(data_samples: dict | list | DetDataSample | None) -> Iterator[DetDataSample]:
    """Yield the samples of a batch, which may have branches (MultiBranch), and none of an image in some of them."""
    if isinstance(data_samples, DetDataSample):
        yield data_samples
    elif data_samples is not None:
        for inner in data_samples.values() if isinstance(data_samples, dict) else data_samples:
            yield from walk_samples(inner)


def check_multi_source(runner: Runner) -> None:
    """Check mmdet's MultiSourceSampler, which has no end, and shares out batches of a size of its own.

    Raises:
        OptionError: Training would never end, or batches would lack a branch.
    """
    loader = runner.train_dataloader
    sampler = loader.sampler
    if not isinstance(sampler, MultiSourceSampler):
        return
    name = type(sampler).__name__
    if not isinstance(runner.train_loop, IterBasedTrainLoop):
        raise OptionError(f'{name} has no end, so an epoch would never end: use IterBasedTrainLoop and max_iters')
    if sampler.batch_size != loader.batch_size:
        raise OptionError(
            f'train_dataloader.batch_size is {loader.batch_size}, and sampler.batch_size in it {sampler.batch_size}: '
            f'set both alike, as {name} shares out its own batches'
        )
    if 0 in sampler.num_per_source:
        raise OptionError(
            f'{name}: of a batch of {sampler.batch_size}, source_ratio={sampler.source_ratio} takes '
            f'{sampler.num_per_source} images: each dataset must have one, so set a larger batch or another ratio'
        )
