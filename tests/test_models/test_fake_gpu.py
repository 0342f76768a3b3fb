"""A training step and a prediction on fake CUDA tensors: no mixing of devices, no waits of ours, few launches.

Everything is counted in processes of their own, since PyTorch has to believe in a GPU there.
"""

from unittest import mock

import pytest
import torch
from launches import FakeRun, Launches, fake_gpu
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tool_runs import SMALL_OPTIONS, fork_server

from yolov7_simple import config_path

# What mmengine waits for in each step: its log has every loss and the norm of the gradient, the loss scaler reads
# whether it has to skip the step, and images and boxes come from the data loader.
HOST_WAITS = ('_get_valid_value', '_clip_grad', 'step', 'to')


def small_run() -> FakeRun:
    init_default_scope('mmdet')
    cfg = Config.fromfile(config_path('yolov7_tiny_8xb16-300e_coco.py'))
    cfg.merge_from_dict({key: value for key, value in SMALL_OPTIONS.items() if key.startswith('model.')})
    return FakeRun(cfg, images=3, size=128, boxes=3)


def count_all() -> dict[str, Launches]:
    with fake_gpu():
        run = small_run()
        run.train_step()  # the first one makes the optimiser's state
        counters = {'training': run.train_step(), 'prediction': run.predict()}
    return {name: (counter.launches, counter.waits, counter.of_stage()) for name, counter in counters.items()}


def count_broken() -> tuple[str, list]:
    """Faults that must be seen: priors that were left on the CPU; a loss that reads a value back."""
    with fake_gpu():
        run = small_run()
        head = run.model.bbox_head
        level_priors, loss_by_feat = head.level_priors, head.loss_by_feat

        def reads_back(*args):
            losses = loss_by_feat(*args)
            return {name: loss * loss.item() for name, loss in losses.items()}

        with mock.patch.object(head, 'loss_by_feat', reads_back):
            waits = run.train_step().waits
        error = ''
        with mock.patch.object(head, 'level_priors', lambda levels: [level.cpu() for level in level_priors(levels)]):
            try:
                run.train_step()
            except RuntimeError as mixed:
                error = str(mixed)
    return error, waits


def count_ops() -> tuple[list[str], int]:
    with fake_gpu():
        values, several = torch.ones(6, device='cuda'), [torch.ones(3, device='cuda') for _ in range(200)]
        with Launches() as counter:
            values[:3].view(3, 1).t()
            assert not counter.launches.total()
            values.add_(1)
            torch.optim.SGD([values.requires_grad_()], 0.1)
            torch._foreach_add_(several, 1.0)
            assert counter.launches.total() == 1 + 2
            values.detach().sum().item()
            values[values > 0]
            values.nonzero()
            torch.tensor([1.0, 2.0], device='cuda')
            values.cpu()
            values.tolist()
            torch.ones(3).to('cuda', non_blocking=True)
    return [wait.op for wait in counter.waits]


@pytest.fixture(scope='module')
def counted():
    with fork_server().Pool(1) as pool:
        return pool.apply(count_all)


def test_training_waits_for_nothing_of_ours(counted):
    _, waits, _ = counted['training']
    assert not [wait for wait in waits if wait.is_ours]
    assert {wait.callers[0].split()[-1] for wait in waits} <= {*HOST_WAITS}


def test_prediction_waits_once_a_batch(counted):
    _, waits, _ = counted['prediction']
    assert len([wait for wait in waits if wait.is_ours]) == 1
    assert {wait.callers[0].split()[-1] for wait in waits if not wait.is_ours} <= {*HOST_WAITS}


def test_what_does_not_compute_takes_few_launches(counted):
    _, _, stages = counted['training']
    assert stages['network'] > 500 and stages['assignment and loss'] > 50
    assert stages['optimiser'] < 60 and stages['EMA'] < 60


def test_faults_are_seen():
    with fork_server().Pool(1) as pool:
        error, waits = pool.apply(count_broken)
        ops = pool.apply(count_ops)
    assert 'cuda:0' in error and 'cpu' in error
    assert 'item' in [wait.op for wait in waits if wait.stage == 'assignment and loss']
    assert ops == ['item', 'index of bools', 'nonzero', 'copy to the device', *['copy from the device'] * 2]
