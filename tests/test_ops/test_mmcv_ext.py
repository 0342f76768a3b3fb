import importlib
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT

from yolov7_simple.ops import mmcv_ext


def has_stand_in():
    return isinstance(sys.modules.get('mmcv._ext'), mmcv_ext.MissingOps)


def test_other_ops_say_what_they_need_when_called_and_not_before():
    ops = mmcv_ext.MissingOps('mmcv._ext')
    function = ops.roi_align_forward
    with pytest.raises(NotImplementedError, match=r'mmcv\.ops\.roi_align_forward needs compiled mmcv'):
        function(torch.zeros(1), output_size=3)


def test_compiled_ops_are_left_alone(monkeypatch):
    compiled = types.ModuleType('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    assert not mmcv_ext.install()
    assert sys.modules['mmcv._ext'] is compiled


def test_installing_twice_changes_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert mmcv_ext.install()
    module = sys.modules['mmcv._ext']
    assert mmcv_ext.install() and sys.modules['mmcv._ext'] is module


def test_mmcvs_nms_works():
    from mmcv.ops import batched_nms, nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.3])
    dets, keep = nms(boxes, scores, 0.5)
    assert keep.tolist() == [1, 2] and dets[:, 4].tolist() == pytest.approx([0.9, 0.3])
    assert batched_nms(boxes, scores, torch.tensor([0, 1, 0]), {'type': 'nms', 'iou_threshold': 0.5})[1].tolist() == [
        1,
        0,
        2,
    ]


@pytest.mark.skipif(not has_stand_in(), reason='this mmcv has compiled ops, so mmdet needs no stand-in')
def test_mmdets_own_yolox_trains_and_predicts_with_the_stand_in():
    """In a process that does what a user does: import the plugin, build mmdet's config."""
    code = """
import yolov7_simple, torch, mmdet
from pathlib import Path
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
init_default_scope('mmdet')
config = Path(mmdet.__file__).parent / '.mim/configs/yolox/yolox_tiny_8xb8-300e_coco.py'
model = MODELS.build(Config.fromfile(config).model)
model.init_weights()
images = torch.rand(1, 3, 96, 96) * 255
gt = InstanceData(bboxes=torch.tensor([[10., 10, 60, 60]]), labels=torch.tensor([3]))
meta = dict(img_shape=(96, 96), ori_shape=(96, 96), scale_factor=(1, 1), batch_input_shape=(96, 96))
losses = model(images, [DetDataSample(gt_instances=gt, metainfo=meta)], mode='loss')
assert sum(losses.values()).isfinite()
model.bbox_head.test_cfg.score_thr = 0
found = model.eval()(images, [DetDataSample(metainfo=meta)], mode='predict')[0].pred_instances
print(len(found), 'detections')
"""
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-2]) > 0
