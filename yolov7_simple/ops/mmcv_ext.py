"""A stand-in for ``mmcv._ext`` where mmcv has no compiled ops.

mmdet imports ``mmcv.ops`` and with it the compiled module ``mmcv._ext``, which mmcv-lite, or an mmcv built without a
compiler, lacks. One-stage detectors need a single function of it, ``nms``, which the stand-in implements. Every other
op exists by name, and raises an error only when it is called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .nms_batch import nms_batch

NAME = 'mmcv._ext'


def _nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The name and signature of compiled mmcv's ``nms``."""
    every = torch.ones_like(scores, dtype=torch.bool)
    return nms_batch(bboxes[None], scores[None], every[None], iou_threshold, offset)[0]


class MissingOps(ModuleType):
    """``mmcv._ext`` with a real ``nms``; any other attribute is an op that raises when it is called."""

    # Tells `find_spec`, and people who inspect the module, where it comes from.
    __file__ = __file__
    nms = staticmethod(_nms)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if op.startswith('__'):
            raise AttributeError(op)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(
                f'mmcv.ops.{op} needs compiled mmcv, and this mmcv has no compiled ops (mmcv-lite, or a build '
                'without them); install mmcv with its ops instead: https://mmcv.readthedocs.io/en/latest/'
                'get_started/installation.html'
            )

        missing.__name__ = op
        return missing


def install() -> bool:
    """Register the stand-in unless mmcv has its own compiled module.

    Returns:
        Whether the stand-in is what ``import mmcv._ext`` now gives.
    """
    if isinstance(sys.modules.get(NAME), MissingOps):
        return True
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return False
    module = MissingOps(NAME, __doc__)
    module.__spec__ = importlib.util.spec_from_loader(NAME, loader=None)
    sys.modules[NAME] = module
    return True
