"""Hooks of the Runner: last stage, seeds of samples, check of checkpoints, fast inference."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import HOOKS
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce, get_dist_info
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Dataset

from ..datasets.mix_dataset import NumberedSampler, SeededMixDataset
from ..datasets.mosaic import MosaicAffineMixUp
from ..models.fast import speed_up
from ..utils.checkpoint import check_weights, compare_weights
from ..utils.options import CountOr0, OptionError, checked_options
from .branches import check_multi_source, unwrapped_model, walk_datasets, walk_transforms


def find_mosaics(dataset: Dataset) -> Iterator[MosaicAffineMixUp]:
    """Find all mosaic transforms of a dataset and of those that it wraps."""
    return (transform for _, transform in walk_transforms(dataset) if isinstance(transform, MosaicAffineMixUp))


@HOOKS.register_module()
@checked_options
class LastStageHook(Hook):
    """Close mosaic and mixup and turn the L1 loss on for the last epochs.

    Only the number of the epoch decides, so a resumed run does the same. Workers need no restart, since the transform
    shares its switch with them in memory. Heads are found wherever they are in the model, such as in the detector of a
    tracker, or in student and teacher.

    Args:
        num_last_epochs: Length of the last stage; 0 for none.

    Raises:
        OptionError: A negative length; a training loop without epochs, a head without ``use_l1``.
    """

    def __init__(self, num_last_epochs: CountOr0 = 20) -> None:
        self.num_last_epochs = num_last_epochs
        self._is_last = False

    def before_train(self, runner: Runner) -> None:
        """Check loop and head now, not only when the last stage begins."""
        if self.num_last_epochs and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise OptionError('LastStageHook counts epochs: use EpochBasedTrainLoop, or num_last_epochs=0')
        if runner.epoch < runner.max_epochs - self.num_last_epochs:
            # Of a run that is resumed before its last stage, after an earlier one: the log would go on showing it.
            runner.message_hub.log_scalars.pop('train/loss_l1', None)
        if self.num_last_epochs and not self._heads(runner):
            raise OptionError('LastStageHook turns on the L1 loss of a head, and no part of this model has use_l1')

    def before_train_epoch(self, runner: Runner) -> None:
        """Switch to the last stage at its first epoch."""
        is_last = runner.epoch >= runner.max_epochs - self.num_last_epochs
        if is_last == self._is_last:
            return
        self._is_last = is_last
        mosaics = list(find_mosaics(runner.train_dataloader.dataset))
        for mosaic in mosaics:
            mosaic.close(is_last)
        for head in self._heads(runner):
            head.use_l1 = is_last
        runner.logger.info(
            f'Last stage from epoch {runner.epoch + 1} of {runner.max_epochs}: with L1 loss, '
            + ('no mosaic and mixup.' if mosaics else 'and there is no MosaicAffineMixUp to close.')
        )

    @staticmethod
    def _heads(runner: Runner) -> list[nn.Module]:
        return [module for module in runner.model.modules() if hasattr(module, 'use_l1')]


@HOOKS.register_module()
@checked_options
class MixDatasetHook(Hook):
    """Set seed and epoch of each :class:`SeededMixDataset`, and report its damaged images.

    A sampler that may give an index several times an epoch gets a sample of its own for each. How mmdet's
    MultiSourceSampler mixes datasets is checked.
    """

    def before_train(self, runner: Runner) -> None:
        """Find the datasets.

        Raises:
            OptionError: A wrapper around one would repeat samples within an epoch, or see :func:`check_multi_source`.
        """
        check_multi_source(runner)
        self._datasets, self._num_damaged = [], 0
        for dataset in walk_datasets(runner.train_dataloader.dataset):
            if isinstance(getattr(dataset, 'dataset', None), SeededMixDataset):
                raise OptionError(
                    f'{type(dataset).__name__} around SeededMixDataset would repeat its samples: swap the two'
                )
            if isinstance(dataset, SeededMixDataset):
                self._datasets.append(dataset)
        batches = runner.train_dataloader.batch_sampler
        is_seeded = self._datasets and not isinstance(runner.train_loop, IterBasedTrainLoop)
        if is_seeded and not isinstance(batches.sampler, DefaultSampler):
            batches.sampler = NumberedSampler(batches.sampler, *get_dist_info())

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the samples of this epoch."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return  # without epochs the seed would stay the same, and each round over the dataset would repeat
        for i, dataset in enumerate(self._datasets):
            dataset.set_epoch(runner.seed + i, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Report how many damaged images all ranks together have found."""
        found, total = 0, 0
        for dataset in self._datasets:
            damaged = dataset.damaged.clone()
            all_reduce(damaged)
            found, total = found + int((damaged > 0).sum()), total + len(dataset)
        if found:
            new = found - self._num_damaged
            runner.logger.warning(f'{found} of {total} training images cannot be read, {new} new in this epoch.')
        self._num_damaged = found


# Weights whose shapes depend on the number of classes.
CLASS_LAYER = re.compile(r'\.cls_(preds|towers)\.')


@HOOKS.register_module()
@checked_options
class CheckpointCheckHook(Hook):
    """Refuse a checkpoint that does not fit the model; mmengine would load what fits of it.

    Fine-tuning (``load_from``) may change the classes: the class layers then start anew, which is logged. In a model
    that holds detectors (the detector of a tracker; student and teacher), the checkpoint of a detector is for each.
    """

    priority = 'VERY_HIGH'  # before the EMA hook, which copies the loaded weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Raises:
            CheckpointError: They differ in more than the class layers, or the model is not being fine-tuned.
        """
        model = runner.model
        while hasattr(model, 'module'):  # DDP, test-time augmentation
            model = model.module
        wanted = model.state_dict()
        state_dict = checkpoint.get('state_dict', checkpoint)
        inner = [name for name, child in model.named_children() if isinstance(child, BaseDetector)]
        if inner and not any(key.removeprefix('module.').split('.')[0] in inner for key in state_dict):
            weights = {key.removeprefix('module.'): value for key, value in state_dict.items()}
            state_dict.clear()
            state_dict.update({f'{name}.{key}': value for name in inner for key, value in weights.items()})
            runner.logger.info(f'A checkpoint of a detector, for {" and ".join(inner)} of {type(model).__name__}.')
        names = {key.removeprefix('module.'): key for key in state_dict}
        found = {name: state_dict[key] for name, key in names.items()}
        is_training = isinstance(runner.optim_wrapper, OptimWrapper)
        others = compare_weights(found, wanted).misshapen
        if is_training and not runner._resume and others and all(map(CLASS_LAYER.search, others)):
            for name in others:
                del state_dict[names[name]], found[name], wanted[name]
            runner.logger.info(
                f'Other classes than in the checkpoint: {len(others)} tensors of class layers start anew.'
            )
        check_weights(found, wanted, 'CheckpointCheckHook: the checkpoint')


@HOOKS.register_module()
@checked_options
class FastInferenceHook(Hook):
    """Test with the model of :func:`speed_up`: ``custom_hooks=[dict(type='FastInferenceHook')]`` in a config.

    A faster copy replaces the runner's model during the test only. The original, and the average that the EMA hook
    swaps in and out of it, stay as they are.

    Args:
        compiled: As in :func:`speed_up`.
    """

    # The EMA hook must have put its average into the model before it is copied.
    priority = 'LOWEST'

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self._original: nn.Module | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the model by a faster copy."""
        self._original = runner.model
        model = unwrapped_model(runner)
        runner.model = speed_up(model, self.compiled)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the model back."""
        runner.model, self._original = self._original, None
