import argparse
import copy
import logging
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import CheckpointLoader

from yolov7_simple.engine.hooks import CheckpointCheckHook
from yolov7_simple.models.rtodlab import load_original
from yolov7_simple.utils.checkpoint import CheckpointError, read_checkpoint


def test_mmengines_checkpoints_load_with_weights_only(tmp_path):
    hub = MessageHub('checkpoint test')
    hub.update_scalar('train/loss', torch.tensor(3.0))
    hub.update_scalar('train/loss', 5.0)
    hub.update_info('best_score', 0.5)
    torch.save({'message_hub': hub.state_dict()}, tmp_path / 'c.pth')
    loaded = torch.load(tmp_path / 'c.pth', weights_only=True)
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 4.0 and buffer.statistics('max') == 5.0

    # Still after a checkpoint of the original was read, and what that one may hold stays forbidden elsewhere.
    original = tmp_path / 'original.pth'
    torch.save({'model': {'weight': torch.ones(1)}, 'args': argparse.Namespace(lr=0.1), 'mAP': buffer.mean()}, original)
    assert list(load_original(original)) == ['weight']
    torch.load(tmp_path / 'c.pth', weights_only=True)
    with pytest.raises(pickle.UnpicklingError, match=r'argparse\.Namespace'):
        torch.load(original, weights_only=True)


class Call:
    """A pickle that calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    'payload',
    [
        Call(os.system, 'true'),
        Call(eval, '1'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, torch.Tensor, 'mean'),
    ],
    ids=['os.system', 'eval', 'getattr of another name', 'getattr of another class'],
)
def test_nothing_else_is_allowed(tmp_path, payload):
    torch.save({'state_dict': {}, 'payload': payload}, tmp_path / 'c.pth')
    with pytest.raises(Exception, match=r'(?i)unsupported|business|blocked'):
        torch.load(tmp_path / 'c.pth', weights_only=True)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle', 'cut', 'empty', 'text', 'folder', 'none', 'other tensors'])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, form):
    path, made = tmp_path / 'c.pth', tmp_path / 'made'
    payload = {'state_dict': {'weight': torch.ones(1)}, 'payload': Call(os.makedirs, str(made))}
    if form in ('zip', 'legacy'):
        torch.save(payload, path, _use_new_zipfile_serialization=form == 'zip')
    elif form == 'pickle':
        path.write_bytes(pickle.dumps(payload, 2))
    elif form == 'cut':
        torch.save(torch.ones(1000), path)
        path.write_bytes(path.read_bytes()[:-500])
    elif form == 'folder':
        path.mkdir()
    elif form == 'other tensors':  # a number that the function of numpy cannot take
        torch.save({'eta': Call(np.array(1.0).__reduce__()[0], np.ndarray, 'x', 5)}, path)
    elif form != 'none':
        path.write_bytes({'empty': b'', 'text': b'import torch'}[form])
    with pytest.raises(
        CheckpointError, match=r'c\.pth: (not a checkpoint that can be read safely|there is no such)'
    ) as raised:
        read_checkpoint(path)
    assert not made.exists() and '\n' not in str(raised.value) and 'weights_only=False' not in str(raised.value)
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(str(path))


def check(cfg, num_classes, checkpoint, training, resume=False):
    cfg = copy.deepcopy(cfg)
    cfg['bbox_head']['num_classes'] = num_classes
    model = MODELS.build(cfg)
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)) if training else {}
    runner = SimpleNamespace(
        model=model, optim_wrapper=optim_wrapper, _resume=resume, logger=logging.getLogger('checkpoint test')
    )
    CheckpointCheckHook().after_load_checkpoint(runner, checkpoint)
    return model


def test_checkpoints_of_other_models_are_refused(small_model_cfg, caplog):
    state_dict = MODELS.build(copy.deepcopy(small_model_cfg)).state_dict()
    check(small_model_cfg, 2, {'state_dict': dict(state_dict)}, training=False)

    with pytest.raises(ValueError, match=r'6 of another shape, such as bbox_head\.cls_preds\.0\.weight'):
        check(small_model_cfg, 5, {'state_dict': dict(state_dict)}, training=False)
    with pytest.raises(ValueError, match='6 of another shape'):
        check(small_model_cfg, 5, {'state_dict': dict(state_dict)}, training=True, resume=True)

    partial = {key: value for key, value in state_dict.items() if 'neck' not in key} | {'extra': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'tensors missing, such as neck.*; 1 unknown, such as extra'):
        check(small_model_cfg, 2, {'state_dict': partial}, training=True)


def test_fine_tuning_starts_class_layers_anew_and_says_so(small_model_cfg, caplog):
    state_dict = MODELS.build(copy.deepcopy(small_model_cfg)).state_dict()
    checkpoint = {'state_dict': dict(state_dict)}
    with caplog.at_level(logging.INFO):
        model = check(small_model_cfg, 5, checkpoint, training=True)
    assert '6 tensors of class layers start anew' in caplog.text
    missing, unexpected = model.load_state_dict(checkpoint['state_dict'], strict=False)
    assert not unexpected and len(missing) == 6 and all('cls_preds' in key for key in missing)
