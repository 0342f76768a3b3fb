"""Read checkpoints without running code from them.

torch 2.6 and later load with ``weights_only``, which refuses every class that it does not know. mmengine's checkpoints
hold a few of them, for the history of the logged numbers. This module allows exactly those; all others stay refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from torch import Tensor

from ..runtime.errors import UserError

# False before torch 2.6, where weights_only is not the default and cannot allow an object under another name.
CAN_READ_SAFELY = hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')
# Methods of HistoryBuffer that a pickled HistoryBuffer refers to.
STATISTICS = ('min', 'max', 'mean', 'current', 'statistics')


class CheckpointError(UserError):
    """A checkpoint that cannot be used, or its config; the message names it and says why."""


def get_statistic(owner: type, name: str) -> Callable:
    """Replace ``getattr`` where mmengine's checkpoints use it, to look up methods of HistoryBuffer.

    The real ``getattr`` would let a pickle reach the globals of any method.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f'a checkpoint has no business with attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def safe_globals() -> list:
    """List what mmengine's checkpoints hold besides tensors and plain values: classes, or (object, pickled name)."""
    # numpy 1.26 has a _core as well, but an empty one.
    core = np._core if digit_version(np.__version__) >= digit_version('2.0') else np.core
    numpy_functions = [
        # Arrays and scalars are pickled through these two functions, whose module numpy 2 renamed.
        (getattr(core.multiarray, function), f'numpy.{module}.multiarray.{function}')
        for function in ('_reconstruct', 'scalar')
        for module in ('core', '_core')
    ]
    return [
        HistoryBuffer,  # message_hub.log_scalars: one for each logged number
        (get_statistic, 'builtins.getattr'),  # how a HistoryBuffer names its statistics
        *numpy_functions,  # the numbers in a HistoryBuffer, and message_hub.runtime_info['eta']
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', 'bool')),  # the classes of these dtypes
    ]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` and mmengine read mmengine's own checkpoints with ``weights_only`` on, in this process."""
    if CAN_READ_SAFELY:
        torch.serialization.add_safe_globals(safe_globals())
        CheckpointLoader.register_scheme('', read_checkpoint, force=True)


def read_checkpoint(filename: str | Path, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint file without running code from it; mmengine reads its checkpoints through this as well.

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
        # torch's message is long, and recommends switching weights_only off.
        reason = str(error).split('Check the documentation')[0].split('Please use')[0]
        reason = reason.split('WeightsUnpickler error:')[-1].strip()
        raise CheckpointError(
            f'{path}: not a checkpoint that can be read safely, it is damaged or holds what no checkpoint needs: '
            f'{(reason.splitlines() or [type(error).__name__])[-1]}'
        ) from error


class WeightDifferences(NamedTuple):
    """How weights differ from those that a model has: names of tensors.

    Args:
        missing: The model alone has them.
        unknown: The checkpoint alone has them.
        misshapen: Both have them, with different shapes; the values say which, to be read after the name.
    """

    missing: list[str]
    unknown: list[str]
    misshapen: dict[str, str]


def compare_weights(state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> WeightDifferences:
    """Compare names and shapes of weights with those that a model has."""
    return WeightDifferences(
        [key for key in wanted if key not in state_dict],
        [key for key in state_dict if key not in wanted],
        {
            key: f'is {tuple(state_dict[key].shape)} and not {tuple(value.shape)}'
            for key, value in wanted.items()
            if key in state_dict and state_dict[key].shape != value.shape
        },
    )


def check_weights(
    state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: str, model: str = 'this model'
) -> None:
    """Compare weights with those of a model; mmengine would load what fits, with a warning.

    Args:
        state_dict: Weights of the checkpoint.
        wanted: Weights of the model.
        checkpoint: Name of the checkpoint for the message.
        model: Name of the model for the message.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    missing, unknown, misshapen = compare_weights(state_dict, wanted)
    shapes = [f'{key}, which {shapes}' for key, shapes in misshapen.items()]
    problems = [
        f'{len(keys)} {what}, such as {keys[0]}'
        for what, keys in (('tensors missing', missing), ('unknown', unknown), ('of another shape', shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f'{checkpoint} is not of {model}: {"; ".join(problems)}. Use the config that it was trained with (beside '
            'it in its folder), with its number of classes'
        )
