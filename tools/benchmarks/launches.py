"""Count what one step asks of a GPU, kernel launches and waits, on a machine that has none.

Tensors of CUDA are fake: PyTorch's ``FakeTensorMode`` gives them shape, type and the device ``cuda:0``, but no data.
A step takes seconds, and an op on tensors of two devices fails as it would on a GPU. Those of the CPU are real. Used by
``count_launches.py`` and by the tests.

**A launch** is an op that starts at least one kernel: views and allocations count 0, a backward of a convolution one
for each gradient, and an op on a list of tensors (``_foreach_*``, ``_fused_*``) one for each group of tensors that
CUDA's ``multi_tensor_apply`` takes at once. Some ops, such as ``topk``, start several kernels and still count one.

**A wait** is an op after which the host stands still until the device is done: a value read back (``item``), a shape
that depends on values (``nonzero``, an index of bools), a copy to or from the device that is not ``non_blocking``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FOLDERS = ('yolov7_simple', 'mmdet', 'mmengine', 'mmcv')  # of which a caller is named
STAGES = ('preprocessing', 'network', 'assignment and loss', 'optimiser', 'EMA', 'other hooks', 'prediction')
# Ops that start no kernel, beside views.
NO_KERNEL = {
    'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', '_unsafe_view', 'lift_fresh', 'resize_',
    'set_', 'is_pinned', 'is_same_size', 'record_stream', '_local_scalar_dense', 'equal', 'device', 'size', 'stride',
}  # fmt: skip
# Of multi_tensor_apply (ATen/native/cuda/MultiTensorApply.cuh): what one launch takes, by the number of lists.
MOST_TENSORS, MOST_CHUNKS, CHUNK = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65536
SHAPE_OF_VALUES = {'nonzero', 'masked_select', '_unique', '_unique2', 'unique_dim', 'unique_consecutive', 'bincount'}
# They log, save or schedule, and are no part of a step's work on the device.
HOST_HOOKS = (
    CheckpointHook, DetVisualizationHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
)  # fmt: skip


def _no_kernel(*args, **kwargs) -> None:
    raise NotImplementedError('there is no GPU: only fake tensors can be on it')


@functools.cache
def _register_cuda() -> None:
    """Make autograd work with fake CUDA tensors where there is no GPU, in a PyTorch built with or without CUDA.

    Autograd asks C++ for the current device and stream of CUDA. An object whose every method is a C function that
    returns 1 is registered for that: device 0 of CUDA is the number 1 there. And CUDA is reported as compiled in.
    """
    folder = Path(torch.__file__).parent / 'lib'
    core, ops = (ctypes.CDLL(str(folder / f'lib{name}.so')) for name in ('c10', 'torch_cpu'))
    one = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value
    methods = (ctypes.c_void_p * 128)(*[one] * 128)
    guard = ctypes.c_void_p(ctypes.addressof(methods))
    register = core._ZN3c104impl24DeviceGuardImplRegistrarC1ENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE
    register.argtypes, register.restype = (ctypes.c_void_p, ctypes.c_byte, ctypes.c_void_p), None
    register(None, 1, ctypes.addressof(guard))

    hooks_of_cuda = ops._ZN2at6detail12getCUDAHooksEv
    hooks_of_cuda.restype = ctypes.c_void_p
    hooks = ctypes.cast(hooks_of_cuda(), ctypes.POINTER(ctypes.c_void_p))
    hook_methods = (ctypes.c_void_p * 128)(*ctypes.cast(hooks[0], ctypes.POINTER(ctypes.c_void_p))[:128])
    hook_methods[2] = hook_methods[4] = one  # isBuilt and hasPrimaryContext
    hooks[0] = ctypes.addressof(hook_methods)

    # A PyTorch without CUDA would take some ops apart that are one kernel there, as they are on the CPU.
    library, has = torch.library.Library('aten', 'IMPL'), torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith('aten::')]
    for name in names:
        if has(name, 'CompositeImplicitAutograd') and has(name, 'CPU') and not has(name, 'CUDA'):
            library.impl(name.removeprefix('aten::'), _no_kernel, 'CUDA')
    for kept in (methods, guard, hook_methods, library):  # C++ uses them to the very end
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _made_up_list(tensor: Tensor) -> list:
    tensor = tensor.cpu()  # what the host waits for
    return [_made_up(tensor) if tensor.dim() == 1 else _made_up_list(row) for row in tensor]


def _made_up(tensor: Tensor) -> bool | float | int:
    return True if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


class _RealOnCpu(TorchDispatchMode):
    """Leaves what concerns the CPU alone out of the fake mode below it."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()
        self.fake_mode = fake_mode

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an op on real tensors as it is; otherwise make fake ones of those that it also takes."""
        kwargs = kwargs or {}
        device = kwargs.get('device')
        is_fake = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if not is_fake and (device is None or device.type != 'cuda'):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        return func(*args, **kwargs)

    def _faked(self, tensor: Tensor) -> FakeTensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake_mode.from_tensor(tensor)


def _apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply``, behind ``to`` and ``cuda``, which could not turn a real tensor into a fake one."""
    for module in self.children() if recurse else ():
        module._apply(function)
    for name, value in self._parameters.items():
        if value is not None:
            with torch.no_grad():
                applied = function(value)
            if applied.device == value.device:
                value.data = applied
            else:
                self._parameters[name] = nn.Parameter(applied, value.requires_grad)
    for name, value in self._buffers.items():
        if value is not None:
            self._buffers[name] = function(value)
    return self


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Make tensors of ``cuda`` fake. Use it in a process of its own, before anything was trained in it.

    PyTorch, mmengine and our package then believe in a GPU, as they ask for one.
    """
    import mmengine.device.utils
    import torch._subclasses.fake_tensor as fake_tensor
    import torch.optim.optimizer as optimizer
    import torch.utils._foreach_utils as foreach_utils

    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            _register_cuda()
            for owner, name, value in (
                (torch.cuda, 'is_available', lambda: True),
                (torch.cuda, 'device_count', lambda: 1),
                (torch.cuda, 'current_device', lambda: 0),
                (torch.cuda, 'is_bf16_supported', lambda *_: True),
                (torch.cuda, 'synchronize', lambda *_: None),
                (FakeTensorMode, 'avoid_device_init', True),
                (FakeTensorMode, '__deepcopy__', lambda self, _: self),
                (fake_tensor, 'init_gpu_context', lambda *_: None),
                (mmengine.device.utils, 'DEVICE', 'cuda'),
            ):
                stack.enter_context(mock.patch.object(owner, name, value, create=True))
        # Optimisers and the clipping of gradients then do what they do with tensors of CUDA.
        for owner in (optimizer, foreach_utils):
            types = [*owner._foreach_supported_types, FakeTensor]
            stack.enter_context(mock.patch.object(owner, '_foreach_supported_types', types))
        for name in ('_cuda_graph_capture_health_check', '_accelerator_graph_capture_health_check'):
            stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, lambda self: None, create=True))
        stack.enter_context(mock.patch.object(FakeTensor, 'tolist', _made_up_list))
        stack.enter_context(mock.patch.object(nn.Module, '_apply', _apply))
        fake_mode = stack.enter_context(FakeTensorMode())
        stack.enter_context(_RealOnCpu(fake_mode))
        yield


class Wait(NamedTuple):
    """A wait of the host for the device.

    Args:
        op: What waits.
        stage: One of ``STAGES``.
        callers: Where it was called, innermost first, without PyTorch's own files: ``mmdet/models/x.py:12 forward``.
    """

    op: str
    stage: str
    callers: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether our package called, directly or through the host."""
        return any(caller.startswith('yolov7_simple/') for caller in self.callers)


def _callers() -> tuple[str, ...]:
    frame, found = sys._getframe(2), []
    while frame:
        parts = Path(frame.f_code.co_filename).parts
        folder = next((i for i in reversed(range(len(parts) - 1)) if parts[i] in FOLDERS), None)
        if folder is not None:
            found.append(f'{"/".join(parts[folder:])}:{frame.f_lineno} {frame.f_code.co_name}')
        frame = frame.f_back
    return tuple(found)


@functools.cache
def _is_view(func: torch._ops.OpOverload) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _multi_tensor_launches(args: tuple) -> int:
    """Launches of an op on lists of tensors: each takes so many tensors, and so many chunks of them."""
    lists = [one for one in args if isinstance(one, (list, tuple)) and one and isinstance(one[0], Tensor)]
    lists = [one for one in lists if any(tensor.dim() for tensor in one)] or lists  # steps of an optimiser are no list
    chunks = sum(math.ceil(tensor.numel() / CHUNK) for tensor in lists[0])
    return max(math.ceil(len(lists[0]) / MOST_TENSORS[min(len(lists), 5)]), math.ceil(chunks / MOST_CHUNKS))


def num_launches(func: torch._ops.OpOverload, args: tuple) -> int:
    """Kernel launches of one op, by the rule at the top of this file."""
    name = func._schema.name.split('::')[1]
    if name in NO_KERNEL or _is_view(func):
        return 0
    if name.startswith(('_foreach_', '_fused_', '_amp_foreach_')):
        return _multi_tensor_launches(args)
    return sum(args[-1]) if name == 'convolution_backward' else 1


class Launches(TorchDispatchMode):
    """Counts launches and waits of what runs on fake CUDA tensors under it.

    ``launches`` has the number of each (stage, op), ``waits`` each :class:`Wait`. What the host would read is made up:
    True, or 0; an index of bools takes every row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[tuple[str, str]] = Counter()
        self.waits: list[Wait] = []
        self._stage, self._first_of_loss = 'other hooks', math.inf

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs in it for this stage; backward ops are told apart by what made them."""
        before, self._stage = self._stage, name
        if name == 'assignment and loss':
            self._first_of_loss = torch._C._autograd._get_sequence_nr()
        try:
            yield
        finally:
            self._stage = before

    def of_stage(self) -> dict[str, int]:
        """Launches of each stage."""
        counts = dict.fromkeys(STAGES, 0)
        for (stage, _), count in self.launches.items():
            counts[stage] += count
        return {stage: count for stage, count in counts.items() if count}

    def _current_stage(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._stage
        is_loss = self._first_of_loss <= node._sequence_nr() < 2**62  # AccumulateGrad has the largest number
        return 'assignment and loss' if is_loss else 'network'

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count an op, and make up what the host would wait for."""
        kwargs = kwargs or {}
        on_gpu = [leaf.is_cuda for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.split('::')[1]
        if name == '_local_scalar_dense' and isinstance(args[0], FakeTensor):
            if any(on_gpu):
                self._wait('item')
            return _made_up(args[0])
        if any(on_gpu):
            if name == 'equal':
                self._wait(name)
                return True
            if name in SHAPE_OF_VALUES:
                self._wait(name)
                if name == 'nonzero':
                    return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
            if name in ('index', 'index_put', 'index_put_', '_unsafe_index'):
                args = (args[0], self._without_masks(args[1]), *args[2:])
        out = func(*args, **kwargs)
        if any(on_gpu) or any(leaf.is_cuda for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            self.launches[self._current_stage(), name] += num_launches(func, args)
            if name in ('_to_copy', 'copy_', '_foreach_copy_'):
                source = args[0] if name == '_to_copy' else tree_leaves(args[1])[0]
                target = tree_leaves(out)[0] if name == '_to_copy' else tree_leaves(args[0])[0]
                blocks = not (kwargs.get('non_blocking') or args[2:3] == (True,))
                if source.device != target.device and blocks:
                    self._wait('copy to the device' if target.is_cuda else 'copy from the device')
        return out

    def _wait(self, op: str) -> None:
        self.waits.append(Wait(op, self._current_stage(), _callers()))

    def _without_masks(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        plain: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._wait('index of bools')
                rows = index.new_empty((index.numel(),), dtype=torch.long, device='cuda')
                plain.extend([rows] * index.dim())
            else:
                if index is not None and not index.is_cuda and index.dim():
                    self._wait('copy to the device')
                plain.append(index)
        return plain


def make_batch(images: int, size: int, boxes: int, classes: int) -> dict:
    """Draw a batch as the data loader hands it over: images (3, size, size) and their boxes, on the CPU."""
    samples = []
    for i in range(images):
        sample = DetDataSample(metainfo={'img_shape': (size, size), 'ori_shape': (size, size), 'img_path': f'{i}.jpg'})
        sample.set_metainfo({'scale_factor': (1.0, 1.0), 'img_id': i})
        for key, count in (('gt_instances', boxes), ('ignored_instances', 0)):
            corners = torch.rand(count, 2) * (size / 2)
            found = HorizontalBoxes(torch.cat([corners, corners + 8 + torch.rand(count, 2) * (size / 2 - 8)], 1))
            sample.set_field(InstanceData(bboxes=found, labels=torch.randint(classes, (count,))), key, InstanceData)
        samples.append(sample)
    pixels = [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in samples]
    return {'inputs': pixels, 'data_samples': samples}


class FakeRun:
    """A model, its optimiser and the hooks of a config, on a fake GPU. Make and use it in :func:`fake_gpu`.

    Args:
        cfg: A whole config. Its multi-scale training is fixed to ``size``.
        images: Images of a batch.
        size: Side of the images that the network sees, in pixels.
        boxes: Boxes an image.
    """

    def __init__(self, cfg: Config, images: int = 16, size: int = 640, boxes: int = 7) -> None:
        for augment in cfg.model.data_preprocessor.get('batch_augments') or []:
            augment.random_size_range = (size, size)
        self.model = MODELS.build(cfg.model).to('cuda').train()
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        hooks = [dict(hook) for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks) if hook]
        for hook in hooks:
            hook.pop('priority', None)  # the Runner's
        self.hooks = [HOOKS.build(hook) for hook in hooks if not issubclass(HOOKS.get(hook['type']), HOST_HOOKS)]
        hub = MessageHub.get_instance(f'fake run {id(self)}')
        self.runner = SimpleNamespace(
            model=self.model, optim_wrapper=self.optim_wrapper, message_hub=hub, iter=0, epoch=0, max_iters=1000,
            max_epochs=10, logger=mock.Mock(), work_dir='nowhere', train_loop=mock.Mock(), cfg=cfg, hooks=self.hooks,
            train_dataloader=SimpleNamespace(dataset=SimpleNamespace(), sampler=None, batch_sampler=None),
        )  # fmt: skip
        # Smaller than the network's input: the multi-scale training has to resize them.
        self.batch = [images, size - 64, boxes, self.model.bbox_head.num_classes]
        self.hooks.insert(0, HOOKS.build({'type': 'RuntimeInfoHook'}))  # the Runner adds it by itself
        for hook in self.hooks[1:]:
            hook.before_run(self.runner)
            if type(hook).__module__.startswith('yolov7_simple'):
                hook.before_train(self.runner)

    def train_step(self) -> Launches:
        """Train for one step with all that follows it; returns what was counted."""
        counter, model, head = Launches(), self.model, self.model.bbox_head
        batch = make_batch(*self.batch)
        MessageHub.get_current_instance().update_info('iter', self.runner.iter)

        def staged(owner: object, method: str, name: str):
            original = getattr(owner, method)

            def run(*args, **kwargs):
                with counter.stage(name):
                    return original(*args, **kwargs)

            return mock.patch.object(owner, method, run)

        with (
            staged(model.data_preprocessor, 'forward', 'preprocessing'),
            staged(head, 'loss_by_feat', 'assignment and loss'),
            counter,
        ):
            with counter.stage('optimiser'), self.optim_wrapper.optim_context(model):
                data = model.data_preprocessor(batch, True)
                with counter.stage('network'):
                    losses = model(**data, mode='loss')
                with counter.stage('assignment and loss'):
                    loss, log_vars = model.parse_losses(losses)
            with counter.stage('optimiser'):
                self.optim_wrapper.update_params(loss)
            for hook in self.hooks:
                with counter.stage('EMA' if hasattr(hook, 'ema_model') else 'other hooks'):
                    hook.after_train_iter(self.runner, 0, data_batch=batch, outputs=log_vars)
        self.runner.iter += 1
        return counter

    def predict(self) -> Launches:
        """Detect in one batch; returns what was counted."""
        self.model.eval()
        batch, counter = make_batch(*self.batch), Launches()
        with torch.no_grad(), counter, counter.stage('prediction'):
            self.model.test_step(batch)
        self.model.train()
        return counter
