"""What a run shows of itself: plan, progress, a row an epoch, results, and the commands that come next."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner

from ..models.head import YOLOv7SimpleHead
from .branches import unwrapped_model
from .screen import Screen

WINDOW = 50  # steps that loss and speed are means of


def duration(seconds: float) -> str:
    """Word a time, such as ``3 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f'{seconds:.0f} s'
    if minutes < 60:
        return f'{minutes} min'
    if minutes < 24 * 60:
        return f'{minutes // 60} h {minutes % 60:02} min'
    return f'{minutes // 1440} d {minutes % 1440 // 60} h'


def as_typed(path: str | Path) -> str:
    """A path as it is typed in the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') or '://' in str(path) else relative


def command(tool: Path, *arguments: str | Path) -> str:
    """The line to type for a tool."""
    found = shutil.which('python')
    # Not resolved, since the Python of a virtual environment is a link.
    is_found = found is not None and Path(found).parent == Path(sys.executable).parent
    python = 'python' if is_found else as_typed(sys.executable)
    return shlex.join([python, str(tool), *map(as_typed, arguments)])


def main_metric(metrics: dict[str, float], save_best: str | None) -> str | None:
    """Name of the metric to show: the one that finds the best checkpoint, or else an mAP."""
    if save_best in metrics:
        return save_best
    return next((name for name in metrics if name.endswith('mAP')), next(iter(metrics), None))


class ScreenHook(Hook):
    """Shows a run on a :class:`Screen`.

    Args:
        screen: Where to.
        tools: Folder of the tools, as the user types it.
    """

    priority = 'LOWEST'  # after the checkpoint hook, which finds the best epoch

    def __init__(self, screen: Screen, tools: Path) -> None:
        self.screen, self.tools = screen, tools
        self._is_planned = False
        self._row: list[str] = []  # of an epoch that may yet be evaluated
        self._steps = 0  # of this epoch
        self._best: str | None = None
        self._begin, self._first = time.monotonic(), 0

    # Training.

    def before_train(self, runner: Runner) -> None:
        """Show the plan."""
        self._show_plan(runner)
        self._begin, self._first = time.monotonic(), runner.iter

    def before_train_epoch(self, runner: Runner) -> None:
        """Show the row of the epoch before, if it was not evaluated."""
        self._show_row()
        self._steps = 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Show progress."""
        self._steps += 1
        facts = [f'loss {self._mean(runner, "loss", WINDOW):.3f}']
        seconds, size = self._mean(runner, 'time', WINDOW), self._batch_size(runner)
        if size and seconds > 0:
            facts.append(f'{size / seconds:.3g} images/s')
        where = f'step {runner.iter + 1}/{runner.max_iters}'
        if self._has_epochs(runner):
            where = f'epoch {runner.epoch + 1}/{runner.max_epochs}  {batch_idx + 1}/{len(runner.train_dataloader)}'
        # Short enough for 80 columns.
        text = '  '.join([where, *facts, self._time_left(runner, runner.iter + 1)])
        self.screen.progress(text, runner.iter + 1, runner.max_iters)

    def after_train_epoch(self, runner: Runner) -> None:
        """Begin the row of this epoch, which waits for its evaluation."""
        if self._has_epochs(runner):
            loss, left = self._mean(runner, 'loss', self._steps), self._time_left(runner, runner.iter)
            self._row = [self._where(runner, runner.epoch + 1), f'loss {loss:7.3f}', left]

    def before_val_epoch(self, runner: Runner) -> None:
        """Show the plan, if a resumed run begins with an evaluation."""
        self._show_plan(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Show progress."""
        where = f'{self._where(runner, runner.epoch)}  evaluating {batch_idx + 1}/{len(runner.val_dataloader)}'
        self.screen.progress(where, runner.iter, runner.max_iters)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the row of this epoch."""
        if not self._row:  # without epochs, or a resumed run began with this evaluation
            loss, left = self._mean(runner, 'loss', WINDOW), self._time_left(runner, runner.iter)
            self._row = [self._where(runner, runner.epoch), f'loss {loss:7.3f}', left]
        name = main_metric(metrics or {}, self._save_best(runner))
        facts = [f'{label(one)} {metrics[one]:.3f}' for one in (name, f'{name}_50') if one in (metrics or {})]
        best = self._best_checkpoint(runner)
        facts.append('best' if best != self._best else '    ')
        self._best = best
        self._row[2:2] = facts
        self._show_row()

    def after_train(self, runner: Runner) -> None:
        """Show what was made, and what comes next."""
        self._show_row()
        self.screen.close()
        best, last = self._best_checkpoint(runner), runner.message_hub.runtime_info.get('last_ckpt')
        files = {str(path): what for path, what in ((last, 'the last weights'), (best, 'the best weights')) if path}
        checkpoint = next((path for path in (best, last) if path and Path(path).is_file()), None)
        config = Path(runner.work_dir, Path(runner.cfg.filename or '').name)
        where = f'epoch {runner.epoch}' if self._has_epochs(runner) else f'step {runner.iter}'
        stopped = ', stopped early' if runner.train_loop.stop_training else ''
        name, known = self._save_best(runner), runner.message_hub.runtime_info
        score = known.get('best_score', known.get(f'best_score_{name}'))
        found = f': best {label(name)} {score:.3f}' if name and score is not None else ''
        lines = [f'Done after {where}{stopped}, in {duration(time.monotonic() - self._begin)}{found}']
        lines += [f'  {as_typed(path)}   {what}' for path, what in reversed(files.items())]
        if config.is_file():
            lines.append(f'  {as_typed(config)}   the config')
        lines.append(f'  {as_typed(self._log(runner))}   the log')
        if checkpoint and config.is_file():
            lines += ['Next: detect (here in one image), report, export', *self._next(runner, config, checkpoint)]
        self.screen.say('\n'.join(lines))

    # Testing.

    def before_test_epoch(self, runner: Runner) -> None:
        """Let tables be shown."""
        self.screen.release()
        self.screen.shows_tables = True

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Show progress."""
        total = len(runner.test_dataloader)
        self.screen.progress(f'evaluating {batch_idx + 1}/{total}', batch_idx + 1, total)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the results, and what was made."""
        self.screen.close()
        # mmdet has a table of the classes.
        classes = {
            f'{one}_precision' for one in getattr(runner.test_dataloader.dataset, 'metainfo', {}).get('classes', ())
        }
        for name, value in (metrics or {}).items():
            if name.split('/', 1)[-1] not in classes:
                self.screen.say(f'{name}: {value:.4f}' if isinstance(value, float) else f'{name}: {value}')
        log = self._log(runner)
        files = {log.with_suffix('.json'): 'these numbers'}
        for metric in runner.test_evaluator.metrics:
            files[Path(getattr(metric, 'out_file_path', None) or '')] = 'the detections'
        for hook in runner.hooks:
            if getattr(hook, 'draw', False):
                files[Path(getattr(hook, 'test_out_dir', None) or '')] = 'pictures'
        files[log] = 'the log'
        made = [f'  {as_typed(path)}   {what}' for path, what in files.items() if path.name]
        self.screen.say('\n'.join(made))

    # Parts.

    def _show_plan(self, runner: Runner) -> None:
        if self._is_planned:
            return
        self._is_planned = True
        self._best = self._best_checkpoint(runner)
        size, steps = self._batch_size(runner), len(runner.train_dataloader)
        images = f' of {size} images' if size else ''
        if self._has_epochs(runner):
            text = f'{runner.max_epochs} epochs of {steps} steps{images}'
        else:
            text = f'{runner.max_iters} steps{images}'
        device = next(runner.model.parameters()).device.type
        text += f', on {device.upper() if device == "cpu" else device}'
        if isinstance(runner.optim_wrapper, OptimWrapper):
            group = runner.optim_wrapper.param_groups[0]
            precision = 'mixed precision' if isinstance(runner.optim_wrapper, AmpOptimWrapper) else 'float32'
            text += f' in {precision}, learning rate {group.get("initial_lr", group["lr"]):.3g}'
        lines = [f'Training: {text}']
        if runner.iter:
            epoch = f'epoch {runner.epoch}, ' if self._has_epochs(runner) else ''
            lines.append(f'  goes on after {epoch}step {runner.iter}')
        elif runner._resume:
            lines.append(f'  starts anew: {as_typed(runner.work_dir)} has no checkpoint to go on from')
        elif runner._load_from:
            lines.append(f'  starts from the weights of {runner._load_from}')
        lines.append(f'  all else is in {as_typed(self._log(runner))}; --verbose shows it here')
        self.screen.release()
        self.screen.say('\n'.join(lines))

    def _show_row(self) -> None:
        if self._row:
            self.screen.say('   '.join(self._row).rstrip())
        self._row = []

    def _next(self, runner: Runner, config: Path, checkpoint: str) -> Sequence[str]:
        """The three commands."""
        loader = runner.val_dataloader if runner.val_loop is not None else runner.train_dataloader
        dataset = loader.dataset
        while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        image = dataset.get_data_info(0).get('img_path', 'IMAGE') if hasattr(dataset, 'get_data_info') else 'IMAGE'
        yield f'  {command(self.tools / "detect.py", config, checkpoint, image)}'
        yield f'  {command(self.tools / "report.py", runner.work_dir)}'
        model = unwrapped_model(runner)
        if isinstance(getattr(model, 'bbox_head', None), YOLOv7SimpleHead):
            out = config.with_suffix('.onnx')
            overwrite = ['--overwrite'] if out.exists() else []
            line = command(self.tools / 'export_onnx.py', config, checkpoint, out, '--images', image)
            yield '  ' + ' '.join([line, *overwrite])

    @staticmethod
    def _has_epochs(runner: Runner) -> bool:
        return not isinstance(runner.train_loop, IterBasedTrainLoop)

    def _where(self, runner: Runner, epoch: int) -> str:
        if self._has_epochs(runner):
            return f'epoch {epoch:{len(str(runner.max_epochs))}} of {runner.max_epochs}'
        return f'step {runner.iter} of {runner.max_iters}'

    @staticmethod
    def _mean(runner: Runner, name: str, window: int) -> float:
        """Mean of a logged number over the last steps; NaN if it was never logged."""
        history = runner.message_hub.log_scalars.get(f'train/{name}')
        return float('nan') if history is None else history.mean(max(1, window))

    @staticmethod
    def _batch_size(runner: Runner) -> int | None:
        size = getattr(runner.train_dataloader.batch_sampler, 'batch_size', None)
        return size and size * runner.world_size

    def _time_left(self, runner: Runner, done: int) -> str:
        """Time left if the rest goes on as this run has gone so far, evaluations and all."""
        if done <= self._first or done >= runner.max_iters:
            return ''
        each = (time.monotonic() - self._begin) / (done - self._first)
        return f'{duration(each * (runner.max_iters - done))} left'

    @staticmethod
    def _save_best(runner: Runner) -> str | None:
        """The metric by which the checkpoint hook finds the best epoch."""
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.save_best:
                return hook.key_indicators[0]
        return None

    def _best_checkpoint(self, runner: Runner) -> str | None:
        known = runner.message_hub.runtime_info
        return known.get('best_ckpt', known.get(f'best_ckpt_{self._save_best(runner)}'))

    @staticmethod
    def _log(runner: Runner) -> Path:
        return Path(runner.log_dir, f'{runner.timestamp}.log')


def label(metric: str) -> str:
    """Short name of a metric: ``mAP`` of ``coco/bbox_mAP``."""
    return re.sub(r'^(.*/)?(bbox_)?', '', metric)
