"""The hook that stops a run at numbers that are not finite."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from mmdet.engine.hooks import CheckInvalidLossHook
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import RuntimeInfoHook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint

from ..datasets.mix_dataset import RepeatedIndex, SeededMixDataset
from ..utils.options import AtLeast0, Count, checked_options
from .branches import walk_datasets, walk_samples
from .kept_step import KeptStep
from .optimizers import log_gradient_norm


@HOOKS.register_module()
@checked_options
class NonFiniteLossHook(CheckInvalidLossHook):
    """Stop when loss, gradient or weights are not finite, name the images of the batch, and do not save such weights.

    The loss is checked every ``interval`` steps, and the norm of the gradient in each. With a loss scaler, a few
    infinite gradients are normal: they tell it to skip the step and to lower its scale. Only gradients that stay so
    stop the run. No checkpoint is written with weights or statistics that are not finite.

    The step that stops the run is written to ``non_finite.pth`` in the work dir (with several ranks, by each one that
    found it, to ``non_finite_rankR.pth``): the weights before it, its batches and the random state, from which
    ``tools/replay_step.py`` runs it again. With ``interval`` above 1 it may be one after the step that went wrong.

    Nothing here waits for the device in each step: mmengine has read loss and norm for its log before.

    Args:
        interval: Steps from one check of the loss to the next.
        max_skipped: So many skipped steps in a row stop the run.
        min_scale: A loss scale that falls below stops the run; looked at when a gradient is not finite. The default is
            the smallest normal number of float16.
        keep_step: Keep the step for a replay. The price: memory for the weights once more on their device, for the
            images of a step's batches until the next one begins, and a copy of the weights a step.
    """

    def __init__(
        self, interval: Count = 1, max_skipped: Count = 30, min_scale: AtLeast0 = 2**-14, keep_step: bool = True
    ) -> None:
        super().__init__(interval)
        self._kept = KeptStep() if keep_step else None
        self.max_skipped = max_skipped
        self.min_scale = min_scale
        self._skipped = 0
        self._is_logged = False

    def before_train(self, runner: Runner) -> None:
        """Find out who reads the loss, and have the norm of the gradient logged in mixed precision."""
        self._is_logged = any(isinstance(hook, RuntimeInfoHook) for hook in runner.hooks[: runner.hooks.index(self)])
        if isinstance(runner.optim_wrapper, AmpOptimWrapper):
            log_gradient_norm(runner.optim_wrapper)
            # A scale that the user has set lower is meant so.
            self.min_scale = min(self.min_scale, runner.optim_wrapper.loss_scaler.get_scale())

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Keep the step as it is before it runs."""
        if self._kept is not None:
            self._kept.add(runner, data_batch)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Check the loss and the norm of the gradient.

        Raises:
            FloatingPointError: One of them is not finite, or the gradient stays so.
        """
        scalars = runner.message_hub.log_scalars
        norm = scalars['train/grad_norm'].current() if 'train/grad_norm' in scalars else 0.0
        reason = ''
        if getattr(getattr(runner.optim_wrapper, 'loss_scaler', None), 'is_enabled', bool)():
            reason = self._why_scaler_fails(runner, norm)
        elif not math.isfinite(norm):
            reason = 'The gradient is not finite. '
        if not reason and self.every_n_train_iters(runner, self.interval):
            loss = scalars['train/loss'].current() if self._is_logged else outputs['loss'].item()
            reason = '' if math.isfinite(loss) else 'The loss is not finite. '
        if not reason:
            return
        losses = {name: value.item() for name, value in outputs.items()}
        values = ', '.join(f'{name} {value:.4g}' for name, value in {**losses, 'grad_norm': norm}.items())
        files = self._files(runner, data_batch)
        found = (
            f'Step {runner.iter + 1}, batch {batch_idx + 1} of epoch {runner.epoch + 1}, rank {get_rank()}: {values}. '
            f'{reason}'
        )
        raise FloatingPointError(
            f'{found}{self._advice(runner)} {self._write_step(runner, found.strip())}'
            f'The {len(files)} files of this batch: {", ".join(files)}'
        )

    def _write_step(self, runner: Runner, found: str) -> str:
        """Write the step that was kept, and say how to replay it."""
        try:
            path = self._kept.write(runner, found) if self._kept is not None else None
        except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk; the run's own error counts
            return f'The step could not be written for a replay: {error}. '
        if path is None:
            return ''
        config = Path(runner.work_dir, Path(runner.cfg.filename or '').name)  # as mmengine has saved it
        arguments = (config if config.is_file() else 'CONFIG', path)
        command = shlex.join(['python', 'tools/replay_step.py', *map(str, arguments)])
        return f'{path} keeps the step, and `{command}` says which layer was the first. '

    def _why_scaler_fails(self, runner: Runner, norm: float) -> str:
        """Why a run with a loss scaler cannot go on, or nothing."""
        wrapper = runner.optim_wrapper
        if wrapper.should_update():
            self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped >= self.max_skipped:
            return f'{self._skipped} steps in a row were skipped, as their gradients were not finite. '
        if not math.isfinite(norm):  # only then it falls
            scale = wrapper.loss_scaler.get_scale()
            if scale < self.min_scale:
                return f'The loss scale fell to {scale:.3g}, as gradients are not finite again and again. '
        return ''

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights.

        Raises:
            FloatingPointError: One of them is not finite; nothing is written.
        """
        for name, value in (*checkpoint['state_dict'].items(), *checkpoint.get('ema_state_dict', {}).items()):
            if not value.isfinite().all():
                raise FloatingPointError(
                    f'Not saved after step {runner.iter}: {name} is not finite. {self._advice(runner)}'
                )

    @staticmethod
    def _advice(runner: Runner) -> str:
        last = find_latest_checkpoint(runner.work_dir)
        is_mixed = isinstance(runner.optim_wrapper, AmpOptimWrapper)
        return (
            (f'{last} is as it was: go on from it with --resume, and' if last else 'Nothing was saved yet: start again')
            + ' with a lower learning rate'
            + (', or in float32: --cfg-options optim_wrapper.type=OptimWrapper.' if is_mixed else '.')
        )

    @staticmethod
    def _files(runner: Runner, data_batch: dict) -> list[str]:
        """Paths of the images in a batch; for a mosaic, its random choices are repeated to find them."""
        images = [
            (
                sample.metainfo.get('img_path', 'unknown'),
                sample.metainfo.get('repeat', 0),
                sample.metainfo.get('sample_index'),
            )
            for sample in walk_samples(data_batch['data_samples'])
        ]
        files = [[path] for path, *_ in images]
        for dataset in walk_datasets(runner.train_dataloader.dataset):
            if isinstance(dataset, SeededMixDataset):
                index_of = {dataset.dataset.get_data_info(i)['img_path']: i for i in range(len(dataset))}
                for i, (path, repeat, index) in enumerate(images):
                    if path in index_of:  # and not of another dataset that is concatenated
                        index = index_of[path] if index is None else index
                        files[i] = dataset.sources(RepeatedIndex.number(index, repeat))
        return sorted({path for sources in files for path in sources})
