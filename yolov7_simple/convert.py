"""Weights of the original (RT-ODLab, yjh0410) under the names of this package."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backbone import ELANNet
from .head import YOLOv7SimpleHead
from .neck import ELANPAFPN


class Size(NamedTuple):
    """One model of the original. `stem` is the key and the width that tell it from the others."""

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

# (pattern of the original's module name, ours), a number in brackets is kept. A name is built of one row of each
# table: part of the network, then part of the block, then the layers of a convolution.
NETWORK_NAMES = (
    (r'backbone\.layer_1\.(?=convs)', r'backbone.stem.0.'),
    (r'backbone\.layer_1\.(\d+)\.', r'backbone.stem.\1.'),
    (r'backbone\.layer_2\.', r'backbone.stage1.'),
    (r'backbone\.layer_3\.', r'backbone.stage2.'),
    (r'backbone\.layer_4\.', r'backbone.stage3.'),
    (r'backbone\.layer_5\.', r'backbone.stage4.'),
    (r'neck\.cv1\.', r'neck.spp.shortcut.'),
    (r'neck\.cv2\.', r'neck.spp.main.0.'),
    (r'neck\.m\.0\.', r'neck.spp.main.1.'),
    (r'neck\.m\.1\.cv1\.', r'neck.spp.main.2.reduce.'),
    (r'neck\.m\.1\.cv2\.', r'neck.spp.main.2.fuse.'),
    (r'neck\.m\.2\.', r'neck.spp.main.3.'),
    (r'neck\.cv3\.', r'neck.spp.fuse.'),
    (r'fpn\.reduce_layer_1\.', r'neck.reduce_q5.'),
    (r'fpn\.reduce_layer_2\.', r'neck.lateral_c4.'),
    (r'fpn\.reduce_layer_3\.', r'neck.reduce_t4.'),
    (r'fpn\.reduce_layer_4\.', r'neck.lateral_c3.'),
    (r'fpn\.top_down_layer_1\.', r'neck.top_down_p4.'),
    (r'fpn\.top_down_layer_2\.', r'neck.top_down_p3.'),
    (r'fpn\.downsample_layer_1\.', r'neck.down_p3.'),
    (r'fpn\.downsample_layer_2\.', r'neck.down_p4.'),
    (r'fpn\.bottom_up_layer_1\.', r'neck.bottom_up_p4.'),
    (r'fpn\.bottom_up_layer_2\.', r'neck.bottom_up_p5.'),
    (r'fpn\.head_conv_1\.', r'neck.out_p3.0.'),
    (r'fpn\.head_conv_2\.', r'neck.out_p4.0.'),
    (r'fpn\.head_conv_3\.', r'neck.out_p5.0.'),
    (r'fpn\.out_layers\.0\.', r'neck.out_p3.1.'),
    (r'fpn\.out_layers\.1\.', r'neck.out_p4.1.'),
    (r'fpn\.out_layers\.2\.', r'neck.out_p5.1.'),
    (r'non_shared_heads\.(\d+)\.(cls|reg)_feats\.', r'bbox_head.\2_towers.\1.'),
    (r'(cls|reg|obj)_preds\.', r'bbox_head.\1_preds.'),
)
BLOCK_NAMES = (
    # ELAN of the backbone
    (r'(stage\d)\.1\.cv1\.', r'\1.1.shortcut.'),
    (r'(stage\d)\.1\.cv2\.', r'\1.1.main.'),
    (r'(stage\d)\.1\.cv3\.', r'\1.1.deeper.'),
    (r'(stage\d)\.1\.cv4\.', r'\1.1.deepest.'),
    (r'(stage\d)\.1\.out\.', r'\1.1.fuse.'),
    # Down, in the backbone and in the neck
    (r'(stage\d\.0|neck\.down_p\d)\.cv1\.', r'\1.pool.1.'),
    (r'(stage\d\.0|neck\.down_p\d)\.cv2\.', r'\1.stride.'),
    # ELAN of the neck; stages of a single convolution have no second number
    (r'(top_down_p\d|bottom_up_p\d)\.cv1\.', r'\1.shortcut.'),
    (r'(top_down_p\d|bottom_up_p\d)\.cv2\.', r'\1.main.'),
    (r'(top_down_p\d|bottom_up_p\d)\.cv3\.(\d+)\.(?=convs)', r'\1.stages.\2.0.'),
    (r'(top_down_p\d|bottom_up_p\d)\.cv3\.(\d+)\.(\d+)\.', r'\1.stages.\2.\3.'),
    (r'(top_down_p\d|bottom_up_p\d)\.out\.', r'\1.fuse.'),
)
LAYER_NAMES = ((r'convs\.0\.(?=\w+$)', r'conv.'), (r'convs\.1\.(?=\w+$)', r'bn.'))


def convert_key(key: str) -> str:
    """Translate one name; what no rule knows comes back as it was."""
    for table in (NETWORK_NAMES, BLOCK_NAMES, LAYER_NAMES):
        for pattern, replacement in table:
            new_key, count = re.subn(pattern if table is not NETWORK_NAMES else '^' + pattern, replacement, key)
            if count:
                key = new_key
                break
    return key


def find_size(state_dict: dict[str, Tensor]) -> Size:
    """Tell which of the original's models this is.

    Raises:
        ValueError: None of them.
    """
    for size in SIZES:
        key, width = size.stem
        if key in state_dict and state_dict[key].shape[0] == width:
            return size
    raise ValueError(
        'This is not a YOLOv7 of RT-ODLab: its first convolution is none of '
        + ', '.join(f'{size.stem[0]} with {size.stem[1]} filters ({size.arch})' for size in SIZES)
        + f'. The first keys are {list(state_dict)[:3]}.'
    )


def build_network(size: Size, num_classes: int) -> nn.ModuleDict:
    """Build the parts that have weights, without memory for them, named as in the detector."""
    with torch.device('meta'):
        backbone = ELANNet(size.arch)
        neck = ELANPAFPN(backbone.out_channels, size.out_channels, size.num_stages, size.depth)
        head = YOLOv7SimpleHead(num_classes, size.out_channels)
    return nn.ModuleDict({'backbone': backbone, 'neck': neck, 'bbox_head': head})


def convert_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of any of the original's three sizes, with any number of classes.

    Args:
        state_dict: The original's state dict; a ``module.`` in front of every key (DDP) is dropped.

    Returns:
        A new dict of the same tensors that the detector of this package loads strictly.

    Raises:
        ValueError: Unknown, missing or misshapen keys, all of them named.
    """
    if state_dict and all(key.startswith('module.') for key in state_dict):
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    size = find_size(state_dict)
    classes = state_dict.get('cls_preds.0.weight')
    if classes is None:
        raise ValueError('Missing key: cls_preds.0.weight, which tells the number of classes.')
    wanted = build_network(size, classes.shape[0]).state_dict()

    converted, unknown, misshapen = {}, [], []
    for key, value in state_dict.items():
        new_key = convert_key(key)
        if new_key not in wanted or new_key in converted:
            unknown.append(key)
        elif value.shape != wanted[new_key].shape:
            misshapen.append(f'{key} is {tuple(value.shape)}, not {tuple(wanted[new_key].shape)}')
        else:
            converted[new_key] = value
    missing = [key for key in wanted if key not in converted and not any(key == convert_key(k) for k in state_dict)]
    problems = [
        f'{len(names)} {what}: {", ".join(names)}'
        for what, names in (
            ('unknown keys', unknown),
            ('keys of another shape', misshapen),
            ('missing (by their new names)', missing),
        )
        if names
    ]
    if problems:
        raise ValueError(f'Cannot convert this {size.arch} checkpoint. ' + '; '.join(problems) + '.')
    return converted
