"""Runs that are stopped, are killed or fail lose nothing and name the reason."""

import copy
import errno
import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kill_and_resume import ROOT, assert_same, load
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.structures import InstanceData
from tool_runs import scalars

from yolov7_simple.engine import optimizers
from yolov7_simple.engine import safe_checkpoint as module
from yolov7_simple.engine.non_finite import NonFiniteLossHook
from yolov7_simple.engine.safe_checkpoint import AtomicLocalBackend, SafeCheckpointHook, repair_last_checkpoint
from yolov7_simple.runtime.files import replacing
from yolov7_simple.utils.options import OptionError

STEPS = 4  # of an epoch
ONE_CHECKPOINT = {'default_hooks.checkpoint.max_keep_ckpts': 1}
names = itertools.count()


class Before(Hook):
    """Do something to a run before a step, or before an image of a validation."""

    def __init__(self, action, step=None, val=None):
        self.action, self.step, self.val = action, step, val

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step:
            self.action(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx) == self.val:
            self.action(runner)


def last_checkpoint(work_dir):
    return load((work_dir / 'last_checkpoint').read_text())


def names_in(work_dir):
    return sorted(path.name for path in Path(work_dir).iterdir())


def checkpoints_in(work_dir):
    return [name for name in names_in(work_dir) if '.pth' in name]


@pytest.fixture
def limited(monkeypatch):
    """Let writes of more than a size fail half-way, as on a full disk.

    RLIMIT_FSIZE would do so for all of this process, also for what pytest prints into a file.
    """
    put = LocalBackend.put

    def limit(size):
        def put_some(self, obj, filepath):
            put(self, obj[:size], filepath)
            if len(obj) > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(LocalBackend, 'put', put_some)

    return limit


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, limited):
    backend, path = AtomicLocalBackend(), tmp_path / 'sub' / 'c.pth'
    backend.put(b'old', path)
    limited(1000)
    with pytest.raises(OSError, match=r'c\.pth was not written .* checkpoints before it are as they were'):
        backend.put(b'n' * 2000, path)
    assert path.read_bytes() == b'old' and names_in(path.parent) == ['c.pth']
    backend.put(b'n' * 1000, path)
    assert path.read_bytes() == b'n' * 1000


@pytest.mark.parametrize(
    'pointer, expected',
    [('', 'new'), ('torn.pth', 'new'), ('gone.pth', 'new'), ('old.pth', 'old'), (None, 'new')],
)
def test_resume_never_goes_by_a_torn_file(tmp_path, pointer, expected):
    for i, name in enumerate(['old', 'new', 'torn', 'best_x', '.later.1.part']):
        torch.save({'weight': torch.zeros(999)}, tmp_path / f'{name}.pth')
        os.utime(tmp_path / f'{name}.pth', (i, i))
    whole = (tmp_path / 'torn.pth').read_bytes()
    (tmp_path / 'torn.pth').write_bytes(whole[: len(whole) - 50])
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_text(pointer and str(tmp_path / pointer))
    repair_last_checkpoint(tmp_path)
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / f'{expected}.pth')


def test_resume_without_a_whole_checkpoint_starts_anew(tmp_path):
    repair_last_checkpoint(tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    (tmp_path / 'epoch_1.pth').write_bytes(b'PK')
    repair_last_checkpoint(tmp_path)
    assert names_in(tmp_path) == ['epoch_1.pth']


@pytest.fixture(scope='module')
def straight(run, tmp_path_factory):
    """A run that nothing stops."""
    folder = tmp_path_factory.mktemp('straight')
    run(folder, **ONE_CHECKPOINT)
    return folder


class BetterEachTime(Hook):
    """Make each validation the best so far, which a run this short does not ensure."""

    def after_val_epoch(self, runner, metrics=None):
        metrics['coco/bbox_mAP'] = runner.epoch / 10


def test_checkpoints_are_removed_when_their_successors_are_there(run, tmp_path, monkeypatch):
    present = {}  # for each checkpoint those that were there when it was written

    def put(self, obj, path, put=AtomicLocalBackend.put):
        before = names_in(tmp_path)
        put(self, obj, path)
        present.setdefault(Path(path).name, before)

    monkeypatch.setattr(AtomicLocalBackend, 'put', put)
    run(tmp_path, BetterEachTime(), **ONE_CHECKPOINT)
    assert 'epoch_1.pth' in present['epoch_2.pth'] and 'epoch_2.pth' in present['epoch_3.pth']
    bests = [name for name in present if name.startswith('best')]
    assert bests == [f'best_coco_bbox_mAP_epoch_{epoch}.pth' for epoch in (1, 2, 3)]
    assert all(before in present[after] for before, after in itertools.pairwise(bests))
    assert checkpoints_in(tmp_path) == [bests[-1], 'epoch_3.pth']
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    'name, where, saved, workers',
    [
        ('SIGUSR1', {'step': 6}, 'epoch_1_iter_6.pth', 0),
        ('SIGTERM', {'step': 2 * STEPS}, 'epoch_1_iter_8.pth', 1),
        ('SIGTERM', {'val': (2, 3)}, 'epoch_2.pth', 0),
        ('SIGTERM', {'val': (3, 3)}, 'epoch_3.pth', 0),
    ],
    ids=['in an epoch', 'in the last step of one', 'while evaluating', 'while evaluating the last epoch'],
)
def test_a_stopped_and_resumed_run_is_as_one_that_never_stopped(run, straight, tmp_path, name, where, saved, workers):
    """The same bits: weights, EMA, optimiser, schedule, best score, and all that was logged."""
    number = getattr(signal, name)
    options = {
        **ONE_CHECKPOINT,
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0,
    }

    def send(runner):
        # The signal also goes to the loader's workers, as from torchrun and slurm.
        for process in getattr(getattr(runner.train_dataloader, '_iterator', None), '_workers', ()):
            os.kill(process.pid, number)
        os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as stop:
        run(tmp_path, Before(send, **where), **options)
    assert stop.value.code == 128 + number == {'SIGTERM': 143, 'SIGUSR1': 138}[name]
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == saved
    steps = where.get('step', where.get('val', (0,))[0] * STEPS)
    assert last_checkpoint(tmp_path)['meta']['iter'] == steps

    run(tmp_path, resume=True, **options)
    assert_same(load(tmp_path / 'epoch_3.pth'), load(straight / 'epoch_3.pth'))
    assert checkpoints_in(tmp_path) == checkpoints_in(straight)
    keys = ('step', 'epoch', 'lr', 'loss')
    logs = [[[record[key] for key in keys] for record in scalars(folder) if 'loss' in record]
            for folder in (tmp_path, straight)]  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0]) == 3 * STEPS


def test_ranks_exchange_signals_every_few_steps_and_at_the_end_of_an_epoch(monkeypatch):
    asked = []
    monkeypatch.setattr(module, 'is_distributed', lambda: True)
    monkeypatch.setattr(module, 'all_reduce', lambda number, op: asked.append(int(number)))
    hook = SafeCheckpointHook(signal_interval=3)
    assert [hook._signal_on_any_rank(range(8), step) for step in range(8)] == [0] * 8
    assert asked == [0, 0, 0]  # after steps 2, 5 and 7
    hook._note_signal(signal.SIGTERM, None)
    # Once all ranks know of it they need not ask again.
    assert [hook._signal_on_any_rank(range(8), step) for step in range(8)] == [0, 0, *[signal.SIGTERM] * 6]
    assert asked == [0, 0, 0, signal.SIGTERM]
    with pytest.raises(OptionError, match='signal_interval must be a whole number, 1 or more'):
        SafeCheckpointHook(signal_interval=0)


def test_another_number_of_batches_begins_the_epoch_anew(run, tmp_path):
    stop = Before(lambda runner: os.kill(os.getpid(), signal.SIGTERM), step=6)
    with pytest.raises(SystemExit):
        run(tmp_path, stop)
    runner = run(tmp_path, resume=True, **{'train_dataloader.batch_size': 4})
    assert runner.iter == 3 * STEPS // 2


def test_mmengines_loop_goes_on_from_the_last_epoch(run, tmp_path):
    stop = Before(lambda runner: os.kill(os.getpid(), signal.SIGTERM), step=6)
    options = {'train_cfg.type': 'EpochBasedTrainLoop'}
    with pytest.raises(SystemExit):
        run(tmp_path, stop, **options)
    assert last_checkpoint(tmp_path)['meta']['iter'] == STEPS
    assert run(tmp_path, resume=True, **options).iter == 3 * STEPS


def test_a_full_disk_leaves_the_previous_checkpoints(run, tmp_path, limited):
    size = 100_000
    with pytest.raises(OSError, match=r'epoch_2\.pth was not written .* make room, and go on with --resume'):
        run(tmp_path, Before(lambda runner: limited(size), step=6), **ONE_CHECKPOINT)
    limited(sys.maxsize)
    assert all(load(path) for path in tmp_path.glob('*.pth'))
    assert (tmp_path / 'epoch_1.pth').stat().st_size > size
    assert not list(tmp_path.glob('.*'))
    assert last_checkpoint(tmp_path)['meta']['epoch'] == 1
    assert run(tmp_path, resume=True).epoch == 3


def spoil(tensor_name, value):
    def action(runner):
        runner.model.get_parameter(tensor_name).data.fill_(value)

    return action


def test_what_a_killed_run_was_writing_is_removed_when_it_goes_on(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / 'best_coco_bbox_mAP_epoch_2.pth') as part:
        pass  # its name is all that is wanted
    part.write_bytes(b'torn')
    hook = SafeCheckpointHook()
    runner = SimpleNamespace(_resume=False, _load_from=None, work_dir=tmp_path, model=torch.nn.Module(), cfg={})
    hook.before_run(runner)
    assert part.exists()
    runner._resume = True
    hook.before_run(runner)
    assert not part.exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_files(run, project, tmp_path):
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, Before(spoil('neck.reduce_q5.conv.weight', float('inf')), step=6))
    message = str(error.value)
    assert 'Step 6, batch 2 of epoch 2, rank 0: ' in message and 'loss_obj nan' in message
    assert 'epoch_1.pth is as it was' in message
    files = message.split('files of this batch: ')[1].split(', ')
    assert len(files) > 2  # a mosaic has more than one
    assert all(Path(file).is_file() for file in files)
    assert last_checkpoint(tmp_path)['meta']['epoch'] == 1


def test_weights_that_are_not_finite_are_not_saved(run, tmp_path):
    """Overflowing statistics of BatchNorm do not show in a training loss, which uses those of the batch."""

    def spoil(runner):
        runner.model.backbone.get_buffer('stem.0.bn.running_var').fill_(float('nan'))

    with pytest.raises(FloatingPointError, match=r'Not saved after step 8: backbone\.stem\.0\.bn\.running_var is not'):
        run(tmp_path, Before(spoil, step=8))
    assert last_checkpoint(tmp_path)['meta']['epoch'] == 1 and 'epoch_2.pth' not in names_in(tmp_path)


@pytest.fixture
def mixed(monkeypatch):
    """mmengine's AmpOptimWrapper on a CPU, which can do bfloat16."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    monkeypatch.setattr(optimizers, 'has_mixed_precision', lambda: True)
    return {'optim_wrapper.dtype': 'bfloat16', 'default_hooks.non_finite.max_skipped': 3}


def spoil_gradient(runner):
    """From now on; the loss stays finite."""
    runner.model.neck.reduce_q5.conv.weight.register_hook(lambda gradient: gradient * float('inf'))


@pytest.mark.parametrize('clip', [{}, {'optim_wrapper.clip_grad': None, 'optim_wrapper.loss_scale': 512.0}], ids=str)
def test_gradients_that_stay_infinite_stop_a_run_in_mixed_precision(run, mixed, tmp_path, clip):
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, Before(spoil_gradient, step=6), **mixed, **clip)
    message = str(error.value)
    assert 'Step 8, batch 4 of epoch 2, rank 0: ' in message and 'nan' not in message.split('grad_norm')[0]
    assert '3 steps in a row were skipped' in message and '.png' in message.split('files of this batch: ')[1]
    assert last_checkpoint(tmp_path)['meta']['epoch'] == 1
    # The advice: in float32.
    assert 'go on from it with --resume' in message and '--cfg-options optim_wrapper.type=OptimWrapper' in message
    off = {'optim_wrapper.type': 'OptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'}
    assert run(tmp_path, resume=True, **off).epoch == 3


def test_without_a_scaler_an_infinite_gradient_stops_at_once(run, mixed, tmp_path):
    with pytest.raises(FloatingPointError, match=r'^Step 6, .*The gradient is not finite'):
        run(
            tmp_path,
            Before(spoil_gradient, step=6),
            **mixed,
            **{'optim_wrapper.loss_scale': {'enabled': False, '_delete_': True}},
        )


def test_a_loss_scale_that_falls_stops_a_run(run, mixed, tmp_path):
    """Also if not each step is skipped."""

    def spoil_every_other(runner):
        def spoil(gradient):
            return gradient * (float('inf') if runner.iter % 2 else 1)

        runner.model.neck.reduce_q5.conv.weight.register_hook(spoil)

    with pytest.raises(FloatingPointError, match=r'^Step 4, .*The loss scale fell to 1\.64e\+04'):
        run(tmp_path, Before(spoil_every_other, step=1), **mixed, **{'default_hooks.non_finite.min_scale': 3e4})


def test_a_few_infinite_gradients_are_normal(run, mixed, tmp_path):
    def spoil_two(runner):
        handle = runner.model.neck.reduce_q5.conv.weight.register_hook(lambda gradient: gradient * float('inf'))
        runner.register_hook(Before(lambda runner: handle.remove(), step=8), 'VERY_HIGH')

    runner = run(tmp_path, Before(spoil_two, step=6), **mixed)
    assert runner.epoch == 3 and runner.optim_wrapper.loss_scaler.get_scale() == 2**14


def make_hostile_batch():
    """Boxes from below a pixel to the whole image, an image without boxes, and one of a single colour."""
    corner = torch.rand(6, 2) * 40
    boxes = torch.cat([corner, corner + torch.tensor([[0.01], [0.3], [0.9], [4], [20], [24]])], 1)
    counts = [boxes, boxes[:0], torch.tensor([[0, 0, 64, 64], [10, 10, 10, 10]]), boxes[:3]]
    samples = []
    for i, boxes in enumerate(counts):
        sample = DetDataSample(metainfo={'img_shape': (64, 64), 'img_path': f'{i}.jpg'})
        sample.gt_instances = InstanceData(bboxes=boxes.float(), labels=torch.arange(len(boxes)) % 2)
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in samples]
    inputs[3][:] = 255
    return {'inputs': inputs, 'data_samples': samples}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(('lr', 'logits'), [(0.002, 1), (2.0, 1), (0.002, 1e4)])
def test_a_hundred_steps_that_go_wrong_are_finite_or_stopped(small_model_cfg, tmp_path, dtype, lr, logits):
    """At a learning rate a thousand times too high, from ordinary and from extreme logits."""
    model = MODELS.build(copy.deepcopy(small_model_cfg))
    model.bbox_head.use_l1 = True
    for pred in (*model.bbox_head.cls_preds, *model.bbox_head.reg_preds, *model.bbox_head.obj_preds):
        pred.weight.data.mul_(logits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)
    hook = NonFiniteLossHook()
    runner = SimpleNamespace(
        iter=0,
        epoch=0,
        work_dir=tmp_path,
        message_hub=MessageHub(f'hundred {dtype} {lr} {logits}'),
        optim_wrapper=None,
        train_dataloader=SimpleNamespace(dataset=None),
    )
    batch = make_hostile_batch()
    stopped = None
    for runner.iter in range(100):
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            losses = model(**model.data_preprocessor(batch, True), mode='loss')
        total, outputs = model.parse_losses(losses)
        try:
            hook.after_train_iter(runner, runner.iter, batch, outputs)
        except FloatingPointError as error:
            stopped = str(error)
            break
        assert all(value.isfinite() for value in outputs.values())
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.unscale_(optimizer) if scaler.is_enabled() else None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        scaler.step(optimizer)
        scaler.update()
    if stopped:
        assert (lr, logits) != (0.002, 1)
        assert f'Step {runner.iter + 1}, ' in stopped and '0.jpg, 1.jpg, 2.jpg, 3.jpg' in stopped
    else:
        assert runner.iter == 99


def test_validation_loss_and_early_stopping(run, project, tmp_path):
    """The lines of docs/training.md."""
    lines = {
        'val_cfg.type': 'LossValLoop',
        'default_hooks.early_stopping': {
            'type': 'EarlyStoppingHook', 'monitor': 'val_loss', 'patience': 1, 'min_delta': 1e6
        },
    }  # fmt: skip
    page = (ROOT / 'docs/training.md').read_text()
    assert 'LossValLoop' in page and "type='EarlyStoppingHook', monitor='val_loss'" in page
    runner = run(tmp_path, **lines)
    assert runner.epoch == 2  # the first score is the best; the second is not much better
    losses = [record for record in scalars(tmp_path) if 'val_loss' in record]
    assert len(losses) == 2
    for record in losses:
        parts = [record[name] for name in ('loss_obj', 'loss_cls', 'loss_bbox')]
        assert sum(parts) + record.get('loss_l1', 0) == pytest.approx(record['val_loss'], rel=1e-4)


def test_the_validation_loss_is_that_of_the_boxes_in_the_resized_image(run, project, tmp_path):
    def values(work_dir, **options):
        runner = run(work_dir, **{'val_cfg.type': 'LossValLoop', 'train_cfg.max_epochs': 1, **options})
        statistics = [module.running_mean for module in runner.model.modules() if hasattr(module, 'running_mean')]
        return next(record for record in scalars(work_dir) if 'val_loss' in record), statistics

    cfg = Config.fromfile(project / 'config.py')
    steps = {step.type: step for step in cfg.val_dataloader.dataset.pipeline}
    # mmdet's own Resize resizes boxes that are loaded before it.
    order = ['LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackDetInputs']
    other = {'val_dataloader.dataset.pipeline': [steps[name] for name in order]}
    first, statistics = values(tmp_path / 'first')
    second, _ = values(tmp_path / 'second', **other)
    for name in ('val_loss', 'loss_obj', 'loss_bbox', 'loss_cls', 'coco/bbox_mAP'):
        assert first[name] == pytest.approx(second[name], rel=1e-5), name
    never = run(tmp_path / 'never', **{'train_cfg.max_epochs': 1})
    without = [module.running_mean for module in never.model.modules() if hasattr(module, 'running_mean')]
    assert all(torch.equal(a, b) for a, b in zip(statistics, without, strict=True))
    other['val_dataloader.dataset.pipeline'].pop(1)
    with pytest.raises(ValueError, match='no LoadAnnotations'):
        run(tmp_path / 'x', **{'val_cfg.type': 'LossValLoop', **other})


def test_twice_killed_and_resumed():
    """The short form of tests/manual/kill_and_resume.py."""
    command = [sys.executable, ROOT / 'tests/manual/kill_and_resume.py', '--kills', '2', '--epochs', '4']
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert '2 kills later: the same to the last bit' in result.stdout
