"""The optimiser: its groups of parameters, its fused form, and the states of checkpoints with other groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from mmengine.device import get_device
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from ..utils.checkpoint import CheckpointError
from ..utils.configs import type_name
from ..utils.options import OptionError
from .memory_format import match_memory_format
from .without_gpu import has_mixed_precision

# Options that choose how a step is computed, not what: they are of the machine and not of the run.
OF_THE_MACHINE = ('foreach', 'fused', 'capturable', 'differentiable')
# torch 2.6 and later have these fused for both kinds of device; measured: the others' may be slower, or missing.
FUSED_OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
FUSED_DEVICES = {'cpu', 'cuda'}
ADVICE = (
    'resume with the config of that run (beside the checkpoint in its folder), or begin a new run from its weights: '
    '--cfg-options load_from=CHECKPOINT without --resume'
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DeviceAwareOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor for any device, with few groups of parameters and a fused optimiser.

    - Without a device that AmpOptimWrapper supports, training is in float32. A line in the log says so, and that SyncBN
      is gone, which mmengine's runner or :class:`DeviceAwareDistributedDataParallel` has replaced by then.
      ``optim_wrapper.type=OptimWrapper`` alone turns mixed precision off.
    - mmengine gives each parameter a group of its own where ``paramwise_cfg`` is set. Here those of equal options share
      one.
    - SGD, Adam and AdamW are fused on CUDA and CPU, unless the config says ``fused`` or ``foreach`` itself.

    Raises:
        OptionError: ``paramwise_cfg`` multiplies a weight decay that the optimiser does not set.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        wrapper, name = optim_wrapper_cfg.get('type', 'OptimWrapper'), type_name(optim_wrapper_cfg) or 'OptimWrapper'
        self.is_replaced = name == 'AmpOptimWrapper' and not has_mixed_precision()
        # The recipe has a loss_scale.
        dropped = {'OptimWrapper': ('loss_scale',)}.get(name, ())
        if self.is_replaced:
            dropped, wrapper = ('loss_scale', 'dtype', 'use_fsdp'), 'OptimWrapper'
        kept = {key: value for key, value in optim_wrapper_cfg.items() if key not in dropped}
        optim_wrapper_cfg = {**kept, 'type': wrapper}
        custom = (paramwise_cfg or {}).get('custom_keys') or {}
        multipliers = [*(paramwise_cfg or {}), *(key for one in custom.values() for key in one)]
        decay = next((key for key in multipliers if key.endswith('decay_mult')), None)
        optimizer = optim_wrapper_cfg.get('optimizer') or {}
        if decay and optimizer and optimizer.get('weight_decay') is None:
            raise OptionError(
                f'optim_wrapper: paramwise_cfg has {decay}, a factor of the weight decay, and {type_name(optimizer)} '
                'sets none: set optim_wrapper.optimizer.weight_decay, to 0 for none'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        # mmengine would make the groups ConfigDicts, like the config that they are built from; dynamo refuses those.
        self.optimizer_cfg = dict(self.optimizer_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser and its wrapper."""
        if self.is_replaced:
            device = get_device()
            print_log(
                f'{"No GPU" if device == "cpu" else f"No mixed precision on {device}"}: training in float32 with plain '
                'BatchNorm, not mixed precision and SyncBN.',
                'current',
            )
        cls = self.optimizer_cfg['type']
        cls = OPTIMIZERS.get(cls) if isinstance(cls, str) else cls
        devices = {parameter.device.type for parameter in model.parameters()}
        if cls in FUSED_OPTIMIZERS and devices <= FUSED_DEVICES and not self.optimizer_cfg.keys() & {*OF_THE_MACHINE}:
            self.optimizer_cfg['fused'] = True
        wrapper = super().__call__(model)
        wrapper.optimizer.register_load_state_dict_post_hook(match_memory_format)
        return wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the parameters of a module to the groups, as mmengine does, and merge the groups of equal options.

        Raises:
            OptionError: Modules share a parameter, and ``bypass_duplicate`` is not set.
        """
        if prefix:  # called by the one below
            super().add_params(params, module, prefix, **kwargs)
            return
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_not_of_one_parameter)
        try:
            super().add_params(params, module, prefix, **kwargs)
        finally:
            logger.removeFilter(_is_not_of_one_parameter)
        params[:] = merge_groups(params, module)
        lines = (f'{len(group["params"])} with {_options(group) or "the defaults"}' for group in params)
        print_log(f'Parameters of the optimiser, in {len(params)} groups: {"; ".join(lines)}.', 'current')


def _is_not_of_one_parameter(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith('paramwise_options -- ')


def _options(group: dict) -> str:
    return ', '.join(f'{key}={value}' for key, value in group.items() if key != 'params')


def merge_groups(groups: Iterable[dict], model: nn.Module) -> list[dict]:
    """Merge groups of parameters whose options are equal.

    Args:
        groups: As for an optimiser.
        model: That the parameters are of.

    Returns:
        Groups in the order of their first parameters, which are pairs of name and parameter, as torch 2.6 takes them:
        checkpoints then hold the names.

    Raises:
        OptionError: A parameter comes twice.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    merged: list[dict] = []
    seen = set()
    for group in groups:
        options = {key: value for key, value in group.items() if key != 'params'}
        named = [(names[parameter], parameter) for parameter in group['params']]
        for name, parameter in named:
            if parameter in seen:
                raise OptionError(
                    f'optim_wrapper: {name} is shared by several modules, and would be trained several times a step; '
                    'set optim_wrapper.paramwise_cfg.bypass_duplicate=True'
                )
            seen.add(parameter)
        like = (other for other in merged if {key: other[key] for key in other if key != 'params'} == options)
        if (same := next(like, None)) is not None:
            same['params'] += named
        else:
            merged.append({**options, 'params': named})
    return merged


def log_gradient_norm(wrapper: OptimWrapper) -> None:
    """Have a wrapper log the norm of the gradient as ``train/grad_norm``, also if it does not clip by it.

    Args:
        wrapper: mmengine's; it goes on clipping as it did, or not at all.
    """
    options, clip = wrapper.clip_grad_kwargs, getattr(wrapper, 'clip_func', None)
    if options and wrapper.grad_name == 'grad_norm':
        return

    def measure(parameters: list[nn.Parameter], **kwargs) -> torch.Tensor:
        norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
        if options:
            clip(parameters, **kwargs)
        return norm

    # Without options mmengine would not call it.
    wrapper.clip_func, wrapper.grad_name, wrapper.clip_grad_kwargs = measure, 'grad_norm', options or {'norm_type': 2}


def saved_places(saved: dict, model: nn.Module) -> dict[str, int]:
    """Find the parameters in the saved state of an optimiser: name -> key in ``state``.

    Args:
        saved: As of ``Optimizer.state_dict``. Without names in it the parameters are in the order of the model, all or
            those that are trained; so are those of mmengine's constructor.
        model: That was trained.

    Raises:
        CheckpointError: It has no names, and is in no known order.
    """
    groups = saved['param_groups']
    places = [index for group in groups for index in group['params']]
    names = [name for group in groups for name in group.get('param_names', ())]
    if len(names) != len(places):
        parameters = dict(model.named_parameters())
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        names = trained if len(places) == len(trained) else list(parameters)
        is_in_order = len(groups) == 1 or all(len(group['params']) == 1 for group in groups)
        if not is_in_order or len(names) != len(places) or not _has_shapes(saved['state'], places, names, parameters):
            raise CheckpointError(
                f'The optimiser of the checkpoint has {len(places)} parameters without names, in {len(groups)} groups, '
                f'which are not those of this config: {ADVICE}'
            )
    return dict(zip(names, places))


def _has_shapes(state: dict, places: list[int], names: list[str], parameters: dict[str, nn.Parameter]) -> bool:
    """Whether the first moments have the shapes of their parameters."""
    for name, place in zip(names, places):
        values = state.get(place, {})
        moment = values.get('exp_avg', values.get('momentum_buffer'))
        if moment is not None and moment.shape != parameters[name].shape:
            return False
    return True


def regroup_state(saved: dict, optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict, list[str]]:
    """Arrange what an optimiser has saved for each parameter in the groups of another one for the same model.

    Args:
        saved: As of ``Optimizer.state_dict``.
        optimizer: That is to load it.
        model: That both train.

    Returns:
        1. ``state`` of a state dict that ``optimizer`` takes; tensors are not copied.
        2. Names of the parameters that are trained and have none.

    Raises:
        CheckpointError: As of :func:`saved_places`.
    """
    places, names = saved_places(saved, model), {weight: name for name, weight in model.named_parameters()}
    weights = [weight for group in optimizer.param_groups for weight in group['params']]
    indices = [index for group in optimizer.state_dict()['param_groups'] for index in group['params']]
    state, missing = {}, []
    for weight, index in zip(weights, indices):
        values = saved['state'].get(places.get(names[weight]))
        if values is not None:
            state[index] = values
        elif weight.requires_grad:
            missing.append(names[weight])
    return state, missing
