"""Our numbers against what the original computes. Needs ../shared, which the developers and CI have."""

import json
import sys

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from yolov7_simple.models.boxes import decode_boxes, flatten_levels, pad_boxes
from yolov7_simple.models.rtodlab import convert_state_dict, find_size, original_key


@pytest.fixture(scope='module')
def golden(shared):
    return np.load(shared / 'golden' / 'yolov7_tiny.npz')


@pytest.fixture(scope='module')
def original_weights(shared, golden):
    sys.path.insert(0, str(shared / 'golden'))
    from fill import fill

    keys = json.loads((shared / 'golden' / 'rtodlab_keys.json').read_text())
    state_dict = fill({key: tuple(value) for key, value in keys['yolov7_tiny'].items()})
    state_dict.update({key[3:]: torch.from_numpy(golden[key]) for key in golden if key.startswith('bn/')})
    return state_dict


@pytest.fixture(scope='module')
def model(original_weights, default_scope):
    from conftest import ROOT
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_8xb16-300e_coco.py').model
    cfg.pop('data_preprocessor')
    model = MODELS.build(cfg)
    model.load_state_dict(convert_state_dict(original_weights), strict=True)
    return model.eval()


@pytest.fixture(scope='module')
def images(golden):
    return torch.from_numpy(golden['images']).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def truth(golden, images):
    return [
        InstanceData(
            bboxes=torch.from_numpy(golden[f'gt/{i}/boxes']), labels=torch.from_numpy(golden[f'gt/{i}/labels'])
        )
        for i in range(len(images))
    ]


def close(ours, theirs, relative):
    theirs = torch.from_numpy(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


@torch.no_grad()
def test_backbone(model, images, golden):
    for i, feature in enumerate(model.backbone(images[:1])):
        close(feature[0, ::8], golden[f'backbone/{i}'], 1e-4)


@torch.no_grad()
def test_raw_predictions(model, images, golden):
    for name, levels in zip(('cls', 'reg', 'obj'), model(images, mode='tensor'), strict=True):
        for i, level in enumerate(levels):
            close(level, golden[f'{name}/{i}'], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize(('name', 'threshold'), [('det', 0.7), ('det03', 0.3)])
def test_detections(model, images, golden, name, threshold):
    cfg = {**model.test_cfg, 'nms': {'type': 'nms', 'iou_threshold': threshold}}
    for i in range(len(images)):
        # One image at a time and in the layout as read, as in the original. Otherwise convolutions round differently,
        # which exp() turns into up to 0.015 pixels on boxes of 900.
        (found,) = model.bbox_head.predict_by_feat(*model(images[i : i + 1], mode='tensor'), [{}], cfg=cfg)
        scores, labels, boxes = (torch.from_numpy(golden[f'{name}/{i}/{k}']) for k in ('scores', 'labels', 'bboxes'))
        assert len(found) == len(scores)
        # Saturated scores are equal and have no order, so each detection is looked up.
        distance = torch.cdist(boxes, found.bboxes, p=float('inf'))
        distance += 1e6 * (labels[:, None] != found.labels) + 1e6 * ((scores[:, None] - found.scores).abs() > 1e-4)
        nearest, index = distance.min(1)
        assert nearest.max() <= 1e-2
        assert len(index.unique()) == len(scores)
        assert (found.scores.diff() <= 0).all()


@torch.no_grad()
def test_assignment(model, images, golden, truth):
    head = model.bbox_head
    cls_scores, bbox_preds, objectnesses = model(images, mode='tensor')
    priors = torch.cat(head.level_priors(cls_scores))
    boxes = decode_boxes(priors, flatten_levels(bbox_preds))
    cls_logits, obj_logits = flatten_levels(cls_scores), flatten_levels(objectnesses).squeeze(-1)
    assigned = head.assigner(boxes, cls_logits, obj_logits, priors, *pad_boxes(truth))
    for i in range(len(images)):
        if f'assign/{i}/fg' not in golden:
            assert not assigned.matched[i].any()
            continue
        matched = torch.from_numpy(golden[f'assign/{i}/fg'])
        assert torch.equal(assigned.matched[i], matched)
        assert torch.equal(assigned.gt_index[i][matched], torch.from_numpy(golden[f'assign/{i}/gt']))
        close(assigned.iou[i][matched], golden[f'assign/{i}/iou'], 1e-5)


@pytest.mark.parametrize('stage', ['main', 'last'])
def test_losses_and_gradients(model, images, golden, truth, original_weights, stage):
    model.zero_grad()
    model.bbox_head.use_l1 = stage == 'last'
    losses = model.bbox_head.loss_by_feat(*model(images, mode='tensor'), truth, [{}] * len(images))
    # Our losses include their weights: 5 for boxes.
    for ours, theirs, weight in (
        ('loss_obj', 'loss_obj', 1),
        ('loss_cls', 'loss_cls', 1),
        ('loss_bbox', 'loss_box', 5),
        ('loss_l1', 'loss_box_aux', 1),
    ):
        if ours in losses:
            assert losses[ours].item() == pytest.approx(weight * float(golden[f'loss/{stage}/{theirs}']), rel=1e-4)
    total = sum(losses.values())
    assert total.item() == pytest.approx(float(golden[f'loss/{stage}/losses']), rel=1e-4)
    total.backward()
    size = find_size(original_weights)
    checked = 0
    for key, parameter in model.named_parameters():
        norm = float(golden[f'grad/{stage}/{original_key(key, size)}'])
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), key
        checked += 1
    assert checked == sum(key.startswith(f'grad/{stage}/') for key in golden)


@pytest.mark.parametrize(
    ('name', 'arch', 'parameters'),
    [('yolov7_tiny', 'tiny', 7_968_159), ('yolov7', 'large', 44_080_543), ('yolov7_x', 'huge', 78_869_895)],
)
@pytest.mark.parametrize('num_classes', [80, 3])
def test_every_size_converts(shared, name, arch, parameters, num_classes):
    keys = json.loads((shared / 'golden' / 'rtodlab_keys.json').read_text())[name]
    state_dict = {}
    for key, (shape, dtype) in keys.items():
        shape = [num_classes, *shape[1:]] if key.startswith('cls_preds') else shape
        state_dict[key] = torch.empty(shape, dtype=getattr(torch, dtype), device='meta')
    converted = convert_state_dict(state_dict)
    assert find_size(state_dict).arch == arch
    assert len(converted) == len(state_dict)
    if num_classes == 80:
        buffers = ('running_mean', 'running_var', 'num_batches_tracked')
        assert sum(v.numel() for k, v in converted.items() if not k.endswith(buffers)) == parameters
