"""Loops: training that can be resumed inside an epoch, and validation with a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from mmdet.registry import LOOPS
from mmdet.utils import reduce_mean
from mmengine.logging import HistoryBuffer
from mmengine.runner import EpochBasedTrainLoop, ValLoop
from mmengine.runner.amp import autocast
from torch.utils.data import Sampler

from ..utils.options import OptionError
from .branches import unwrapped_model

# Key of the message hub, which checkpoints hold: [epoch, batches done, batches of an epoch] where a run was stopped.
INTERRUPTED = 'interrupted'


class _Rest:
    """A sampler without its first samples."""

    def __init__(self, sampler: Sampler, start: int) -> None:
        self._sampler = sampler
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self._sampler), self._start, None)

    def __len__(self) -> int:
        return len(self._sampler)  # of the whole epoch, which progress is counted by

    def __getattr__(self, name: str) -> object:
        return getattr(self._sampler, name)


def resolve_intervals(intervals: Sequence[tuple[int, int]] | None, max_epochs: int) -> list[tuple[int, int]]:
    """Turn negative epochs in pairs of (epoch, interval of validations from then on) into positive ones.

    Args:
        intervals: ``train_cfg.dynamic_intervals``; an epoch below 0 counts from the end of the run.
        max_epochs: Length of the run.
    """
    return [(epoch if epoch >= 0 else max(0, max_epochs + epoch), every) for epoch, every in intervals or ()]


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which resumes inside an epoch where :class:`SafeCheckpointHook` stopped it.

    The rest of the epoch is trained on the samples that it would have had, and all counters go on. If the number of
    batches in an epoch has changed (other ranks, another batch size), the epoch begins anew.

    Args:
        args: As of EpochBasedTrainLoop.
        max_epochs: Length of the run.
        dynamic_intervals: As of EpochBasedTrainLoop, but an epoch below 0 counts from the end: ``[(-20, 1)]`` validates
            after each of the last 20 epochs.
        kwargs: As of EpochBasedTrainLoop.
    """

    _done = 0

    def __init__(
        self, *args, max_epochs: int, dynamic_intervals: list[tuple[int, int]] | None = None, **kwargs
    ) -> None:
        intervals = resolve_intervals(dynamic_intervals, max_epochs)
        super().__init__(*args, max_epochs=max_epochs, dynamic_intervals=intervals, **kwargs)

    def run_epoch(self) -> None:
        """Train an epoch, or what is left of it."""
        epoch, done, total = self.runner.message_hub.runtime_info.pop(INTERRUPTED, (None, 0, 0))
        self._done = done if (epoch, total) == (self.epoch, len(self.dataloader)) else 0
        batch_sampler = self.dataloader.batch_sampler
        sampler = batch_sampler.sampler
        if self._done:
            self.runner.logger.info(f'Going on after batch {done} of {total} in epoch {epoch + 1}.')
            batch_sampler.sampler = _Rest(sampler, done * batch_sampler.batch_size)
        try:
            super().run_epoch()
        finally:
            batch_sampler.sampler, self._done = sampler, 0

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train one batch, counted from the beginning of the epoch."""
        super().run_iter(idx + self._done, data_batch)


@LOOPS.register_module()
class LossValLoop(ValLoop):
    """mmengine's validation, which also logs the losses, as ``loss_cls`` and so on, and their sum as ``val_loss``.

    They are means over batches and ranks, for the weights that are evaluated (the average, with EMA) and BatchNorm in
    evaluation mode. Each batch passes the model twice, which takes longer.

    Raises:
        OptionError: The pipeline loads no annotations.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if hasattr(unwrapped_model(self.runner), 'tiling'):
            raise OptionError('LossValLoop: TiledDetector has no loss of a whole picture: use ValLoop as val_cfg.type')
        names = [type(transform).__name__ for transform in self.dataloader.dataset.pipeline.transforms]
        if 'LoadAnnotations' not in names:
            raise OptionError(
                f'LossValLoop: the pipeline of val_dataloader has no LoadAnnotations, without which there is no loss: '
                f'{names}'
            )
        # Test pipelines load boxes after the resize, so the boxes are in pixels of the original image.
        self._boxes_are_original = not any('Resize' in name for name in names[names.index('LoadAnnotations') :])

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Compute the losses of a batch, then validate it."""
        model = unwrapped_model(self.runner)
        data_samples = [sample.clone() for sample in data_batch['data_samples']]
        batch = model.data_preprocessor({**data_batch, 'data_samples': data_samples})
        for sample in batch['data_samples'] if self._boxes_are_original else ():
            for instances in (sample.gt_instances, sample.ignored_instances):
                instances.bboxes = instances.bboxes * instances.bboxes.new_tensor(sample.scale_factor).repeat(2)
        with autocast(enabled=self.fp16):
            losses = model(**batch, mode='loss')
        super().run_iter(idx, data_batch)
        for name, loss in losses.items():
            # Averaged over ranks, so that all of them agree on when to stop early.
            self.val_loss.setdefault(name, HistoryBuffer()).update(float(reduce_mean(loss)))
