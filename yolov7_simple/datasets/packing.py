"""Batches on their way from a worker to the trainer: few large parts instead of hundreds of small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

GROUPS = ('gt_instances', 'ignored_instances')


@FUNCTIONS.register_module()
def packed_collate(data_batch: Sequence) -> Any:
    """Collate as mmengine's pseudo_collate, into what takes little time to receive from a worker.

    Images of one size are stacked, and samples of boxes and labels travel as a few arrays. The trainer gets a list of
    the same samples. All else, such as branches, masks or images of several sizes, is as of pseudo_collate.

    Args:
        data_batch: Samples of a dataset.

    Returns:
        With ``inputs`` (B, 3, H, W) instead of a list of B images (3, H, W), where they are alike.
    """
    batch = pseudo_collate(data_batch)
    if not isinstance(batch, dict):
        return batch
    images, samples = batch.get('inputs'), batch.get('data_samples')
    if type(images) is list and len({describe_tensor(image) for image in images}) == 1 and type(images[0]) is Tensor:
        batch['inputs'] = default_collate(images)  # which a worker writes into shared memory at once
    if type(samples) is list:
        batch['data_samples'] = SentSamples(samples)
    return batch


def describe_tensor(value: Any) -> tuple:
    """What tensors that are stacked must have in common."""
    return type(value), getattr(value, 'shape', None), getattr(value, 'dtype', None), getattr(value, 'device', None)


class SentSamples(list):
    """A list of samples, which another process gets as a plain list.

    A tensor that is sent takes a file and a connection of its own, so boxes and labels are sent as two arrays. Samples
    that hold anything else are sent as they are.
    """

    def __reduce__(self) -> tuple[Callable, tuple]:
        packed = pack_samples(self)
        return (list, (list(self),)) if packed is None else (unpack_samples, packed)


def pack_samples(samples: Sequence) -> tuple[list[dict], list[int], NDArray, NDArray, bool] | None:
    """Join the boxes and labels of samples.

    Returns:
        What :func:`unpack_samples` takes; None if a sample holds anything else.
    """
    if not samples or any(type(one) is not DetDataSample or {*one.keys()} != {*GROUPS} for one in samples):
        return None
    instances = [sample.get(group) for sample in samples for group in GROUPS]
    for one in instances:
        if type(one) is not InstanceData or {*one.keys()} != {'bboxes', 'labels'} or one.metainfo_keys():
            return None
    boxes, labels = [one.bboxes for one in instances], [one.labels for one in instances]
    are_boxes = all(type(one) is HorizontalBoxes for one in boxes)
    if are_boxes:
        boxes = [one.tensor for one in boxes]
    if not (are_rows(boxes, (4,), torch.float32) and are_rows(labels, (), torch.int64)):
        return None
    counts = [*map(len, labels)]
    if counts != [*map(len, boxes)]:
        return None
    metainfos = [dict(sample.metainfo_items()) for sample in samples]
    return metainfos, counts, torch.cat(boxes).numpy(), torch.cat(labels).numpy(), are_boxes


def are_rows(values: list, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether all are plain tensors of any number of rows of this shape and type."""
    return all(
        type(value) is Tensor
        and value.dim() == 1 + len(shape)
        and value.shape[1:] == shape
        and value.dtype == dtype
        and value.device.type == 'cpu'
        and not value.requires_grad
        for value in values
    )


def unpack_samples(
    metainfos: list[dict], counts: list[int], boxes: NDArray, labels: NDArray, are_boxes: bool
) -> list[DetDataSample]:
    """Undo :func:`pack_samples`.

    Args:
        metainfos: Of each of B images.
        counts: Number of boxes of each of :data:`GROUPS` of each image, (2 * B,), N in all.
        boxes: (N, 4), xyxy.
        labels: (N,).
        are_boxes: Whether they were :class:`HorizontalBoxes` and not tensors.
    """
    all_boxes, all_labels = (torch.from_numpy(values).split(counts) for values in (boxes, labels))
    parts = iter(zip(all_boxes, all_labels))
    samples = []
    for metainfo in metainfos:
        sample = DetDataSample()
        for key, value in metainfo.items():  # set_metainfo would copy what is nobody else's
            sample.set_field(value, key, field_type='metainfo')
        for group, (own_boxes, own_labels) in zip(GROUPS, parts):
            own_boxes = HorizontalBoxes(own_boxes, clone=False) if are_boxes else own_boxes
            sample.set_field(InstanceData(bboxes=own_boxes, labels=own_labels), group)
        samples.append(sample)
    return samples
