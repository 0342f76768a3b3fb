"""Fine-tuning on one's own data: trained weights whose class rows fit it, and the recipe for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from ..apis.inference import check_classes_and_weights, quiet, state_dict_of
from ..engine.hooks import CLASS_LAYER
from ..models.rtodlab import as_checkpoint, convert_state_dict, load_original
from ..models.rtodlab_weights import SCHEME, WEIGHTS, load_from_rtodlab
from ..runtime.errors import InputError, examples
from ..runtime.files import replacing
from ..utils.checkpoint import CheckpointError, compare_weights, read_checkpoint

# Of the length, and of the learning rate, of a training from random weights. docs/finetuning.md has what each brings.
EPOCHS_SHARE = 1 / 3
LEARNING_RATE_SHARE = 0.5


def use_pretrained(cfg: Config, weights: str, classes: Sequence[str], file: Path) -> str:
    """Let a training start from trained weights, fitted to its classes.

    Args:
        cfg: Config of the training, which is changed.
        weights: Name of published weights, with or without ``rtodlab://``, or a checkpoint file, of the original or of
            mmengine; empty: the published detector of the config's size.
        classes: Of the training.
        file: Where to write the fitted weights: the config then needs nothing else, and no network.

    Returns:
        In words: what it starts from, and which classes keep their rows.

    Raises:
        InputError: There are no such weights, or none for the config's size.
        CheckpointError: They cannot be had, or are of another model.
    """
    weights = weights or published_for(cfg)
    checkpoint = load_trained(weights)
    state_dict = state_dict_of(checkpoint, weights)
    known = checkpoint.get('meta', {}).get('dataset_meta', {}).get('classes', ())
    adapted, kept = adapt_classes(state_dict, known, cfg, classes)
    check_classes_and_weights(cfg, str(cfg.filename), adapted, weights)
    with replacing(file) as temporary:
        torch.save({'state_dict': adapted, 'meta': {'dataset_meta': {'classes': tuple(classes)}}}, temporary)
    cfg.load_from = str(file.resolve())
    cfg.model.backbone.pop('init_cfg', None)  # its weights are in the file
    anew = [name for name in classes if name not in kept]
    parts = [f'from {weights}']
    if kept:
        parts.append(f'class rows kept for {examples(kept)}')
    if anew:
        parts.append(f'anew for {examples(anew)}')
    return '; '.join(parts)


def published_for(cfg: Config) -> str:
    """Name the published detector of the config's size.

    Raises:
        InputError: There is none.
    """
    arch = cfg.model.get('backbone', {}).get('arch')
    for name, weights in WEIGHTS.items():
        if weights.is_detector and weights.arch == arch:
            return SCHEME + name
    raise InputError(
        f'{cfg.filename}: no weights for COCO are published for a backbone of arch {arch!r}; name a checkpoint that '
        'you have trained: --pretrained FILE'
    )


def load_trained(weights: str) -> dict[str, Any]:
    """Load published weights by name, or a checkpoint file of the original or of mmengine.

    Raises:
        InputError: Neither a name nor a file, or a backbone alone.
        CheckpointError: They cannot be had, or the file is no checkpoint that loads safely.
    """
    name = weights.removeprefix(SCHEME)
    if name in WEIGHTS and not Path(weights).is_file():
        if not WEIGHTS[name].is_detector:
            raise InputError(
                f'--pretrained {weights}: is a backbone alone; start from it with --cfg-options '
                f'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint={SCHEME}{name}'
            )
        return load_from_rtodlab(SCHEME + name)
    if not Path(weights).is_file():
        raise InputError(
            f'--pretrained {weights}: there is no such file, and no such name; there are '
            + ', '.join(name for name, one in WEIGHTS.items() if one.is_detector)
        )
    try:
        return as_checkpoint(convert_state_dict(load_original(weights)))
    except CheckpointError:  # not of the original
        return read_checkpoint(weights)


def adapt_classes(
    state_dict: Mapping[str, Tensor], known: Sequence[str], cfg: Config, classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Fit the class layers of trained weights to other classes.

    A class that both sides know by the same name, in any case, keeps its row of the class predictions; the others start
    as in a new model. Where the towers before are of another width there are no rows to keep.

    Args:
        state_dict: Of the trained detector.
        known: Its classes, in the order of its rows; empty where they are not known.
        cfg: Config of the detector to train.
        classes: Its classes.

    Returns:
        Weights for that detector, and the classes that keep their rows.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)  # ranks that write the same file write the same rows
        head = MODELS.build(cfg.model.bbox_head)
        head.init_weights()
    fresh = {f'bbox_head.{key}': value for key, value in head.state_dict().items()}
    fresh = {key: value for key, value in fresh.items() if CLASS_LAYER.search(key)}
    towers_fit = not any('.cls_towers.' in key for key in compare_weights(state_dict, fresh).misshapen)
    row_of = {name.casefold(): row for row, name in enumerate(known)}
    kept = {i: row_of[name.casefold()] for i, name in enumerate(classes) if towers_fit and name.casefold() in row_of}

    if towers_fit:
        fresh = {key: value for key, value in fresh.items() if '.cls_preds.' in key and key in state_dict}
        for key, value in fresh.items():
            value[list(kept)] = state_dict[key][list(kept.values())]
    return {**state_dict, **fresh}, [classes[i] for i in kept]
