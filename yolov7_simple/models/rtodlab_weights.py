"""``rtodlab://NAME``: the original's published weights, wherever mmengine or mmdet takes a checkpoint."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from ..utils.checkpoint import CheckpointError
from ..utils.configs import config_path
from ..utils.download import fetch
from .rtodlab import SIZES, as_checkpoint, build_network, convert_backbone, convert_state_dict, load_original

NUM_CLASSES = 80
SCHEME = 'rtodlab://'
# An address that takes the place of the releases' in front of the file's name: a mirror, or a folder as file:///...
MIRROR = 'YOLOV7_SIMPLE_WEIGHTS_URL'
DETECTOR_RELEASES = (
    'https://github.com/yjh0410/PyTorch_YOLO_Tutorial/releases/download/yolo_tutorial_ckpt',
    'https://github.com/yjh0410/RT-ODLab/releases/download/yolo_tutorial_ckpt',
)
BACKBONE_RELEASES = ('https://github.com/yjh0410/image_classification_pytorch/releases/download/weight',)


class Weights(NamedTuple):
    """A file that the original publishes: its name, ELANNet's ``arch``, whether it is a detector, and what it is."""

    file: str
    arch: str
    is_detector: bool
    title: str


WEIGHTS = {
    'yolov7_tiny': Weights('yolov7_tiny_coco.pth', 'tiny', True, 'YOLOv7-Tiny trained on COCO, 80 classes'),
    'yolov7': Weights('yolov7_coco.pth', 'large', True, 'YOLOv7 trained on COCO, 80 classes'),
    'elannet_tiny': Weights('yolov7_elannet_tiny.pth', 'tiny', False, 'backbone of Tiny trained on ImageNet'),
    'elannet_large': Weights('yolov7_elannet_large.pth', 'large', False, 'backbone of YOLOv7 trained on ImageNet'),
    'elannet_huge': Weights('yolov7_elannet_huge.pth', 'huge', False, 'backbone of X trained on ImageNet'),
}


def find_weights(name: str) -> Weights:
    """Look up a name of the table, with or without ``rtodlab://`` in front.

    Raises:
        CheckpointError: It is not in the table; the message lists what is.
    """
    bare = name.removeprefix(SCHEME)
    if bare not in WEIGHTS:
        raise CheckpointError(
            f'{name}: there are no such weights, but {", ".join(SCHEME + known for known in WEIGHTS)}'
        )
    return WEIGHTS[bare]


def is_rtodlab(checkpoint: str | os.PathLike) -> bool:
    """Whether this names weights of the original rather than a file."""
    return str(checkpoint).startswith(SCHEME)


def load_from_rtodlab(filename: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Load weights of the original by name, downloaded once, converted in memory; mmengine's loader of this scheme.

    Args:
        filename: ``rtodlab://NAME``, a name of :data:`WEIGHTS`.
        map_location: As in ``torch.load``.

    Returns:
        A checkpoint as mmengine saves it. A detector's has its config and classes, so that
        ``DetInferencer(weights='rtodlab://yolov7_tiny')`` needs nothing else; the keys of a backbone's are ELANNet's.

    Raises:
        CheckpointError: An unknown name, a file that cannot be had, or one that is not what it should be.
        InputError: torch's hub folder cannot be written.
    """
    weights = find_weights(filename)
    mirror = os.environ.get(MIRROR)
    releases = DETECTOR_RELEASES if weights.is_detector else BACKBONE_RELEASES
    path, digest = fetch(
        weights.file,
        (mirror,) if mirror else releases,
        lambda file: read_weights(file, weights),
        f'or let {MIRROR} name an address that has it',
    )
    print_log(f'{filename}: {path}, {weights.title}, of RT-ODLab, SHA-256 {digest}', logger='current')
    return read_weights(path, weights, map_location)


def read_weights(path: os.PathLike, weights: Weights, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read and convert a file of the table.

    Raises:
        CheckpointError: It is not what the table says.
    """
    original = load_original(path, map_location)
    convert = convert_state_dict if weights.is_detector else convert_backbone
    try:
        state_dict = convert(original)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: is not the {weights.title}: {error}') from error
    size = next(size for size in SIZES if size.arch == weights.arch)
    network = build_network(size, NUM_CLASSES)
    wanted = (network if weights.is_detector else network['backbone']).state_dict()
    if {key: value.shape for key, value in state_dict.items()} != {key: value.shape for key, value in wanted.items()}:
        raise CheckpointError(f'{path}: is not the {weights.title}, but another model of RT-ODLab')
    if not weights.is_detector:
        return {'state_dict': state_dict}
    cfg = Config.fromfile(config_path(size.config)).pretty_text  # where DetInferencer looks for it
    return {**as_checkpoint(state_dict), 'message_hub': {'runtime_info': {'cfg': cfg}}}
