"""The last stage of training, and training without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from mmdet.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from .transforms import MosaicAffineMixUp


def find_mosaics(dataset: Dataset) -> Iterator[MosaicAffineMixUp]:
    """All mosaic transforms of a dataset and of those that it wraps."""
    pipeline = getattr(dataset, 'pipeline', ())
    for transform in getattr(pipeline, 'transforms', pipeline):
        if isinstance(transform, MosaicAffineMixUp):
            yield transform
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from find_mosaics(inner)


@HOOKS.register_module()
class LastStageHook(Hook):
    """Close mosaic and mixup and turn the L1 loss on for the last epochs.

    It looks at the number of the epoch alone, so it does the same in a resumed run, and nothing is restarted: the
    transform holds its switch in memory that it shares with the loader's workers.

    Args:
        num_last_epochs: Length of the last stage; 0: there is none.

    Raises:
        ValueError: A negative length.
    """

    def __init__(self, num_last_epochs: int = 20) -> None:
        if num_last_epochs < 0:
            raise ValueError(f'LastStageHook: num_last_epochs must be 0 or more, got {num_last_epochs}')
        self.num_last_epochs = num_last_epochs
        self._begun = False

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin the last stage when its first epoch does."""
        if self._begun or runner.epoch < runner.max_epochs - self.num_last_epochs:
            return
        self._begun = True
        for mosaic in find_mosaics(runner.train_dataloader.dataset):
            mosaic.close()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.bbox_head.use_l1 = True
        runner.logger.info(f'Last stage from epoch {runner.epoch + 1}: no mosaic and mixup, with L1 loss.')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DeviceAwareOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, but a recipe for GPUs also trains on a CPU.

    Mixed precision with float16 and SyncBN exist on accelerators only. Without one this trains in float32 with plain
    BatchNorm, and says so; with one it changes nothing.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.on_cpu = get_device() == 'cpu'
        if self.on_cpu and optim_wrapper_cfg.get('type') == 'AmpOptimWrapper':
            dropped = ('type', 'loss_scale', 'dtype', 'use_fsdp')
            kept = {key: value for key, value in optim_wrapper_cfg.items() if key not in dropped}
            optim_wrapper_cfg = {'type': 'OptimWrapper', **kept}
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser and its wrapper."""
        if self.on_cpu:
            print_log('No GPU: training in float32 with plain BatchNorm, not mixed precision and SyncBN.', 'current')
            # The parameters stay the same objects, which DDP around the model relies on.
            revert_sync_batchnorm(model)
        return super().__call__(model)
