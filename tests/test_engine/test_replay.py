"""A step that stops a run is kept, and a command replays it and names what is the first that is not finite."""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from test_safe_checkpoint import Before, mixed, names_in, spoil, spoil_gradient  # noqa: F401
from tool_runs import tool

from yolov7_simple.engine import kept_step as module
from yolov7_simple.engine.kept_step import pack_batch, unpack_batch
from yolov7_simple.engine.safe_checkpoint import repair_last_checkpoint
from yolov7_simple.utils.checkpoint import read_checkpoint

LAYER = 'neck.reduce_q5.conv'
FIRST_LAYER = f'First layer whose output is not finite while its inputs are: {LAYER} (Conv2d)\n'


class Change(Hook):
    """Change the batch of a step."""

    def __init__(self, step, change):
        self.step, self.change = step, change

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step:
            self.change(data_batch)


@pytest.fixture
def stopped(run, tmp_path):
    """Train until the run stops; return its message and what the command prints about it."""

    def stop(*hooks, ok=True, **options):
        with pytest.raises(FloatingPointError) as error:
            run(tmp_path, *hooks, **options)
        message = str(error.value)
        command = re.search(r'non_finite\.pth keeps the step, and `python tools/replay_step\.py (.+) (.+)`', message)
        assert command.groups() == (str(tmp_path / 'config.py'), str(tmp_path / 'non_finite.pth'))
        assert names_in(tmp_path).count('non_finite.pth') == 1 and not list(tmp_path.glob('.*'))
        output = tool('replay_step.py', *command.groups(), '--device', 'cpu', ok=ok)
        assert output.startswith(f'Then: {message.split(" Nothing was saved yet")[0]}\nAgain, on cpu in ')
        return message, output

    return stop


def test_a_layer_that_overflows_is_named(stopped, tmp_path):
    before = {}
    save = Before(lambda runner: before.update(copy.deepcopy(runner.model.state_dict())), step=3)
    _, output = stopped(Before(spoil(f'{LAYER}.weight', 1e38), step=3), save)
    assert FIRST_LAYER in output and 'Not finite before' not in output
    assert re.search(r'inputs: -?[\d.e-]+ to [\d.]+\n  output: .* values not finite \(\d.*%\)', output)
    assert 'weight: 1e+38 to 1e+38' in output
    step = read_checkpoint(tmp_path / 'non_finite.pth')
    assert step['step'] == 3 and list(step['state_dict']) == list(before)
    for name, value in before.items():
        assert torch.equal(step['state_dict'][name], value), name


def test_weights_that_were_not_finite_before_are_the_answer(stopped):
    _, output = stopped(Before(spoil(f'{LAYER}.weight', float('inf')), step=2))
    assert f'Not finite before the step already: the weights or statistics {LAYER}.weight\n' in output
    assert FIRST_LAYER in output


def test_the_batch_of_an_accumulated_step_that_was_not_finite_is_the_answer(stopped):
    """It is the first of two, and the gradient is looked at after the second."""

    def change(batch):
        batch['inputs'] = [image.float() for image in batch['inputs']]
        batch['inputs'][1][0, 0, 0] = float('inf')

    options = {'optim_wrapper.accumulative_counts': 2, 'default_hooks.non_finite.interval': 2}
    _, output = stopped(Change(3, change), **options)
    assert 'step 4, 2 batches\nNot finite before the step already: images or boxes of batch 1\n' in output


def weigh_loss(value):
    """Give a loss a weight that the config does not have; the kept step must."""
    return lambda runner: setattr(runner.model.bbox_head.loss_obj, 'loss_weight', value)


def test_a_loss_alone(stopped):
    _, output = stopped(Before(weigh_loss(2e37), step=1))
    assert 'Every layer gives finite values; the first loss that is not finite: loss_obj\n' in output


@pytest.mark.parametrize(
    ('weight', 'expected'),
    [
        (5e36, r'First gradient that is not finite, going backwards: that of .*backbone\.\S+( \(Conv2d\))?\n'),
        (1e25, r'Each gradient is finite, but not the sum of their squares\n  the largest is of backbone\.\S+: '),
    ],
)
def test_a_gradient_alone(stopped, weight, expected):
    message, output = stopped(Before(weigh_loss(weight), step=3))
    assert 'The gradient is not finite' in message and 'loss nan' not in message
    assert re.search(expected, output) and 'First layer' not in output


def losses_in(text):
    return re.search(r'loss \S+, (loss_\w+ \S+, ?)*loss_\w+ [^\s,]+', text)[0]


def test_in_mixed_precision_a_replay_has_the_same_batch_and_scale(stopped, mixed):  # noqa: F811
    """What is not of the model cannot be repeated: a status of 1 and the same losses, of the same size and boxes."""
    message, output = stopped(Before(spoil_gradient, step=2), ok=False, **mixed)
    assert '3 steps in a row were skipped' in message and 'in mixed precision with bfloat16: step 4' in output
    assert losses_in(message) == losses_in(output.split('Again')[1])
    assert output.endswith('Everything is finite on this machine: layers, losses, gradients and statistics.\n')


def test_a_layer_that_overflows_in_mixed_precision(stopped, mixed):  # noqa: F811
    _, output = stopped(Before(spoil(f'{LAYER}.weight', 1e38), step=2), **mixed)
    assert 'in mixed precision with bfloat16: step 2' in output and FIRST_LAYER in output


def fail(run, folder, **options):
    with pytest.raises(FloatingPointError) as error:
        run(folder, Before(spoil(f'{LAYER}.weight', 1e38), step=1), **options)
    return str(error.value)


def test_files_of_others_are_refused(run, project, tmp_path):
    fail(run, tmp_path)
    file, config = tmp_path / 'non_finite.pth', project / 'config.py'
    (tmp_path / 'other.py').write_text(f'_base_ = {str(config)!r}\nmodel = dict(bbox_head=dict(num_classes=3))\n')
    output = tool('replay_step.py', tmp_path / 'other.py', file, ok=False)
    assert output.startswith(f'error: {file} is not of the model in {tmp_path}/other.py') and 'Traceback' not in output
    output = tool('replay_step.py', config, file, '--device', 'x', ok=False)
    assert output.startswith('error: --device x: cannot be used here: ') and output.count('\n') == 1
    step = read_checkpoint(file)
    torch.save({**step, 'version': 2}, file)
    output = tool('replay_step.py', config, file, ok=False)
    assert 'was written by a newer version of yolov7_simple' in output and output.count('\n') == 1
    torch.save({'state_dict': step['state_dict']}, file)
    assert 'holds no step to replay' in tool('replay_step.py', config, file, ok=False)
    # Nothing goes on from it.
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'gone.pth'))
    repair_last_checkpoint(tmp_path)
    assert not (tmp_path / 'last_checkpoint').exists()


def test_nothing_is_kept_where_nobody_wants_it(run, tmp_path):
    message = fail(run, tmp_path, **{'default_hooks.non_finite.keep_step': False})
    assert 'replay' not in message and 'non_finite.pth' not in names_in(tmp_path)


def test_a_step_that_cannot_be_written_does_not_hide_why_the_run_stopped(run, tmp_path, monkeypatch):
    def save(step, path):
        raise RuntimeError('disk full')

    monkeypatch.setattr(module.torch, 'save', save)
    message = fail(run, tmp_path)
    assert 'loss_obj nan' in message and 'could not be written for a replay: disk full. The ' in message


def test_copies_of_tensors_that_were_replaced_are_not_written(run, tmp_path):
    def replace(runner):
        bn = runner.model.get_submodule('neck.reduce_q5.bn')
        bn.running_mean = bn.running_mean.clone()

    with pytest.raises(
        FloatingPointError, match=r'for a replay: tensors .* replaced .*: neck\.reduce_q5\.bn\.running_mean'
    ):
        run(tmp_path, Before(replace, step=2), Before(spoil(f'{LAYER}.weight', 1e38), step=2))
    assert 'non_finite.pth' not in names_in(tmp_path)


def test_each_rank_has_a_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'get_world_size', lambda: 2)
    monkeypatch.setattr(module, 'get_rank', lambda: 1)
    assert 'non_finite_rank1.pth keeps the step' in fail(run, tmp_path)
    assert [name for name in names_in(tmp_path) if name.endswith('.pth')] == ['non_finite_rank1.pth']


def test_a_batch_of_branches_comes_back(tmp_path):
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 2, 3, 4]])
    sample = DetDataSample(metainfo={'img_path': 'a.jpg', 'homography_matrix': np.eye(3), 'flip': np.bool_(True)})
    masks = BitmapMasks(np.ones((2, 8, 8), np.uint8), 8, 8)
    sample.gt_instances = InstanceData(bboxes=HorizontalBoxes(boxes), labels=torch.tensor([0, 1]), masks=masks)
    sample.set_metainfo({'odd': ROOT})
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    batch = {'inputs': {'sup': [image]}, 'data_samples': {'sup': [sample], 'unsup': [None]}}
    left_out = set()
    packed = pack_batch(batch, left_out)
    boxes.mul_(2)  # as a batch augmentation does
    assert packed['inputs']['sup'][0] is image and left_out == {type(ROOT).__name__}
    torch.save(packed, tmp_path / 'batch.pth')
    found = unpack_batch(read_checkpoint(tmp_path / 'batch.pth'))
    assert found['data_samples']['unsup'] == [None]
    (back,) = found['data_samples']['sup']
    assert back.gt_instances.bboxes.tensor.tolist() == [[0, 0, 4, 4], [1, 2, 3, 4]]
    assert back.gt_instances.masks.masks.shape == (2, 8, 8) and back.gt_instances.labels.tolist() == [0, 1]
    assert back.img_path == 'a.jpg' and back.flip is True and (back.homography_matrix == np.eye(3)).all()
