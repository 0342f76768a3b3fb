"""`activation_checkpointing` of a config trains what it names, as without it."""

import copy

import pytest
import torch
from kill_and_resume import assert_same, load
from mmdet.registry import MODELS
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from test_ranks import make_batch

from yolov7_simple.engine.recompute import named_modules, recompute_activations


@pytest.mark.parametrize('names', ['backbone', ['backbone.stage2', 'neck', 'bbox_head']], ids=str)
def test_a_run_is_the_same(run, tmp_path, names):
    """Weights, moments and the statistics of BatchNorm."""
    for folder, value in (('plain', None), ('checkpointed', names)):
        run(tmp_path / folder, activation_checkpointing=value, **{'train_cfg.max_epochs': 2})
    first, plain, other = (
        load(tmp_path / f'{name}.pth') for name in ('plain/epoch_1', 'plain/epoch_2', 'checkpointed/epoch_2')
    )
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_same(other[key], plain[key])
    assert not torch.equal(
        other['state_dict']['backbone.stem.0.conv.weight'], first['state_dict']['backbone.stem.0.conv.weight']
    )


def test_activations_are_computed_anew(small_model_cfg):
    model = MODELS.build(copy.deepcopy(small_model_cfg))
    turn_on_activation_checkpointing(model, ['backbone', 'backbone'])  # mmengine does so before
    recompute_activations(named_modules(model, 'backbone'))
    counts = []
    model.backbone.stem.register_forward_hook(lambda *_: counts.append(1))
    model.parse_losses(model(**model.data_preprocessor(make_batch([3, 1]), True), mode='loss'))[0].backward()
    assert len(counts) == 2 and model.backbone.stem[0].conv.weight.grad.abs().sum() > 0
    assert model.backbone.stem[0].bn.num_batches_tracked == 1


def test_a_copy_has_weights_of_its_own(small_model_cfg):
    """As the average of the weights, or the copy that tests are faster with."""
    model = MODELS.build(copy.deepcopy(small_model_cfg)).eval()
    recompute_activations([model.backbone])
    other = copy.deepcopy(model)
    for weight in other.backbone.parameters():
        weight.data.zero_()
    image = torch.rand(1, 3, 64, 64)
    assert other.backbone(image)[0].abs().sum() < model.backbone(image)[0].abs().sum()
