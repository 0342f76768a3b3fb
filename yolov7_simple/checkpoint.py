"""Reading checkpoints without running what is in them.

torch 2.6 and later load with ``weights_only``, which refuses every class that it does not know, and mmengine's
checkpoints hold a few: the history of the logged numbers. This module allows exactly those, and leaves the refusal
on for everything else.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmengine.runner import CheckpointLoader, Runner

from .errors import UserError
from .options import checked_options

# Before 2.6 torch does not load with weights_only unless told to, and cannot name a global.
CAN_READ_SAFELY = hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')
# The functions by which a HistoryBuffer names its own statistics.
STATISTICS = ('min', 'max', 'mean', 'current', 'statistics')


class CheckpointError(UserError):
    """A checkpoint that cannot be used, or its config; the message names it and says why."""


def get_statistic(owner: type, name: str) -> Callable:
    """``getattr`` for the one use that mmengine's checkpoints have for it: the methods of HistoryBuffer.

    Allowing the real one would let a pickle walk from any method to its globals.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f'a checkpoint has no business with attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def safe_globals() -> list:
    """What a checkpoint of mmengine may hold besides tensors and plain Python: classes, or (object, pickled name)."""
    multiarray = getattr(np, '_core', None) or np.core
    numpy_functions = [
        # Arrays and scalars are pickled through these two functions; numpy 2 renamed the module.
        (getattr(multiarray.multiarray, function), f'numpy.{module}.multiarray.{function}')
        for function in ('_reconstruct', 'scalar')
        for module in ('core', '_core')
    ]
    return [
        HistoryBuffer,  # message_hub.log_scalars: one for each logged number
        (get_statistic, 'builtins.getattr'),  # how a HistoryBuffer names its statistics
        *numpy_functions,  # the numbers in a HistoryBuffer, and message_hub.runtime_info['eta']
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', 'bool')),  # what np.dtype makes of their kinds
    ]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` and mmengine read mmengine's own checkpoints with ``weights_only`` on, in this process."""
    if CAN_READ_SAFELY:
        torch.serialization.add_safe_globals(safe_globals())
        CheckpointLoader.register_scheme('', read_checkpoint, force=True)


def read_checkpoint(filename: str | Path, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint file, without running what is in it; also in mmengine: test, ``resume``, ``load_from``.

    Args:
        filename: Written by ``torch.save``.
        map_location: As in ``torch.load``.

    Raises:
        CheckpointError: No file, a damaged one, or one that holds more than tensors, plain values and what
            :func:`safe_globals` allows.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise CheckpointError(f'{path}: there is no such checkpoint file')
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever unpickling meets
        # torch's message is long, and recommends to switch the safety off.
        reason = str(error).split('Check the documentation')[0].split('Please use')[0].strip()
        raise CheckpointError(
            f'{path}: not a checkpoint that can be read safely, it is damaged or holds what no checkpoint needs: '
            f'{(reason.splitlines() or [type(error).__name__])[-1]}'
        ) from error


@HOOKS.register_module()
@checked_options
class CheckpointCheckHook(Hook):
    """Refuse a checkpoint that does not fit the model, which mmengine would load in part.

    Fine-tuning (``load_from``) may change the classes: then the class layers start anew, and that is said.
    """

    priority = 'VERY_HIGH'  # before the EMA copies what is loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Raises:
            CheckpointError: They differ, and not in the class layers of a model to be fine-tuned alone.
        """
        model = runner.model
        while hasattr(model, 'module'):  # DDP, test-time augmentation
            model = model.module
        wanted = model.state_dict()
        state_dict = checkpoint.get('state_dict', checkpoint)
        found = {key.removeprefix('module.'): key for key in state_dict}
        missing = [key for key in wanted if key not in found]
        unknown = [key for key in found if key not in wanted]
        misshapen = [key for key in found if key in wanted and state_dict[found[key]].shape != wanted[key].shape]
        is_training = isinstance(runner.optim_wrapper, OptimWrapper)
        class_layers = [key for key in misshapen if '.cls_preds.' in key or '.cls_towers.' in key]
        if is_training and not runner._resume and class_layers and class_layers == misshapen:
            for key in misshapen:
                del state_dict[found[key]]
            runner.logger.info(
                f'Other classes than in the checkpoint: {len(misshapen)} tensors of class layers start anew.'
            )
            misshapen = []
        shapes = [
            f'{key}: {tuple(state_dict[found[key]].shape)} in the checkpoint, {tuple(wanted[key].shape)} in the model'
            for key in misshapen
        ]
        problems = [
            f'{len(keys)} {what}, such as {keys[0]}'
            for what, keys in (('tensors missing', missing), ('unknown', unknown), ('of another shape', shapes))
            if keys
        ]
        if problems:
            raise CheckpointError(
                f'CheckpointCheckHook: the checkpoint is not of this model: {"; ".join(problems)}. Use the config '
                'that it was trained with (beside it in its folder), with its number of classes'
            )


def load_original(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of the original (RT-ODLab): a state dict, or a dict that holds one as ``model``.

    Its pickled extras, the training arguments and scores, are read as data and never run.

    Args:
        path: A file written by ``torch.save``.

    Returns:
        The state dict.

    Raises:
        CheckpointError: Not such a file, or one that holds anything but tensors, plain values and training arguments.
    """
    # On leaving, torch forbids all that is named here, also what was allowed before: name the new class only.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = read_checkpoint(path)
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise CheckpointError(f'{path}: holds {type(checkpoint).__name__}, not a state dict')
    strange = [key for key, value in checkpoint.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f'{path}: entries of the state dict that are no tensors: {strange[:5]}')
    return checkpoint
