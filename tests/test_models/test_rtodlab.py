import argparse
import os
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from yolov7_simple.models.rtodlab import SIZES, build_network, convert_state_dict, find_size, original_key

CONVERTER = ROOT / 'tools' / 'model_converters' / 'rtodlab_to_mmdet.py'


def original_state_dict(size=SIZES[0], num_classes=4):
    """A checkpoint as the original saves it, with random weights."""
    state_dict = build_network(size, num_classes).state_dict()
    return {original_key(key, size): torch.rand(value.shape).to(value.dtype) for key, value in state_dict.items()}


def run(monkeypatch, *arguments):
    """Run the tool here: importing torch anew for each case takes seconds."""
    monkeypatch.setattr(sys, 'argv', [str(CONVERTER), *map(str, arguments)])
    runpy.run_path(str(CONVERTER), run_name='__main__')


@pytest.mark.parametrize('size', SIZES, ids=lambda size: size.arch)
def test_every_tensor_arrives_under_its_new_name(size):
    original = original_state_dict(size)
    converted = convert_state_dict({f'module.{key}': value for key, value in original.items()})  # as DDP saves it
    assert find_size(original) == size
    build_network(size, 4).load_state_dict(converted, strict=True, assign=True)
    assert all(converted[key] is original[original_key(key, size)] for key in converted)


def test_names_are_the_originals():
    tiny, large, huge = SIZES
    assert original_key('backbone.stem.0.conv.weight', tiny) == 'backbone.layer_1.convs.0.weight'
    assert original_key('backbone.stem.2.bn.bias', large) == 'backbone.layer_1.2.convs.1.bias'
    assert original_key('neck.top_down_p3.stages.1.0.conv.weight', large).endswith('layer_2.cv3.1.convs.0.weight')
    assert original_key('neck.top_down_p3.stages.1.0.conv.weight', huge).endswith('layer_2.cv3.1.0.convs.0.weight')


def test_unknown_missing_and_misshapen_keys_are_named():
    state_dict = original_state_dict()
    state_dict['total_ops'] = torch.zeros(1)
    del state_dict['fpn.head_conv_1.convs.0.weight']
    state_dict['obj_preds.1.bias'] = torch.zeros(2)
    with pytest.raises(ValueError, match='1 unknown: total_ops; 1 missing: fpn.head_conv_1.convs.0.weight; '
                       r'1 of another shape: obj_preds.1.bias is \(2,\) and not \(1,\)'):  # fmt: skip
        convert_state_dict(state_dict)
    with pytest.raises(ValueError, match='not a YOLOv7 of RT-ODLab'):
        convert_state_dict({'backbone.stem.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='not a YOLOv7 of RT-ODLab'):
        convert_state_dict({})


def test_the_tool_converts_a_published_checkpoint(tmp_path, monkeypatch, capsys):
    extras = {'mAP': np.float64(39.5), 'epoch': 300, 'args': argparse.Namespace(lr=0.001, cuda=True)}
    torch.save({'model': original_state_dict(), **extras}, tmp_path / 'original.pth')
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / 'original.pth', tmp_path / 'ours.pth')
    assert ended.value.code is None
    assert '4 classes, for configs/yolov7/yolov7_tiny_8xb16-300e_coco.py' in capsys.readouterr().out
    state_dict = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    build_network(SIZES[0], 4).load_state_dict(state_dict, strict=True, assign=True)
    with pytest.raises(SystemExit, match='exists'):
        run(monkeypatch, tmp_path / 'original.pth', tmp_path / 'ours.pth')


class Malicious:
    def __reduce__(self):
        return os.system, (f'touch {os.environ["CANARY"]}',)


def test_the_tool_writes_nothing_when_it_fails(tmp_path, monkeypatch):
    canary = tmp_path / 'canary'
    monkeypatch.setenv('CANARY', str(canary))
    state_dict = original_state_dict()
    torch.save({'model': state_dict, 'extra': Malicious()}, tmp_path / 'malicious.pth')
    torch.save({'model': {**state_dict, 'other': torch.zeros(1)}}, tmp_path / 'other.pth')
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    for source, message in (
        ('malicious.pth', 'system'),
        ('other.pth', '1 unknown: other'),
        ('text.pth', 'not a checkpoint that can be read safely'),
        ('absent.pth', 'there is no such checkpoint file'),
    ):
        before = set(tmp_path.iterdir())
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, tmp_path / source, tmp_path / 'ours.pth')
        assert stopped.value.code.startswith('error: ') and message in stopped.value.code
        assert 'weights_only' not in stopped.value.code
        assert set(tmp_path.iterdir()) == before
    assert not canary.exists()
