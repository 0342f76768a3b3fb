"""A step that stops a run is kept, and a command replays it and names what is the first that is not finite."""

import copy
import re

import pytest
import torch
from mmdet.engine.hooks import CheckInvalidLossHook
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from test_safe_checkpoint import Before, mixed, spoil, spoil_gradient  # noqa: F401
from tool_runs import tool

from yolov7_simple.engine.kept_step import pack, unpack
from yolov7_simple.engine.safe_checkpoint import repair_last_checkpoint
from yolov7_simple.utils.checkpoint import read_checkpoint

LAYER = 'neck.reduce_q5.conv'


class Spy(Hook):
    """Copy the weights before each step, and change the batch of one."""

    def __init__(self, step=None, change=None):
        self.step, self.change, self.weights = step, change, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weights = copy.deepcopy(runner.model.state_dict())
        if runner.iter + 1 == self.step:
            self.change(data_batch)


@pytest.fixture
def stopped(run, tmp_path, project):
    """Train until the run stops; return its message and what the command prints about it."""

    def stop(*hooks, ok=True, **options):
        with pytest.raises(FloatingPointError) as error:
            run(tmp_path, *hooks, **options)
        message = str(error.value)
        command = re.search(r'non_finite\.pth keeps the step, and `python tools/replay_step\.py (.+) (.+)` says', message)
        assert command.groups() == (str(tmp_path / 'config.py'), str(tmp_path / 'non_finite.pth'))
        # The saved config has no line in these runs, which leave its text out.
        return message, tool('replay_step.py', project / 'config.py', command[2], '--device', 'cpu', ok=ok)

    return stop


def losses(text):
    return re.findall(r'loss\w* [\d.e+-]+(?=[,\s])', text)


def test_a_layer_that_overflows_is_named(stopped, tmp_path):
    spy = Spy()
    _, output = stopped(Before(spoil(f'{LAYER}.weight', 1e38), step=6), spy)
    assert f'First layer whose output is not finite while its inputs are: {LAYER} (Conv2d)' in output
    assert re.search(r'inputs: -?[\d.e-]+ to [\d.]+\n  output: .* values not finite \(\d.*%\)', output)
    assert 'weight: 1e+38 to 1e+38' in output and 'Not finite before' not in output
    step = read_checkpoint(tmp_path / 'non_finite.pth')
    assert step['step'] == 6 and list(step['state_dict']) == list(spy.weights)
    for name, value in spy.weights.items():
        assert torch.equal(step['state_dict'][name], value), name


def test_weights_that_were_not_finite_before_are_the_answer(stopped):
    _, output = stopped(Before(spoil(f'{LAYER}.weight', float('inf')), step=6))
    assert f'Not finite before the step already: the weights or statistics {LAYER}.weight\n' in output
    assert f'while its inputs are: {LAYER} (Conv2d)' in output


def test_pixels_that_are_not_finite_are_the_answer(stopped):
    def change(batch):
        batch['inputs'] = [image.float() for image in batch['inputs']]
        batch['inputs'][1][0, 0, 0] = float('inf')

    _, output = stopped(Spy(3, change))
    assert 'Not finite before the step already: images or boxes of batch 1\n' in output


class Root(torch.autograd.Function):
    """The identity, with a gradient that overflows."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1e38 * 1e38


def test_a_gradient_alone(run, stopped, monkeypatch):
    pass
