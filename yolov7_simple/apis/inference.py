"""Load a trained detector, after checking that checkpoint and config fit."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..models.rtodlab_weights import is_rtodlab, load_from_rtodlab
from ..runtime.errors import examples
from ..utils.checkpoint import CheckpointError, check_weights, read_checkpoint
from .config_options import load_config


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, which is mmengine's or a bare state dict.

    Args:
        path: A file, or ``rtodlab://NAME``.

    Raises:
        CheckpointError: No file, or not a checkpoint that loads safely (``weights_only``).
    """
    return state_dict_of(load_from_rtodlab(path) if is_rtodlab(path) else read_checkpoint(path), str(path))


def state_dict_of(checkpoint: Any, name: str) -> dict[str, Tensor]:
    """Take the weights out of a checkpoint, of mmengine's or a bare state dict.

    Args:
        checkpoint: What was read.
        name: Its name, for the message.

    Raises:
        CheckpointError: It holds none.
    """
    state_dict = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(f'{name}: holds no weights')
    return state_dict


def check_classes_and_weights(
    cfg: Config, config_name: str, state_dict: dict[str, Tensor], checkpoint_name: str
) -> None:
    """Compare the weights with the model of the config.

    Raises:
        CheckpointError: Another model or number of classes.
    """
    if 'detector' in cfg.model:
        raise CheckpointError(f'{config_name}: {cfg.model.type} holds a detector: take it out, see docs/tracking.md')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with torch.device('meta'):  # only shapes: no memory, no random numbers drawn
        wanted = MODELS.build(cfg.model).state_dict()
    classes = [state_dict[key].shape[0] for key in state_dict if key.startswith('bbox_head.cls_preds.0.bias')]
    num_classes = cfg.model.get('bbox_head', {}).get('num_classes')
    if classes and num_classes is not None and classes[0] != num_classes:
        raise CheckpointError(
            f'{checkpoint_name} was trained on {classes[0]} classes, but {config_name} has '
            f'bbox_head.num_classes={num_classes}: use the config that it was trained with'
        )
    check_weights(state_dict, wanted, checkpoint_name, f'the model in {config_name}')


@contextmanager
def quiet() -> Iterator[None]:
    """Silence output, logs below error and warnings, such as mmengine's remarks on registries and palettes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)


def load_inferencer(config: str | Path, checkpoint: str | Path, device: str | None = None) -> DetInferencer:
    """Build mmdet's inferencer after checking that the checkpoint fits the config.

    Args:
        config: Config file.
        checkpoint: Checkpoint file, or ``rtodlab://NAME``.
        device: Such as ``'cpu'`` or ``'cuda:0'``; None: the best there is.

    Returns:
        The inferencer, in evaluation mode and without a progress bar.

    Raises:
        CheckpointError: One of them cannot be used, or they do not fit.
    """
    cfg = load_config(config)
    check_classes_and_weights(cfg, str(config), load_state_dict(checkpoint), str(checkpoint))
    classes = cfg.test_dataloader.dataset.get('metainfo', {}).get('classes')
    with quiet():
        inferencer = DetInferencer(cfg, str(checkpoint), device=device, show_progress=False)
    if classes is not None:
        # The config's names are used, as in tools/test.py; a bare state dict has none.
        inferencer.model.dataset_meta['classes'] = tuple(classes)
    return inferencer


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the classes of a loaded detector, in the order of its labels.

    Raises:
        CheckpointError: The number of names is not the number of classes.
    """
    names = tuple(model.dataset_meta['classes'])
    if len(names) != model.bbox_head.num_classes:
        raise CheckpointError(
            f'the model has {model.bbox_head.num_classes} classes, but {len(names)} names '
            f'({examples(names)}): set metainfo=dict(classes=...) of test_dataloader.dataset'
        )
    return names
