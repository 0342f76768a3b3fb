"""Run a kept step again, and find what in it is the first that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..runtime.errors import InputError, examples
from ..utils.checkpoint import check_weights
from .kept_step import read_step, set_random_state, unpack_batch


class Replay(NamedTuple):
    """What a replay has found: lines of text, and whether a value was not finite again."""

    lines: list[str]
    is_found: bool


def walk_floats(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of floating point in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value.detach()
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from walk_floats(item)


def all_finite(value: Any) -> bool:
    """Whether all numbers in tensors are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in walk_floats(value))


def describe_range(value: Any) -> str:
    """Say between what the finite numbers in tensors lie, and the share of those that are not."""
    numbers = torch.cat([tensor.flatten().float() for tensor in walk_floats(value)] or [torch.zeros(0)])
    finite = numbers[numbers.isfinite()]
    text = f'{finite.min():.4g} to {finite.max():.4g}' if len(finite) else 'no finite value'
    bad = len(numbers) - len(finite)
    return f'{text}, {bad} of {len(numbers)} values not finite ({bad / len(numbers):.2%})' if bad else text


class _Watch:
    """Hooks on all modules and parameters of a model, which note the first value that is not finite each way."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.losses: list[str] = []
        self._last, self._last_gradient = 'the beginning', 'the loss'
        self._inputs: dict[str, str] = {}
        for name, module in model.named_modules():
            if module is model:
                continue  # what it takes and gives, batch and losses, is looked at by itself
            title = f'{name} ({type(module).__name__})'
            module.register_forward_pre_hook(partial(self._enter, title), with_kwargs=True)
            module.register_forward_hook(partial(self._leave, title), with_kwargs=True)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._gradient, name))

    def _enter(self, title: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Look at inputs before the module runs, which may overwrite them."""
        if self.forward:
            return
        if all_finite((args, kwargs)):
            self._inputs[title] = describe_range((args, kwargs))
        else:
            self.forward = [
                f'Not finite first, in no layer but between {self._last} and {title}: the inputs of the latter.',
                f'  inputs: {describe_range((args, kwargs))}',
            ]

    def _leave(self, title: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not self.forward and not all_finite(output):
            own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            self.forward = [
                f'First layer whose output is not finite while its inputs are: {title}',
                f'  inputs: {self._inputs[title]}',
                f'  output: {describe_range(output)}',
                *(f'  {name}: {describe_range(value)}' for name, value in own.items() if value.is_floating_point()),
            ]
        self._last = title
        for tensor in self._differentiable(output):
            tensor.register_hook(partial(self._gradient, f'the output of {title}'))

    def _gradient(self, title: str, gradient: Tensor) -> None:
        if self.backward:
            return
        if all_finite(gradient):
            self._last_gradient = title
        else:
            self.backward = [
                f'First gradient that is not finite, going backwards: that of {title}',
                f'  gradient: {describe_range(gradient)}',
                f'  the last one before that was finite: of {self._last_gradient}',
            ]

    def _differentiable(self, value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            if value.requires_grad:
                yield value
        elif isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                yield from self._differentiable(item)


def usable_device(name: str) -> torch.device:
    """Turn the name of a device into one that can be used.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # torch has several kinds
        raise InputError(f'--device {name}: cannot be used here: {str(error).splitlines()[0]}') from error


def build_as_it_was(cfg: Config, config_name: str, step: dict[str, Any], path: Path, device: torch.device) -> nn.Module:
    """Build the model of a config in the state that a kept step has of it.

    Raises:
        CheckpointError: It is another model.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    weights = step['state_dict']
    # SyncBN cannot run in a process that is alone on a CPU; there it is BatchNorm.
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    check_weights(weights, model.state_dict(), str(path), f'the model in {config_name}')
    model.load_state_dict(weights)
    images = [weight for weight in weights.values() if weight.dim() == 4 and not weight.is_contiguous()]
    if any(weight.is_contiguous(memory_format=torch.channels_last) for weight in images):
        model.to(memory_format=torch.channels_last)  # the order changes the rounding
    model.to(device).train()
    modules = dict(model.named_modules())
    for name, attributes in step['attributes'].items():
        for key in attributes.keys() & vars(modules.get(name)).keys() if name in modules else ():
            setattr(modules[name], key, attributes[key])
    return model


def replay_step(cfg: Config, config_name: str, path: Path, device: str) -> Replay:
    """Run a step again that :class:`NonFiniteLossHook` has kept: forward, losses and backward of all its batches.

    Args:
        cfg: Config of the run.
        config_name: Its name, for messages.
        path: The file.
        device: To run on; in mixed precision, if the run was and this device can.

    Raises:
        CheckpointError: Another file, or one of another model.
        InputError: No such device.
    """
    step, device = read_step(path), usable_device(device)
    model = build_as_it_was(cfg, config_name, step, path, device)
    is_mixed = step['is_mixed'] and torch.amp.is_autocast_available(device.type)
    dtype = getattr(torch, step['dtype']) if is_mixed else torch.float32
    count = len(step['batches'])
    lines = [
        f'Then: {step["message"]}',
        f'Again, on {device} in {"mixed precision with " if is_mixed else ""}{str(dtype).removeprefix("torch.")}: step '
        f'{step["step"]}, {count} batch{"es" if count > 1 else ""}',
    ]
    spoiled = [name for name, value in step['state_dict'].items() if not all_finite(value)]
    if spoiled:
        lines.append(f'Not finite before the step already: the weights or statistics {examples(spoiled)}')
    batches = [index for index, batch in enumerate(step['batches'], 1) if not all_finite(batch['data'])]
    for index in batches:
        lines.append(f'Not finite before the step already: images or boxes of batch {index}')
    watch = _Watch(model)
    found = _run(model, step, watch, device, dtype if is_mixed else None)
    lines += [*watch.losses, *found]
    is_found = bool(spoiled or batches or found)
    if not is_found:
        lines.append('Everything is finite on this machine: layers, losses, gradients and statistics.')
    if not is_found or count > 1:
        lines += _differences(step, device, dtype)
    return Replay(lines, is_found)


def _run(
    model: nn.Module, step: dict[str, Any], watch: _Watch, device: torch.device, dtype: torch.dtype | None
) -> list[str]:
    """Run the batches of a step; return what was the first that is not finite, or nothing."""
    for index, batch in enumerate(step['batches'], 1):
        for key, value in batch['counts'].items():
            MessageHub.get_current_instance().update_info(key, value)
        data = unpack_batch(batch['data'])
        set_random_state(batch['random'], device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            losses = model(**model.data_preprocessor(data, True), mode='loss')
        total, values = model.parse_losses(losses)
        texts = [f'{name} {value.item():.4g}' for name, value in values.items()]
        watch.losses.append(f'  losses of batch {index}: {", ".join(texts)}')
        spoiled = [name for name, value in values.items() if not all_finite(value)]
        if spoiled:
            first = next((name for name in spoiled if name != 'loss'), 'their sum')
            return watch.forward or [f'Every layer gives finite values; the first loss that is not finite: {first}']
        (total * batch['share'] * batch['loss_scale']).backward()
        if watch.backward:
            return [*watch.forward, *watch.backward, f'  the loss was scaled by {batch["loss_scale"]:g}']
    gradients = {
        name: weight.grad / step['batches'][-1]['loss_scale']
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    if norms and not torch.stack(list(norms.values())).norm().isfinite():
        largest = max(gradients, key=lambda name: gradients[name].abs().max())
        return [
            'Each gradient is finite, but not the sum of their squares',
            f'  the largest is of {largest}: {describe_range(gradients[largest])}',
        ]
    before = step['state_dict']
    statistics = [name for name, value in model.named_buffers() if all_finite(before.get(name)) > all_finite(value)]
    if statistics:
        return [*watch.forward, f'Losses and gradients are finite, but not the statistics {examples(statistics)}']
    return []


def _differences(step: dict[str, Any], device: torch.device, dtype: torch.dtype) -> list[str]:
    """Say what may make the replay differ from the run."""
    now = str(dtype).removeprefix('torch.')
    rows = [
        (step['device'] != device.type, f'the run was on {step["device"]}, this on {device.type}'),
        (step['dtype'] != now, f'the run was in {step["dtype"]}, this in {now}'),
        (step['torch'] != torch.__version__, f'the run had torch {step["torch"]}, this has {torch.__version__}'),
        (
            step['ranks'] > 1,
            f'the run had {step["ranks"]} ranks, which share statistics, losses and gradients; this is one',
        ),
        (not step['is_whole'], 'the run was resumed amid this step, so its first batches are missing here'),
        (bool(step['left_out']), f'the batch had objects that are not kept: {", ".join(step["left_out"])}'),
    ]
    lines = [f'  {text}' for differs, text in rows if differs]
    return lines and ['What differs from the run:', *lines]
