"""Multi-scale training: each batch at another size."""

from __future__ import annotations

import random

import torch
from mmdet.models.data_preprocessors import BatchSyncRandomResize
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.dist import sync_random_seed
from mmengine.logging import MessageHub
from torch import Tensor

from ..utils.options import AtLeast0, Count, OptionError, checked_options


@MODELS.register_module()
@checked_options
class BatchMultiScale(BatchSyncRandomResize):
    """Resize each training batch to a random square, the same on all ranks, and drop boxes that become too small.

    The size follows from the number of the step and a seed that the ranks agree on once, so they need not talk at every
    step. It is logged as ``img_size``. Batches that are not square keep their aspect ratio.

    Args:
        random_size_range: Smallest and largest side in pixels.
        interval: Steps between two sizes.
        size_divisor: Sides are multiples of this.
        min_bbox_size: Shortest side in pixels; boxes that become smaller are dropped, ignored ones too.

    Raises:
        ValueError: A range that does not rise or has no multiple of the divisor, or an interval below 1; in training,
            samples whose boxes are found again by a ``homography_matrix``, as a teacher's.
    """

    def __init__(
        self,
        random_size_range: tuple[int, int],
        interval: Count = 1,
        size_divisor: Count = 32,
        min_bbox_size: AtLeast0 = 8.0,
    ) -> None:
        low, high = random_size_range
        if not 0 < low <= high or low % size_divisor or high % size_divisor:
            raise OptionError(
                f'BatchMultiScale: random_size_range must rise, in multiples of {size_divisor}, got {(low, high)}'
            )
        super().__init__(random_size_range, interval, size_divisor)
        self.min_bbox_size = min_bbox_size
        self._seed: int | None = None

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample]) -> tuple[Tensor, list[DetDataSample]]:
        """Resize images (B, 3, H, W) and boxes."""
        if any('homography_matrix' in data_sample.metainfo for data_sample in data_samples):
            raise OptionError(
                "BatchMultiScale: a teacher's boxes are taken to the student's image by homography_matrix, which knows "
                'nothing of this resize: leave it out of batch_augments, and use RandomResize in the pipelines'
            )
        step = MessageHub.get_current_instance().get_info('iter')
        if self._input_size is None and step >= self._interval:  # resumed: the size was drawn in an earlier step
            height, width = inputs.shape[-2:]
            self._input_size = self._size_after(step - step % self._interval - 1, width / height)
        inputs, data_samples = super().forward(inputs, data_samples)
        for data_sample in data_samples:
            for key in ('gt_instances', 'ignored_instances'):
                if key in data_sample:
                    boxes = data_sample.get(key).bboxes
                    keep = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= self.min_bbox_size
                    data_sample.set_field(data_sample.get(key)[keep], key)
        MessageHub.get_current_instance().update_scalar('train/img_size', max(inputs.shape[-2:]))
        return inputs, data_samples

    def _get_random_size(self, aspect_ratio: float, device: torch.device) -> tuple[int, int]:
        """Draw height and width of the next steps, given width / height of the batch."""
        return self._size_after(MessageHub.get_current_instance().get_info('iter'), aspect_ratio)

    def _size_after(self, step: int, aspect_ratio: float) -> tuple[int, int]:
        """The size that is drawn in a step, for the steps after it."""
        if self._seed is None:
            self._seed = sync_random_seed()
        height = random.Random(f'{self._seed} {step}').randint(*self._random_size_range)
        return self._size_divisor * height, self._size_divisor * max(1, round(aspect_ratio * height))
