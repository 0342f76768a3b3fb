"""The last stage of training, and training without a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from mmdet.registry import HOOKS, MODEL_WRAPPERS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from .mix_dataset import SeededMixDataset
from .options import CountOr0, checked_options
from .transforms import MosaicAffineMixUp


def walk_datasets(dataset: Dataset) -> Iterator[Dataset]:
    """A dataset and all those that it wraps."""
    yield dataset
    # mmengine's num_batch_per_epoch wraps one as _dataset.
    inner = [getattr(dataset, name, None) for name in ('dataset', '_dataset')]
    for inner_dataset in (*inner, *getattr(dataset, 'datasets', ())):
        if inner_dataset is not None:
            yield from walk_datasets(inner_dataset)


def find_mosaics(dataset: Dataset) -> Iterator[MosaicAffineMixUp]:
    """All mosaic transforms of a dataset and of those that it wraps."""
    for inner in walk_datasets(dataset):
        pipeline = getattr(inner, 'pipeline', ())
        for transform in getattr(pipeline, 'transforms', pipeline):
            if isinstance(transform, MosaicAffineMixUp):
                yield transform


@HOOKS.register_module()
@checked_options
class LastStageHook(Hook):
    """Close mosaic and mixup and turn the L1 loss on for the last epochs.

    It looks at the number of the epoch alone, so it does the same in a resumed run, and nothing is restarted: the
    transform holds its switch in memory that it shares with the loader's workers.

    Args:
        num_last_epochs: Length of the last stage; 0: there is none.

    Raises:
        ValueError: A negative length; a training loop without epochs, a head without ``use_l1``.
    """

    def __init__(self, num_last_epochs: CountOr0 = 20) -> None:
        self.num_last_epochs = num_last_epochs
        self._is_last = False

    def before_train(self, runner: Runner) -> None:
        """Find mistakes now, not in the last stage."""
        if self.num_last_epochs and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError('LastStageHook counts epochs: use EpochBasedTrainLoop, or num_last_epochs=0')
        if self.num_last_epochs and not hasattr(self._head(runner), 'use_l1'):
            raise ValueError('LastStageHook turns on the L1 loss of model.bbox_head, which has no use_l1')

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin the last stage when its first epoch does."""
        is_last = runner.epoch >= runner.max_epochs - self.num_last_epochs
        if is_last == self._is_last:
            return
        self._is_last = is_last
        mosaics = list(find_mosaics(runner.train_dataloader.dataset))
        for mosaic in mosaics:
            mosaic.close(is_last)
        self._head(runner).use_l1 = is_last
        runner.logger.info(
            f'Last stage from epoch {runner.epoch + 1} of {runner.max_epochs}: with L1 loss, '
            + ('no mosaic and mixup.' if mosaics else 'and there is no MosaicAffineMixUp to close.')
        )

    @staticmethod
    def _head(runner: Runner) -> nn.Module | None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return getattr(model, 'bbox_head', None)


@HOOKS.register_module()
@checked_options
class MixDatasetHook(Hook):
    """Tell each :class:`SeededMixDataset` the seed and the epoch, and report its damaged images."""

    def before_train(self, runner: Runner) -> None:
        """Find the datasets.

        Raises:
            ValueError: A wrapper around one would repeat samples within an epoch.
        """
        self._datasets, self._num_damaged = [], 0
        for dataset in walk_datasets(runner.train_dataloader.dataset):
            if isinstance(getattr(dataset, 'dataset', None), SeededMixDataset):
                raise ValueError(
                    f'{type(dataset).__name__} around SeededMixDataset would repeat its samples: swap the two'
                )
            if isinstance(dataset, SeededMixDataset):
                self._datasets.append(dataset)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the samples of this epoch."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return  # There are no epochs: with this seed, each round over the dataset would be the same.
        for i, dataset in enumerate(self._datasets):
            dataset.set_epoch(runner.seed + i, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Count the damaged images that any rank has found."""
        found, total = 0, 0
        for dataset in self._datasets:
            damaged = dataset.damaged.clone()
            all_reduce(damaged)
            found, total = found + int((damaged > 0).sum()), total + len(dataset)
        if found:
            new = found - self._num_damaged
            runner.logger.warning(f'{found} of {total} training images cannot be read, {new} new in this epoch.')
        self._num_damaged = found


@MODEL_WRAPPERS.register_module()
class DeviceAwareDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's DDP, which also takes a model with SyncBN where there is no GPU: with plain BatchNorm then.

    Args:
        module: The model.
        device_ids: The GPU of this process; not used on a CPU.
        find_unused_parameters: As in PyTorch.
    """

    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None, find_unused_parameters: bool = False
    ) -> None:
        if get_device() == 'cpu':
            module, device_ids = revert_sync_batchnorm(module), None
        # BatchNorm's statistics are those of SyncBN, or each rank's own; newer torch has another name for the option.
        options = inspect.signature(DistributedDataParallel.__init__).parameters
        sync_buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in options else 'broadcast_buffers'
        super().__init__(
            module=module,
            device_ids=device_ids,
            find_unused_parameters=find_unused_parameters,
            **{sync_buffers: False},
        )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DeviceAwareOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, but a recipe for GPUs also trains on a CPU.

    Mixed precision with float16 exists on accelerators only. Without one this trains in float32, and says so, also of
    SyncBN, which mmengine's runner or :class:`DeviceAwareDistributedDataParallel` has taken out of the model by then;
    with one it changes nothing.
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
        return super().__call__(model)
