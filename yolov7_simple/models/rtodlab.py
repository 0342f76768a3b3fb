"""Weights of the original (RT-ODLab, yjh0410) under the names of this package."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.datasets import CocoDataset
from torch import Tensor, nn

from ..utils.checkpoint import CheckpointError, compare_weights, read_checkpoint
from .backbone import ELANNet
from .head import YOLOv7SimpleHead
from .neck import ELANPAFPN


class Size(NamedTuple):
    """One model of the original. `stem`: key and number of filters that only this model's first convolution has."""

    arch: str
    stem: tuple[str, int]
    out_channels: int
    num_stages: int
    depth: int
    config: str


SIZES = (
    Size('tiny', ('backbone.layer_1.convs.0.weight', 32), 128, 2, 1, 'yolov7_tiny_8xb16-300e_coco.py'),
    Size('large', ('backbone.layer_1.0.convs.0.weight', 32), 256, 4, 1, 'yolov7_l_8xb16-300e_coco.py'),
    Size('huge', ('backbone.layer_1.0.convs.0.weight', 40), 320, 4, 2, 'yolov7_x_8xb16-300e_coco.py'),
)
# Our name -> the original's. All rules apply in turn: first the layers from the image on, then the parts of blocks.
NAMES = (
    (r'^backbone\.stem\.', r'backbone.layer_1.'),
    (r'^backbone\.stage1\.', r'backbone.layer_2.'),
    (r'^backbone\.stage2\.', r'backbone.layer_3.'),
    (r'^backbone\.stage3\.', r'backbone.layer_4.'),
    (r'^backbone\.stage4\.', r'backbone.layer_5.'),
    (r'^neck\.spp\.shortcut\.', r'neck.cv1.'),
    (r'^neck\.spp\.main\.0\.', r'neck.cv2.'),
    (r'^neck\.spp\.main\.1\.', r'neck.m.0.'),
    (r'^neck\.spp\.main\.2\.reduce\.', r'neck.m.1.cv1.'),
    (r'^neck\.spp\.main\.2\.fuse\.', r'neck.m.1.cv2.'),
    (r'^neck\.spp\.main\.3\.', r'neck.m.2.'),
    (r'^neck\.spp\.fuse\.', r'neck.cv3.'),
    (r'^neck\.reduce_q5\.', r'fpn.reduce_layer_1.'),
    (r'^neck\.lateral_c4\.', r'fpn.reduce_layer_2.'),
    (r'^neck\.top_down_p4\.', r'fpn.top_down_layer_1.'),
    (r'^neck\.reduce_t4\.', r'fpn.reduce_layer_3.'),
    (r'^neck\.lateral_c3\.', r'fpn.reduce_layer_4.'),
    (r'^neck\.top_down_p3\.', r'fpn.top_down_layer_2.'),
    (r'^neck\.down_p3\.', r'fpn.downsample_layer_1.'),
    (r'^neck\.bottom_up_p4\.', r'fpn.bottom_up_layer_1.'),
    (r'^neck\.down_p4\.', r'fpn.downsample_layer_2.'),
    (r'^neck\.bottom_up_p5\.', r'fpn.bottom_up_layer_2.'),
    (r'^neck\.out_p3\.0\.', r'fpn.head_conv_1.'),
    (r'^neck\.out_p4\.0\.', r'fpn.head_conv_2.'),
    (r'^neck\.out_p5\.0\.', r'fpn.head_conv_3.'),
    (r'^neck\.out_p3\.1\.', r'fpn.out_layers.0.'),
    (r'^neck\.out_p4\.1\.', r'fpn.out_layers.1.'),
    (r'^neck\.out_p5\.1\.', r'fpn.out_layers.2.'),
    (r'^bbox_head\.(cls|reg)_towers\.(\d)\.', r'non_shared_heads.\2.\1_feats.'),
    (r'^bbox_head\.(cls|reg|obj)_preds\.', r'\1_preds.'),
    (r'\.shortcut\.', r'.cv1.'),
    (r'\.main\.', r'.cv2.'),
    (r'\.(deeper|stages)\.', r'.cv3.'),
    (r'\.deepest\.', r'.cv4.'),
    (r'\.fuse\.', r'.out.'),
    (r'\.pool\.1\.', r'.cv1.'),
    (r'\.stride\.', r'.cv2.'),
    (r'\.conv\.(?=\w+$)', r'.convs.0.'),
    (r'\.bn\.(?=\w+$)', r'.convs.1.'),
)
# Where a stem or a stage of the neck is a single convolution, the original has no list index.
SINGLE_CONV_NAMES = (
    (r'^(backbone\.layer_1)\.0\.', r'\1.'),
    (r'^(fpn\.\w+\.cv3\.\d)\.0\.', r'\1.'),
)


def original_key(key: str, size: Size) -> str:
    """Name in the original of a parameter or buffer of ours."""
    stem, stage = SINGLE_CONV_NAMES
    single = (stem,) * (size.arch == 'tiny') + (stage,) * (size.depth == 1)
    for pattern, replacement in NAMES + single:
        key = re.sub(pattern, replacement, key)
    return key


def find_size(state_dict: dict[str, Tensor]) -> Size:
    """Tell which of the original's models this is.

    Raises:
        CheckpointError: It is none of them.
    """
    for size in SIZES:
        key, width = size.stem
        if key in state_dict and state_dict[key].shape[0] == width:
            return size
    raise CheckpointError(
        'This is not a YOLOv7 of RT-ODLab: its first convolution is none of '
        + ', '.join(f'{size.stem[0]} with {size.stem[1]} filters ({size.arch})' for size in SIZES)
        + f'. The first keys are {list(state_dict)[:3]}.'
    )


def build_network(size: Size, num_classes: int) -> nn.ModuleDict:
    """Build the parts that have weights, named as in the detector, on the meta device, which allocates nothing."""
    with torch.device('meta'):
        backbone = ELANNet(size.arch)
        neck = ELANPAFPN(backbone.out_channels, size.out_channels, size.num_stages, size.depth)
        head = YOLOv7SimpleHead(num_classes, size.out_channels)
    return nn.ModuleDict({'backbone': backbone, 'neck': neck, 'bbox_head': head})


def without_wrapper(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the ``module.`` that DDP puts in front of every key."""
    if state_dict and all(key.startswith('module.') for key in state_dict):
        return {key.removeprefix('module.'): value for key, value in state_dict.items()}
    return state_dict


def rename(state_dict: dict[str, Tensor], wanted: dict[str, Tensor], size: Size, prefix: str = '') -> dict[str, Tensor]:
    """Give each tensor its name here.

    Args:
        state_dict: The original's, of nothing but what is wanted.
        wanted: State dict of the network that it is for.
        size: Which of the original's models it is.
        prefix: What our names lack in front, such as ``backbone.`` for a backbone alone.

    Returns:
        The same tensors, named and ordered as in ``wanted``.

    Raises:
        CheckpointError: Unknown, missing or misshapen keys, all of them named.
    """
    sources = {key: original_key(prefix + key, size) for key in wanted}
    missing, unknown, misshapen = compare_weights(state_dict, {sources[key]: value for key, value in wanted.items()})
    shapes = [f'{key} {shapes}' for key, shapes in misshapen.items()]
    problems = [
        f'{len(keys)} {what}: {", ".join(keys)}'
        for what, keys in (('unknown', sorted(unknown)), ('missing', missing), ('of another shape', shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(f'Cannot convert this checkpoint, arch {size.arch!r}. Keys ' + '; '.join(problems) + '.')
    return {key: state_dict[source] for key, source in sources.items()}


def convert_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of any of the original's three sizes, with any number of classes.

    Args:
        state_dict: The original's state dict; a ``module.`` in front of every key (DDP) is dropped.

    Returns:
        A new dict of the same tensors that the detector of this package loads strictly.

    Raises:
        CheckpointError: Unknown, missing or misshapen keys, all of them named.
    """
    state_dict = without_wrapper(state_dict)
    size = find_size(state_dict)
    classes = state_dict.get('cls_preds.0.weight')
    if classes is None:
        raise CheckpointError('Missing key: cls_preds.0.weight, which tells the number of classes.')
    return rename(state_dict, build_network(size, classes.shape[0]).state_dict(), size)


def convert_backbone(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a backbone that the original has trained on ImageNet; its classifier is dropped.

    Args:
        state_dict: The original's state dict of the classification network, its layers named with or without
            ``backbone.`` in front; a ``module.`` in front of every key (DDP) is dropped.

    Returns:
        A new dict of the same tensors that :class:`ELANNet` loads strictly.

    Raises:
        CheckpointError: Not such a backbone, or unknown, missing or misshapen keys, all of them named.
    """
    layers = {
        f'backbone.{key.removeprefix("backbone.")}': value
        for key, value in without_wrapper(state_dict).items()
        if re.match(r'(backbone\.)?layer_\d', key)
    }
    size = find_size(layers or state_dict)
    wanted = build_network(size, 1)['backbone'].state_dict()
    return rename(layers, wanted, size, 'backbone.')


def as_checkpoint(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Wrap a converted detector's state dict as mmengine saves it, with the names of COCO's classes if it has 80."""
    meta = {'source': 'RT-ODLab'}
    if len(state_dict['bbox_head.cls_preds.0.bias']) == len(CocoDataset.METAINFO['classes']):
        meta['dataset_meta'] = {key: CocoDataset.METAINFO[key] for key in ('classes', 'palette')}
    return {'state_dict': state_dict, 'meta': meta}


def load_original(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint of the original (RT-ODLab): a state dict, or a dict that holds one as ``model``.

    Its pickled extras, the training arguments and scores, are read as data and never run.

    Args:
        path: A file written by ``torch.save``.
        map_location: As in ``torch.load``.

    Returns:
        The state dict.

    Raises:
        CheckpointError: Not such a file, or one that holds anything but tensors, plain values and training arguments.
    """
    # On exit torch also forbids classes of this list that were allowed before, so only the new class is named.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = read_checkpoint(path, map_location)
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise CheckpointError(f'{path}: holds {type(checkpoint).__name__}, not a state dict')
    strange = [key for key, value in checkpoint.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f'{path}: entries of the state dict that are no tensors: {strange[:5]}')
    return checkpoint
