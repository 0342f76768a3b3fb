"""A step of training that is kept as it was before it ran: weights, batches, random state."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample, TrackDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..runtime.errors import examples
from ..runtime.files import replacing
from ..utils.checkpoint import CheckpointError, read_checkpoint
from .branches import unwrapped_model

STEP_STEM = 'non_finite'  # how the names of its files begin, which are not checkpoints
FORMAT = 'a step of training'
VERSION = 1
PLAIN = (bool, int, float, str, type(None))
ELEMENTS = {cls.__name__: cls for cls in (DetDataSample, TrackDataSample, InstanceData, PixelData)}
CLASS = '__class__'  # key of a dict that stands for an object


def is_plain_value(value: Any) -> bool:
    """Whether a value, or each one of a tuple, is a number, a text or None."""
    return type(value) in PLAIN or (type(value) is tuple and all(type(item) in PLAIN for item in value))


def pack_batch(value: Any, left_out: set[str], copies: bool = False) -> Any:
    """Turn a batch into tensors and plain values.

    Args:
        value: A batch or a part of it.
        left_out: Gets the names of classes that are not known here; None takes the place of their objects.
        copies: Copy tensors. Those of samples are always copied, since batch augmentations change boxes in place.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, Tensor):
        return value.detach().clone() if copies else value
    if isinstance(value, dict):
        return {key: pack_batch(item, left_out, copies) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [pack_batch(item, left_out, copies) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic) and is_plain_value(value.item()):
        return value.item()
    if kind is np.ndarray and value.dtype.kind in 'biuf':
        return {CLASS: 'ndarray', 'data': torch.from_numpy(value.copy())}
    if kind is HorizontalBoxes:
        return {CLASS: kind.__name__, 'data': value.tensor.clone()}
    if kind is BitmapMasks:
        return {CLASS: kind.__name__, 'data': torch.from_numpy(value.masks), 'size': (value.height, value.width)}
    if kind in ELEMENTS.values():
        # The base's, since some classes have another metainfo.
        meta = pack_batch(dict(value.metainfo_items()), left_out, True)
        return {CLASS: kind.__name__, 'meta': meta, 'data': pack_batch(dict(value.items()), left_out, True)}
    left_out.add(kind.__name__)
    return None


def unpack_batch(value: Any) -> Any:
    """Undo :func:`pack_batch`; what was left out is missing in samples."""
    if isinstance(value, (list, tuple)):
        return type(value)(unpack_batch(item) for item in value)
    if not isinstance(value, dict):
        return value
    name = value.get(CLASS)
    if name is None:
        return {key: unpack_batch(item) for key, item in value.items()}
    if name == 'ndarray':
        return value['data'].numpy()
    if name == 'HorizontalBoxes':
        return HorizontalBoxes(value['data'], clone=False)
    if name == 'BitmapMasks':
        return BitmapMasks(value['data'].numpy(), *value['size'])
    element: BaseDataElement = ELEMENTS[name](metainfo=unpack_batch(value['meta']))
    for key, item in value['data'].items():
        if item is not None:
            setattr(element, key, unpack_batch(item))
    return element


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the generators of torch, NumPy and Python, and of that of a GPU."""
    name, keys, *rest = np.random.get_state()
    state = {'torch': torch.get_rng_state(), 'python': random.getstate()}
    state['numpy'] = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set what :func:`random_state` returned; a GPU's only on a GPU."""
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state['python'])
    torch.set_rng_state(state['torch'])
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'], device)


def live_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model themselves, by name."""
    return {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


class KeptStep:
    """The current step of the optimiser, as it was before it began.

    Weights and buffers are copied on their device at its beginning. Of each of its batches (several, if gradients are
    accumulated) it keeps images, a copy of the samples, random state and counts. Nothing waits for the device.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._modules: dict[str, nn.Module] = {}
        self._live: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._attributes: dict[str, dict[str, Any]] = {}
        self._batches: list[dict[str, Any]] = []
        self._is_whole = True
        self._left_out: set[str] = set()

    def add(self, runner: Runner, data_batch: dict) -> None:
        """Keep a batch before it is trained on; the first of a step with the weights."""
        model = unwrapped_model(runner)
        wrapper = runner.optim_wrapper
        is_first = not isinstance(wrapper, OptimWrapper) or wrapper.should_update()
        if self._model is not model:
            self._find_state(model)
        if is_first or not self._batches:
            self._is_whole = is_first  # not after a resume amid a step
            self._batches = []
            self._copy_state()
        device = next(iter(self._weights.values())).device
        scaler = getattr(wrapper, 'loss_scaler', None)
        counts = runner.message_hub.runtime_info
        self._batches.append(
            {
                'data': pack_batch(data_batch, self._left_out),
                'random': random_state(device),
                'counts': {key: value for key, value in counts.items() if type(value) in (int, float)},
                'share': float(wrapper.scale_loss(torch.ones(()))) if isinstance(wrapper, OptimWrapper) else 1.0,
                'loss_scale': 1.0 if scaler is None else scaler.scale(torch.ones((), device=device)),
            }
        )

    def _find_state(self, model: nn.Module) -> None:
        """List what is to be copied once, as walking through a model takes milliseconds."""
        self._model, self._batches, self._live = model, [], live_state(model)
        # Attributes of torch's modules are options of the config.
        modules = model.named_modules()
        self._modules = {name: one for name, one in modules if not type(one).__module__.startswith('torch.')}
        self._weights = {key: torch.empty_like(value, requires_grad=False) for key, value in self._live.items()}
        by_type = defaultdict(list)
        for key, value in self._live.items():  # one kernel only for tensors of one type
            by_type[value.dtype].append((self._weights[key], value))
        self._pairs = [tuple(map(list, zip(*pairs))) for pairs in by_type.values()]

    @torch.no_grad()
    def _copy_state(self) -> None:
        """Copy the weights, and plain attributes such as a switch or a size that a hook or an earlier step has set."""
        for kept, live in self._pairs:
            torch._foreach_copy_(kept, live)
        self._attributes = {
            name: {key: value for key, value in vars(module).items() if is_plain_value(value)}
            for name, module in self._modules.items()
        }

    def write(self, runner: Runner, message: str) -> Path | None:
        """Write the step into the work dir, in place of one of an earlier failure.

        Args:
            runner: That trains.
            message: What went wrong.

        Returns:
            The file, which :func:`read_step` reads; None if no step was kept.

        Raises:
            OSError, RuntimeError: It cannot be written, or the copies are not of what was trained.
        """
        if not self._batches:
            return None
        now = live_state(self._model)
        if replaced := [key for key in {**self._live, **now} if self._live.get(key) is not now.get(key)]:
            raise RuntimeError(f'tensors of the model were replaced during training: {examples(replaced)}')
        rank, ranks = get_rank(), get_world_size()
        path = Path(runner.work_dir, f'{STEP_STEM}.pth' if ranks == 1 else f'{STEP_STEM}_rank{rank}.pth')
        device = next(iter(self._weights.values())).device
        wrapper, dtype = runner.optim_wrapper, torch.float32
        if is_mixed := isinstance(wrapper, AmpOptimWrapper):
            dtype = wrapper.cast_dtype or torch.get_autocast_dtype(device.type)
        step = {
            'format': FORMAT,
            'version': VERSION,
            'message': message,
            'step': runner.iter + 1,
            'device': device.type,
            'dtype': str(dtype).removeprefix('torch.'),
            'is_mixed': is_mixed,
            'torch': str(torch.__version__),
            'ranks': ranks,
            'is_whole': self._is_whole,
            'left_out': sorted(self._left_out),
            'state_dict': self._weights,
            'attributes': self._attributes,
            'batches': [{**batch, 'loss_scale': float(batch['loss_scale'])} for batch in self._batches],
        }
        with replacing(path) as temporary:
            torch.save(step, temporary)
        return path


def read_step(path: Path) -> dict[str, Any]:
    """Read a file of :meth:`KeptStep.write`.

    Raises:
        CheckpointError: It is another file, or one of a newer version.
    """
    step = read_checkpoint(path)
    if not isinstance(step, dict) or step.get('format') != FORMAT:
        raise CheckpointError(f'{path}: holds no step to replay; a run that stops at a non-finite value writes one')
    if step['version'] > VERSION:
        raise CheckpointError(
            f'{path}: was written by a newer version of yolov7_simple, in form {step["version"]} where this one knows '
            f'{VERSION}: update yolov7_simple'
        )
    return step
