"""Training on a machine without a GPU, with configs that are made for GPUs."""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
from collections.abc import Sequence

import torch
import torch.distributed as dist
from mmdet.registry import MODEL_WRAPPERS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def has_mixed_precision() -> bool:
    """Whether the device is one that mmengine's AmpOptimWrapper supports; Apple's MPS, as the CPU, is not.

    SyncBN and mmengine's start of torch.distributed need such a device, too.
    """
    return get_device() in ('cuda', 'npu', 'mlu', 'musa')


@MODEL_WRAPPERS.register_module()
class DeviceAwareDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's DDP, which without a GPU replaces SyncBN by plain BatchNorm.

    Args:
        module: The model.
        device_ids: The GPU of this process; not used on a CPU.
        find_unused_parameters: As in PyTorch.
    """

    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None, find_unused_parameters: bool = False
    ) -> None:
        if not has_mixed_precision():
            module, device_ids = revert_sync_batchnorm(module), None
        # SyncBN's statistics are equal on all ranks, BatchNorm's stay each rank's. Newer torch renamed the option.
        options = inspect.signature(DistributedDataParallel.__init__).parameters
        sync_buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in options else 'broadcast_buffers'
        super().__init__(
            module=module,
            device_ids=device_ids,
            find_unused_parameters=find_unused_parameters,
            **{sync_buffers: False},
        )


def join_processes_without_gpu(arguments: Sequence[str]) -> None:
    """Start torch.distributed on the CPU, for which mmengine requires a GPU.

    Args:
        arguments: Of one of mmdet's tools; its ``--launcher`` counts.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--launcher', default='none')
    launcher = parser.parse_known_args(arguments)[0].launcher
    if launcher == 'none' or has_mixed_precision() or dist.is_initialized():
        return
    if launcher == 'slurm' and 'SLURM_PROCID' in os.environ:
        use_slurms_numbers()
    if 'RANK' in os.environ:
        # The processes share the cores; torchrun's default is one thread each.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_of_this_machine()))
        dist.init_process_group('gloo')


def join_processes(launcher: str, cfg: Config) -> None:
    """Start torch.distributed as the runner of a config would, for what the ranks agree on before there is one.

    Args:
        launcher: As of mmdet's tools.
        cfg: Its ``env_cfg`` counts.
    """
    join_processes_without_gpu(['--launcher', launcher])
    if launcher != 'none' and has_mixed_precision() and not dist.is_initialized():
        init_dist(launcher, **(cfg.get('env_cfg') or {}).get('dist_cfg', {}))


def ranks_of_this_machine() -> int:
    """How many processes train on this machine; mmengine's get_local_size needs a group that it does not make."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))


def use_slurms_numbers() -> None:
    """Set torch.distributed's variables from slurm's, as mmengine does with a GPU."""
    nodes = subprocess.run(
        ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    os.environ.setdefault('MASTER_ADDR', nodes[0])
    os.environ.setdefault('MASTER_PORT', '29500')
    os.environ.update(
        RANK=os.environ['SLURM_PROCID'],
        LOCAL_RANK=os.environ['SLURM_LOCALID'],
        WORLD_SIZE=os.environ['SLURM_NTASKS'],
        LOCAL_WORLD_SIZE=os.environ.get('SLURM_NTASKS_PER_NODE', os.environ['SLURM_NTASKS']),
    )
