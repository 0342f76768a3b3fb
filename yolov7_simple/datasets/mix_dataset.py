"""A dataset of mixed samples that is reproducible, and survives damaged files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmdet.datasets import MultiImageMixDataset
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch.utils.data import Sampler

from ..runtime.errors import DamagedImageError
from ..utils.configs import type_name
from ..utils.options import AtLeast0, Count, Share, checked_options
from .image_cache import Storage, keep_images


class RepeatedIndex(int):
    """An index that a sampler gives several times an epoch, and how often it gave it before."""

    repeat = 0

    @classmethod
    def number(cls, index: int, repeat: int) -> RepeatedIndex:
        """Mark an index."""
        marked = cls(index)
        marked.repeat = repeat
        return marked


class NumberedSampler:
    """A sampler that may give an index several times an epoch, such as mmdet's ClassAwareSampler, and numbers them.

    Args:
        sampler: Whose indexes to number; all else is as of it.
        rank, world_size: Of this process: numbers of different ranks differ.
    """

    def __init__(self, sampler: Sampler, rank: int, world_size: int) -> None:
        self._sampler = sampler
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[RepeatedIndex]:
        counts: Counter[int] = Counter()
        for index in self._sampler:
            yield RepeatedIndex.number(index, counts[index] * self._world_size + self._rank)
            counts[index] += 1

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sampler, name)


@DATASETS.register_module()
@checked_options
class SeededMixDataset(MultiImageMixDataset):
    """mmdet's MultiImageMixDataset, without its deep copies, that is reproducible and survives damaged files.

    :class:`MixDatasetHook` sets the seed and the epoch. Each sample then seeds numpy's and Python's random numbers from
    seed, epoch and index, so samples are the same for any number of workers, and a resumed run gets those that it would
    have had. Without the hook the random state of the worker is used.

    Wrappers that repeat indexes, such as RepeatDataset, belong inside: an index gives one sample an epoch. Only a
    :class:`RepeatedIndex` gives another one for each number. An image that cannot be read is named once in the log, and
    another one takes its place.

    Args:
        dataset: Dataset of single images, or its config.
        pipeline: Transforms; one with ``get_indexes`` gets the images with these indexes as ``mix_results``.
        skip_type_keys: Types of transforms to skip.
        max_refetch: Attempts at a sample before an error is raised.
        max_damaged: Share of the images that may be damaged.
        cache_images: Where decoded images are kept for all workers, ranks and epochs: ``'ram'``, ``'disk'`` (which the
            system keeps in memory while it is free), or None. Samples are the same. Where not all fit, images
            that are larger than training asks for are kept shrunk to that, which changes their pixels slightly.
        cache_gb: Size of the cache in GiB. What does not fit is decoded for each sample. None: half of the memory, or
            90 % of the disk, that is free.
        cache_folder: For ``'disk'``; None: the folder for temporary files.
        lazy_init: As in mmdet.

    Raises:
        OptionError: The cache cannot be had.
        RuntimeError: Too many images turn out to be damaged, while sampling.
    """

    def __init__(
        self,
        dataset: BaseDataset | dict,
        pipeline: list[dict],
        skip_type_keys: list[str] | None = None,
        max_refetch: Count = 15,
        max_damaged: Share = 0.01,
        cache_images: Storage | None = None,
        cache_gb: AtLeast0 | None = None,
        cache_folder: str | None = None,
        lazy_init: bool = False,
    ) -> None:
        super().__init__(dataset, pipeline, skip_type_keys, max_refetch, lazy_init)
        self.max_damaged = max_damaged
        # In shared memory, so that persistent workers see changes. A seed of -1 means that none was set.
        self._seed_and_epoch = torch.full((2,), -1, dtype=torch.int64).share_memory_()
        self.damaged = torch.zeros(len(self), dtype=torch.int32).share_memory_()  # 1 where damaged
        if cache_images:
            keep_images(self, cache_images, cache_gb, cache_folder)

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Seed the samples from now on, in all worker processes."""
        self._seed_and_epoch.copy_(torch.tensor([seed, epoch]))

    def __getitem__(self, index: int) -> dict:
        """Make a sample around the image with this index."""
        repeat = getattr(index, 'repeat', 0)
        with self._seeded(index):
            for _ in range(self.max_refetch):
                sources: dict[str, int] = {}
                try:
                    sample = self._make_sample(index, sources)
                except DamagedImageError as error:
                    self._note_damaged(sources[error.path], error)
                    if sources[error.path] == index:
                        index = np.random.randint(len(self))
                    continue
                if sample is not None:
                    if isinstance(sample.get('data_samples'), BaseDataElement):
                        if repeat:
                            sample['data_samples'].set_metainfo({'repeat': repeat})
                        if hasattr(self.dataset, 'view_size'):  # several samples are of one picture
                            sample['data_samples'].set_metainfo({'sample_index': int(index)})
                    return sample
        raise RuntimeError(
            f'No sample in {self.max_refetch} attempts: its images were damaged, or a transform returned None. '
            f'Look at the warnings above, and at data_root, data_prefix and the pipeline'
        )

    def get_cat_ids(self, index: int) -> list[int]:
        """Labels of the boxes of an image, one for each, as mmdet's ClassAwareSampler asks for them."""
        return [instance['bbox_label'] for instance in self.get_data_info(index)['instances']]

    def sources(self, index: int) -> list[str]:
        """Paths of the images that the sample around this index is made of, in this epoch."""
        sources: dict[str, int] = {}
        with self._seeded(index):
            self._make_sample(index, sources)
        return list(sources)

    def _make_sample(self, index: int, sources: dict[str, int]) -> dict | None:
        """Run the pipeline once, noting the path and index of each image."""

        def fetch(index: int) -> dict:
            results = self.dataset[index]  # the dataset's own copy, so it may be changed
            sources.setdefault(results['img_path'], index)  # of two windows of a picture the first
            return results

        results = fetch(index)
        for transform, transform_type in zip(self.pipeline, self.pipeline_types):
            if type_name({'type': transform_type}) in (self._skip_type_keys or ()):
                continue
            if hasattr(transform, 'get_indexes'):
                indexes = transform.get_indexes(self.dataset)
                results['mix_results'] = [fetch(i) for i in (indexes if isinstance(indexes, list) else [indexes])]
            results = transform(results)
            if results is None:
                return None
            results.pop('mix_results', None)
        return results

    @contextmanager
    def _seeded(self, index: int) -> Iterator[None]:
        """Seed the random numbers of a sample, and restore the state of the process afterwards."""
        seed, epoch = self._seed_and_epoch.tolist()
        if seed < 0:
            yield
            return
        states = np.random.get_state(), random.getstate()
        repeat = getattr(index, 'repeat', 0)
        words = np.random.SeedSequence([seed, epoch, index, *[repeat] * bool(repeat)]).generate_state(4)
        np.random.seed(words)
        random.seed(words.tobytes())
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])

    def _note_damaged(self, index: int, error: DamagedImageError) -> None:
        """Log an image the first time it is found, and stop when there are too many.

        Raises:
            RuntimeError: More than the allowed share is damaged.
        """
        if not self.damaged[index]:
            self.damaged[index] = 1
            print_log(f'{error}; other samples take its place', 'current', level=30)
        count = int(self.damaged.sum())
        if count > self.max_damaged * len(self):
            raise RuntimeError(
                f'{count} of {len(self)} images cannot be read, which is more than {self.max_damaged:.0%}: repair the '
                f'data, or allow more with max_damaged. The last one: {error}'
            ) from error
