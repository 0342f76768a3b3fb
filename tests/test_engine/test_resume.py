"""A resumed run does what its config says, from the position that the checkpoint has."""

import os
import shutil
import signal

import pytest
import torch
from conftest import write_coco
from kill_and_resume import assert_same, load
from mmengine.hooks import Hook
from tool_runs import scalars, tool

from yolov7_simple.utils.checkpoint import CheckpointError
from yolov7_simple.utils.config_differences import config_differences, read_config_text

STEPS = 4  # of an epoch
ACCUMULATED = {'optim_wrapper.accumulative_counts': 3}


class Worse(Hook):
    """Let the first validation be the best."""

    def after_val_epoch(self, runner, metrics=None):
        metrics['coco/bbox_mAP'] = 1 / runner.epoch


class Better(Hook):
    """Let each validation be the best so far."""

    def after_val_epoch(self, runner, metrics=None):
        metrics['coco/bbox_mAP'] = float(runner.epoch)


class Kill(Hook):
    def __init__(self, step):
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope='module')
def first(run, tmp_path_factory):
    """A run of three epochs, as it was meant to be."""
    folder = tmp_path_factory.mktemp('first')
    run(folder, Worse())
    return folder


def raw_weight(path, name):
    """A weight itself; a checkpoint with an average has that in its place."""
    return load(path)['ema_state_dict'][f'module.{name}']


def records(folder):
    return {record['step']: record for record in scalars(folder) if 'loss' in record}


def log_of(folder):
    return '\n'.join(path.read_text() for path in folder.glob('*/*.log'))


def assert_schedule(folder, straight, rel=1e-12):
    """The rates of a resumed run are those that a run with its config has at the same steps."""
    wanted, found = records(straight), records(folder)
    assert found and max(found) == max(wanted)
    for step, record in found.items():
        assert record['lr'] == pytest.approx(wanted[step]['lr'], rel=rel), step
        assert ('loss_l1' in record) == ('loss_l1' in wanted[step]), step


@pytest.mark.parametrize('epochs', [2, 5])
def test_another_length_has_its_own_schedule_and_last_stage(run, first, tmp_path, epochs):
    options = {'train_cfg.max_epochs': epochs}
    run(tmp_path / 'straight', **options)
    run(tmp_path / 'resumed', resume=first / 'epoch_1.pth', **options)
    assert_schedule(tmp_path / 'resumed', tmp_path / 'straight')


def test_a_finished_run_goes_on(run, first, tmp_path):
    work_dir = shutil.copytree(first, tmp_path / 'work')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_3.pth'))
    run(work_dir, resume=True)
    assert 'nothing is left to train. With train_cfg.max_epochs=6' in log_of(work_dir)
    run(tmp_path / 'straight', **{'train_cfg.max_epochs': 5})
    assert run(work_dir, resume=True, **{'train_cfg.max_epochs': 5}).epoch == 5
    later = {step: record for step, record in records(work_dir).items() if step > 3 * STEPS}
    wanted = records(tmp_path / 'straight')
    assert len(later) == 2 * STEPS
    assert [record['lr'] for record in later.values()] == [wanted[step]['lr'] for step in later]
    assert 'loss_l1' not in later[4 * STEPS] and 'loss_l1' in later[5 * STEPS]
    assert [line.split() for line in log_of(work_dir).splitlines() if 'max_epochs  ' in line] == [
        ['train_cfg.max_epochs', '3', '5']
    ]


@pytest.mark.parametrize('batch_size', [1, 4])
def test_another_batch_keeps_its_place_in_the_schedule(run, first, tmp_path, batch_size):
    options = {'train_dataloader.batch_size': batch_size}
    run(tmp_path / 'straight', **options)
    run(tmp_path / 'resumed', resume=first / 'epoch_1.pth', **options)
    assert_schedule(tmp_path / 'resumed', tmp_path / 'straight')


def test_rate_and_weight_decay_are_those_of_the_config(run, first, tmp_path):
    options = {'optim_wrapper.optimizer.lr': 0.001, 'optim_wrapper.optimizer.weight_decay': 0.5}
    runner = run(tmp_path / 'resumed', resume=first / 'epoch_1.pth', **options)
    wanted, found = records(first), records(tmp_path / 'resumed')
    assert found
    for step, record in found.items():
        assert record['lr'] == pytest.approx(wanted[step]['lr'] / 2, rel=1e-9)
    assert {group['weight_decay'] for group in runner.optim_wrapper.param_groups} == {0.0, 0.5}
    rows = [line.split() for line in log_of(tmp_path / 'resumed').splitlines()]
    for row in (
        ['optim_wrapper.optimizer.lr', '0.002', '0.001'],
        ['optim_wrapper.optimizer.weight_decay', '0.05', '0.5'],
    ):
        assert row in rows


def test_what_has_not_changed_is_not_reported_and_goes_on_to_the_last_bit(run, first, tmp_path):
    run(tmp_path, Worse(), resume=first / 'epoch_1.pth')
    assert 'what is of now rules' not in log_of(tmp_path)
    # The paths of the best checkpoints differ.
    one, other = load(tmp_path / 'epoch_3.pth'), load(first / 'epoch_3.pth')
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_same(one[key], other[key])


def test_a_seed_of_the_config_rules(run, first, tmp_path):
    assert run(tmp_path / 'a', resume=first / 'epoch_2.pth').seed == 1
    assert run(tmp_path / 'b', resume=first / 'epoch_2.pth', **{'randomness.seed': 7}).seed == 7


def test_a_checkpoint_without_an_optimiser_is_refused(run, first, tmp_path):
    (best,) = first.glob('best_*.pth')
    with pytest.raises(CheckpointError, match=r'no optimizer.*Resume from .*epoch_3\.pth.*load_from=.*best_'):
        run(tmp_path / 'a', resume=best)
    alone = shutil.copy(best, tmp_path)
    with pytest.raises(CheckpointError, match='Start a new run from these weights: --cfg-options load_from='):
        run(tmp_path / 'b', resume=alone)
    run(tmp_path / 'c', load_from=str(alone), **{'train_cfg.max_epochs': 1})


def test_nothing_of_another_run_is_removed(run, first, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in first.rglob('*')}
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'epoch_1.pth').write_text('not of this run')  # has the name of one that would be outdated
    run(other, Better(), resume=first / 'epoch_1.pth', **{'default_hooks.checkpoint.max_keep_ckpts': 1})
    assert {path: path.stat().st_mtime_ns for path in first.rglob('*')} == before
    assert (other / 'epoch_1.pth').read_text() == 'not of this run'
    assert len(list(other.glob('best_*.pth'))) == 1 and not (other / 'epoch_2.pth').exists()


def test_other_classes_are_refused(run, first, tmp_path):
    write_coco(tmp_path / 'data', classes=('disc', 'box'))
    dataset = {'data_root': str(tmp_path / 'data'), 'metainfo.classes': ('disc', 'box')}
    options = {f'train_dataloader.dataset.dataset.{key}': value for key, value in dataset.items()}
    with pytest.raises(CheckpointError, match=r"other classes.*\('box', 'disc'\), now \('disc', 'box'\).*load_from"):
        run(tmp_path, resume=first / 'epoch_1.pth', **options)


def test_another_optimiser_starts_anew_and_says_so(run, first, tmp_path):
    options = {
        'optim_wrapper.optimizer': {'_delete_': True, 'type': 'SGD', 'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.01}
    }
    runner = run(tmp_path, resume=first / 'epoch_2.pth', **options)
    assert 'another optimiser than the checkpoint: SGD keeps momentum_buffer' in log_of(tmp_path)
    states = runner.optim_wrapper.state_dict()['state'].values()
    assert states and all(set(state) == {'momentum_buffer'} for state in states)


def test_augmentation_data_and_options_of_the_model_are_those_of_the_config(run, first, tmp_path):
    write_coco(tmp_path / 'data', num_images=8)
    options = {
        'train_dataloader.dataset.pipeline.0.mixup_prob': 0.0,
        'train_dataloader.dataset.dataset.data_root': str(tmp_path / 'data'),
        'model.train_cfg.assigner.center_radius': 1.5,
    }
    runner = run(tmp_path, resume=first / 'epoch_2.pth', **options)
    assert runner.model.bbox_head.assigner.center_radius == 1.5
    assert runner.train_dataloader.dataset.pipeline[0].mixup_prob == 0.0
    log = log_of(tmp_path)
    assert all(f'  {key}  ' in log for key in options)


def test_a_model_of_other_shapes_is_refused(run, first, tmp_path):
    with pytest.raises(CheckpointError, match=r'bbox_head'):
        run(tmp_path, resume=first / 'epoch_2.pth', **{'model.bbox_head.stacked_convs': 1})


def test_frozen_stages_may_change(run, first, tmp_path):
    runner = run(tmp_path / 'frozen', resume=first / 'epoch_2.pth', **{'model.backbone.frozen_stages': 1})
    name = 'backbone.stem.0.conv.weight'
    # The last weights of a frozen layer are those that the run had, and not their average.
    assert torch.equal(runner.model.get_parameter(name), raw_weight(first / 'epoch_2.pth', name))
    thawed = run(tmp_path / 'thawed', resume=tmp_path / 'frozen/epoch_3.pth', **{'train_cfg.max_epochs': 4})
    assert not torch.equal(thawed.model.get_parameter(name), runner.model.get_parameter(name))


def test_without_an_average_the_weights_themselves_go_on(run, first, tmp_path):
    runner = run(tmp_path, resume=first / 'epoch_3.pth', custom_hooks=[])
    assert 'config none: it is dropped' in log_of(tmp_path)
    name = 'backbone.stem.0.conv.weight'
    assert torch.equal(runner.model.get_parameter(name), raw_weight(first / 'epoch_3.pth', name))


def test_gradients_that_wait_for_an_update_are_not_lost(run, tmp_path):
    run(tmp_path / 'straight', **ACCUMULATED)
    wanted = load(tmp_path / 'straight/epoch_3.pth')
    run(tmp_path / 'resumed', resume=tmp_path / 'straight/epoch_1.pth', **ACCUMULATED)
    with pytest.raises(SystemExit):
        run(tmp_path / 'stopped', Kill(step=5), **ACCUMULATED)  # waits for the update after step 6
    assert load(tmp_path / 'stopped/epoch_1_iter_6.pth')['meta']['iter'] == 6
    run(tmp_path / 'stopped', resume=True, **ACCUMULATED)
    for found in (load(tmp_path / folder / 'epoch_3.pth') for folder in ('resumed', 'stopped')):
        for key in ('state_dict', 'ema_state_dict', 'optimizer'):
            assert_same(found[key], wanted[key])


def test_a_checkpoint_within_an_epoch_goes_on_there(run, tmp_path):
    """mmengine's own option to save every few steps."""
    options = {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 3}
    options['default_hooks.checkpoint.max_keep_ckpts'] = -1
    run(tmp_path / 'straight', **options)
    run(tmp_path / 'resumed', resume=tmp_path / 'straight/iter_6.pth', **options)
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_same(load(tmp_path / 'resumed/iter_12.pth')[key], load(tmp_path / 'straight/iter_12.pth')[key])
    assert sorted(records(tmp_path / 'resumed')) == [7, 8, 9, 10, 11, 12]


def test_the_advice_of_a_run_that_diverged_works(run, first, tmp_path):
    """`--resume` with a lower rate, as NonFiniteLossHook says."""
    work_dir = shutil.copytree(first, tmp_path / 'work')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    run(work_dir, resume=True, **{'optim_wrapper.optimizer.lr': 1e-5})
    assert list(records(work_dir).values())[-1]['lr'] <= 1.01e-5  # 0.002 in the config


def test_a_config_text_is_read_without_running_it(tmp_path):
    text = f"""
import os
_base_ = ['x.py']
a = dict(type='mmdet.X', size=(1, 2), inner=[dict(b=None), dict(c=-1.5)], odd={{1: 2, 'x-y': [3]}})
f = open({str(tmp_path / 'gone')!r}, 'w')
"""
    content = read_config_text(text)
    assert content['a'] == {
        'type': 'mmdet.X', 'size': [1, 2], 'inner': [{'b': None}, {'c': -1.5}], 'odd': {1: 2, 'x-y': [3]},
    }  # fmt: skip
    assert content['f'].startswith('open(') and not (tmp_path / 'gone').exists()


def test_differences_of_configs():
    saved = "model = dict(type='mmdet.A', n=1, s=(1, 2))\nrandom_name = 3\nwork_dir = 'a'\n"
    same = {'model': {'type': 'A', 'n': 1, 's': [1, 2]}, 'other_name': 4, 'work_dir': 'b'}
    assert config_differences(saved, same) == []
    now = {'model': {'type': 'B', 'n': 1, 's': [1, 3], 'new': True}}
    assert config_differences(saved, now) == [
        ('model.type', 'A', 'B'),
        ('model.s', '[1, 2]', '[1, 3]'),
        ('model.new', '-', 'True'),
    ]


def test_as_a_user_types_it(tmp_path, project):
    """`tools/train.py CONFIG --resume CHECKPOINT` with more epochs."""
    arguments = ['train.py', project / 'config.py', '--work-dir', tmp_path]
    tool(*arguments)
    tool(*arguments, '--resume', tmp_path / 'epoch_2.pth', '--cfg-options', 'train_cfg.max_epochs=3')
    assert (tmp_path / 'epoch_3.pth').exists() and 'train_cfg.max_epochs' in log_of(tmp_path)
    (best,) = tmp_path.glob('best_*.pth')
    output = tool(*arguments, '--resume', best, ok=False)
    assert 'cannot be resumed from it' in output and 'Traceback' not in output
