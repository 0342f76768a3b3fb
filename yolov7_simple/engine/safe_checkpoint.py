"""Checkpoints that are never torn, and runs that can be stopped at any moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint
from torch.utils.data import DataLoader

from ..runtime.files import remove_partial, replacing, write_json
from ..utils.options import Count, check_options
from .kept_step import STEP_STEM
from .loops import INTERRUPTED, ResumableTrainLoop
from .provenance import PROVENANCE, describe_run
from .recompute import named_modules, recompute_activations
from .resume import keep_gradients, restore_run
from .run_checks import check_run

BACKEND = 'yolov7_simple.atomic'
VALIDATED = 'judged_epoch'  # key of the message hub: the last epoch that was evaluated


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write to a temporary file, sync it to the disk, and rename it.

        Raises:
            OSError: Writing failed; a file that was there before is unchanged.
        """
        try:
            with replacing(Path(filepath), to_disk=True) as temporary:
                super().put(obj, temporary)
        except OSError as error:
            raise OSError(
                error.errno,
                f'{error.strerror}: {filepath} was not written ({len(obj) / 2**20:.1f} MiB). The checkpoints before it '
                'are as they were: make room, and go on with --resume',
            ) from error


def repair_last_checkpoint(work_dir: str | Path) -> None:
    """Let ``last_checkpoint``, which --resume reads, name the newest intact checkpoint if its own is not usable.

    It may be torn itself, or name a checkpoint that other hooks left torn, or that moved with its folder.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    # DeepSpeed's checkpoints are folders. All others are zip archives; a torn one lacks the directory at its end.
    if named and ('://' in named or Path(named).is_dir() or zipfile.is_zipfile(named)):
        return
    # best_*.pth and kept steps cannot be resumed from, as they hold no optimiser; unfinished files begin with a dot.
    files = [path for path in Path(work_dir).glob('*.pth') if not path.name.startswith(('best_', STEP_STEM, '.'))]
    whole = [path for path in files if zipfile.is_zipfile(path)]
    if named or files:
        newest = max(whole, key=lambda path: path.stat().st_mtime, default=None)
        print_log(
            f'{pointer} names {named or "no file"}, which is not a whole checkpoint. '
            + (f'Going on from {newest}.' if newest else 'There is no other: starting anew.'),
            'current',
            level=30,
        )
        if newest:
            AtomicLocalBackend().put(str(newest).encode(), pointer)
        else:
            pointer.unlink(missing_ok=True)


def shield_worker(signals: Sequence[int], init_fn: Callable | None, worker_id: int) -> None:
    """Start a worker that ignores signals to the whole process group, so that the current step can be finished."""
    if hasattr(signal, 'sigwaitinfo'):  # Linux: it tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=_obey_parent, args=(signals,), daemon=True).start()
    if init_fn is not None:
        init_fn(worker_id)


def _obey_parent(signals: Sequence[int]) -> None:
    while signal.sigwaitinfo(signals).si_pid != os.getppid():
        pass
    os._exit(0)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook for runs that can be killed at any moment.

    - A checkpoint gets its name once it is completely on the disk. Only then are the ones that it replaces removed
      (beyond ``max_keep_ckpts``, the previous best), so the disk needs room for one more.
    - ``--resume`` never starts from a torn file. It first evaluates an epoch whose evaluation is due, since the run may
      have been stopped during it.
    - At a signal the current step is finished, ``epoch_E_iter_I.pth`` is written, and all ranks exit with 128 + the
      signal's number: 143 after SIGTERM, 138 after SIGUSR1 on Linux. With :class:`ResumableTrainLoop`, ``--resume``
      goes on at the next step; other loops with epochs write no such file and go on after the last whole epoch. Ranks
      started by torchrun do the same when torchrun is gone.

    Args:
        signals: Names of the signals to react to.
        signal_interval: With several ranks, steps from one exchange of signals to the next, since each waits for the
            device. They are exchanged at the end of an epoch, too; a rank that is alone reacts at once.
        **kwargs: As in mmengine.

    Raises:
        OptionError: An interval below 1.
    """

    def __init__(
        self, *args, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1'), signal_interval: int = 10, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        check_options('SafeCheckpointHook', {'signal_interval': signal_interval}, {'signal_interval': (Count, 10)})
        self.signal_interval = signal_interval
        self.signals = [getattr(signal, name) for name in signals if hasattr(signal, name)]  # Windows lacks some
        self._signal = 0  # number of the signal that came
        self._agreed = 0  # the same, known to all ranks
        self._handlers: dict = {}
        self._outdated: list[str] = []
        self._saved_step = -1
        self._resumed_from: Path | None = None
        self._provenance: dict[str, str] = {}
        self._launcher = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None

    def before_run(self, runner: Runner) -> None:
        """Find what to resume from.

        Raises:
            OptionError: ``activation_checkpointing`` names no module.
        """
        named_modules(runner.model, runner.cfg.get('activation_checkpointing'))
        if runner._resume and runner._load_from is None:
            if is_main_process():
                repair_last_checkpoint(runner.work_dir)
                for pattern in ('*.pth', 'last_checkpoint'):
                    remove_partial(Path(runner.work_dir), pattern)
            barrier()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the position of the run, and let the config rule.

        Raises:
            CheckpointError: The run cannot go on from this checkpoint.
        """
        if runner._resume and isinstance(runner.optim_wrapper, BaseOptimWrapper):
            self._resumed_from = Path(runner._load_from or find_latest_checkpoint(runner.work_dir))
            self._provenance = describe_run(runner)
            restore_run(runner, checkpoint, str(self._resumed_from), self._provenance)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep gradients that wait for an update, and what made the checkpoint."""
        keep_gradients(runner, checkpoint)
        checkpoint['meta'][PROVENANCE] = self._provenance

    def before_train(self, runner: Runner) -> None:
        """Check the run, handle signals from now on, and evaluate the last epoch if a stopped run did not.

        Raises:
            OptionError: See :func:`check_run`.
        """
        check_run(runner)
        recompute_activations(named_modules(runner.model, runner.cfg.get('activation_checkpointing')))
        # The seed may be the checkpoint's by now.
        self._provenance = {**(self._provenance or describe_run(runner)), 'seed': str(runner.seed)}
        if is_main_process():
            write_json(Path(runner.log_dir) / 'provenance.json', self._provenance)
        known = runner.message_hub.runtime_info
        if self.backend_args is None and '://' not in str(self.out_dir or runner.work_dir):
            self.backend_args = {'backend': BACKEND}
        if self._resumed_from is not None and self._resumed_from.parent.resolve() != self._folder(runner).resolve():
            # Of another run: they are not this one's to remove.
            for name in ('keep_ckpt_ids', *(name for name in known if name.startswith('best_ckpt'))):
                known.pop(name, None)
        super().before_train(runner)
        # This instance is the hook's own, so only outdated checkpoints are removed through it.
        self.file_backend.remove = self._outdated.append

        if threading.current_thread() is threading.main_thread():  # only that one may set handlers
            self._handlers = {number: signal.signal(number, self._note_signal) for number in self.signals}
        loops = [runner.train_loop, *filter(None, [runner.val_loop])]
        for loop in loops:
            loader = loop.dataloader
            loader.worker_init_fn = partial(shield_worker, self.signals, loader.worker_init_fn)

        self._saved_step = runner.iter
        if runner._resume and runner.val_loop is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            loop = runner.train_loop
            loop._decide_current_val_interval()
            is_due = loop.epoch % loop.val_interval == 0 or loop.epoch == loop.max_epochs
            is_new = loop.epoch not in (known.get(INTERRUPTED, [None])[0], known.get(VALIDATED))
            if loop.epoch >= loop.val_begin and is_due and is_new:
                runner.val_loop.run()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save as mmengine does, and stop after a signal."""
        loop = runner.train_loop
        if isinstance(loop, ResumableTrainLoop):
            runner.message_hub.update_info(INTERRUPTED, [runner.epoch, batch_idx + 1, len(runner.train_dataloader)])
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        number = self._signal_on_any_rank(runner.train_dataloader, batch_idx)
        # A batch whose gradient waits for others (accumulative_counts) would be lost.
        if not number or not getattr(runner.optim_wrapper, 'should_update', lambda: True)():
            return
        step, name = runner.iter + 1, signal.Signals(number).name
        if isinstance(loop, EpochBasedTrainLoop) and not isinstance(loop, ResumableTrainLoop):
            self._exit(runner, number, f'{name}: stopped. --resume goes on from the last epoch: see ResumableTrainLoop')
        file_step = f'{runner.epoch}_iter_{step}' if self.by_epoch else step
        self._save_checkpoint_with_step(runner, file_step, {'epoch': runner.epoch, 'iter': step})
        self._exit(runner, number, f'{name}: stopped after step {step}, saved as {self.last_ckpt}; --resume goes on')

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop at once after a signal, if the weights that are being evaluated are saved."""
        # A resumed run may validate before training, when its step counts as saved: it was loaded from a checkpoint.
        if self._saved_step != runner.iter:
            return
        if number := self._signal_on_any_rank(runner.val_dataloader, batch_idx):
            self._exit(runner, number, f'{signal.Signals(number).name}: stopped; --resume evaluates this epoch first')

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint, which records that this epoch was evaluated."""
        runner.message_hub.update_info(VALIDATED, runner.epoch)
        super().after_val_epoch(runner, metrics)

    def after_train(self, runner: Runner) -> None:
        """Restore the signal handlers."""
        super().after_train(runner)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _folder(self, runner: Runner) -> Path:
        """Where checkpoints are written: mmengine adds the name of the run to a folder that is not the run's own."""
        if self.out_dir in (None, runner.work_dir):
            return Path(runner.work_dir)
        return Path(self.out_dir) / Path(runner.work_dir).name

    def _note_signal(self, number: int, frame: object) -> None:
        self._signal = number

    def _signal_on_any_rank(self, loader: DataLoader, batch_idx: int) -> int:
        """Number of a signal that any rank got, or 0. All ranks must call this at the same step, with its batch."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._signal = signal.SIGTERM
        if not is_distributed() or self._agreed:
            return self._agreed or self._signal
        if not (self.every_n_inner_iters(batch_idx, self.signal_interval) or self.end_of_epoch(loader, batch_idx)):
            return 0
        number = torch.tensor(self._signal)
        all_reduce(number, 'max')
        self._agreed = int(number)
        return self._agreed

    @staticmethod
    def _exit(runner: Runner, number: int, message: str) -> None:
        """Exit on all ranks together; otherwise the launcher would kill those that are still busy."""
        runner.logger.warning(message)
        barrier()
        sys.exit(128 + number)

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._saved_step = meta['iter']
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        absent = [key for key in self.save_best or () if key != 'auto' and key not in metrics]
        if self.save_best and (absent or not metrics):
            runner.logger.warning(
                f'No best checkpoint: this evaluation gave {", ".join(metrics) or "nothing"}, and save_best is '
                f'{", ".join(self.save_best)}. CocoMetric gives nothing where no image has a detection.'
            )
            return
        # 'auto' takes the first, which is to be the mean and not a class's.
        metrics = dict(sorted(metrics.items(), key=lambda item: item[0].endswith('_precision')))
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        while self._outdated:
            Path(self._outdated.pop()).unlink(missing_ok=True)
