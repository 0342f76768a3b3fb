import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from yolov7_simple.models.boxes import decode_boxes, encode_boxes, flatten_levels, gather_cells, max_iof, pad_boxes
from yolov7_simple.models.head import YOLOv7SimpleHead
from yolov7_simple.utils.options import OptionError

CELLS = ((8, 12), (4, 6), (2, 3))  # of an image of 64 x 96


def make_head(num_classes=3, **kwargs):
    head = YOLOv7SimpleHead(num_classes, in_channels=16, **kwargs)
    head.init_weights()
    return head


def make_predictions(batch=2, num_classes=3, requires_grad=False):
    return [[torch.randn(batch, n, *cell).requires_grad_(requires_grad) for cell in CELLS] for n in (num_classes, 4, 1)]


def make_truth(*counts, num_classes=3):
    truth = []
    for count in counts:
        corners = torch.rand(count, 2) * 30
        boxes = torch.cat([corners, corners + 10 + torch.rand(count, 2) * 30], 1)
        truth.append(InstanceData(bboxes=boxes, labels=torch.randint(num_classes, (count,))))
    return truth


def test_forward_keeps_yoloxheads_contract():
    head = make_head()
    outs = head([torch.rand(2, 16, *cell) for cell in CELLS])
    for levels, channels in zip(outs, (3, 4, 1), strict=True):
        assert [tuple(level.shape) for level in levels] == [(2, channels, *cell) for cell in CELLS]


def test_starts_at_scores_of_a_hundredth_and_boxes_of_e_strides():
    head = make_head().eval()
    _, bbox_preds, _ = head([torch.rand(1, 16, *cell) for cell in CELLS])
    assert all((level == 1).all() for level in bbox_preds)
    for layer in (*head.cls_preds, *head.obj_preds):
        assert torch.allclose(layer.bias.sigmoid(), torch.tensor(0.01))


def test_towers_are_as_wide_as_the_original_has_them():
    head = YOLOv7SimpleHead(100, in_channels=16)
    assert head.cls_towers[0][1].conv.weight.shape[:2] == (100, 100)
    assert head.reg_towers[0][1].conv.weight.shape[:2] == (64, 64)


def test_decode_and_encode():
    priors = torch.tensor([[4.0, 12, 8, 8], [48, 16, 32, 32]])
    raw = torch.tensor([[0.5, -0.25, 0, 0.6931472], [0, 0, -1, 1]])
    boxes = decode_boxes(priors, raw)
    assert torch.allclose(boxes[0], torch.tensor([4.0, 2, 12, 18]))
    assert torch.allclose(encode_boxes(priors, boxes), raw, atol=1e-6)


def test_take_cells_equals_gathering_from_joined_levels():
    levels = make_predictions()[0]
    cells = torch.randint(0, 126, (2, 9))
    joined = flatten_levels(levels)
    taken = gather_cells([level.flatten(2) for level in levels], cells)
    for i in range(2):
        assert torch.equal(taken[i].T, joined[i, cells[i]])


def test_boxes_are_padded_to_the_longest_image():
    truth = make_truth(3, 0)
    bboxes, labels, mask = pad_boxes(truth)
    assert torch.equal(bboxes[0], truth[0].bboxes) and torch.equal(labels[0], truth[0].labels)
    assert mask.tolist() == [[True] * 3, [False] * 3]
    assert labels[1].tolist() == [0, 0, 0]  # a class that there is
    bboxes, labels, mask = pad_boxes(make_truth(0, 0))
    assert bboxes.shape == (2, 1, 4) and labels.tolist() == [[0], [0]] and not mask.any()


def test_largest_share_in_a_region():
    boxes = torch.rand(2, 50, 4) * 30
    boxes[..., 2:] += boxes[..., :2]
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # no area
    regions = [gt.bboxes for gt in make_truth(3, 1)]
    shares = max_iof(boxes, regions)
    for i in range(2):
        assert torch.allclose(shares[i], bbox_overlaps(boxes[i], regions[i], mode='iof').amax(1))
    assert not max_iof(boxes, [torch.zeros(0, 4)] * 2).any()


@pytest.mark.parametrize('use_l1', [False, True])
@pytest.mark.parametrize('counts', [(3, 0), (0, 0), (1, 12)])
def test_losses_are_finite_and_every_parameter_is_in_the_graph(counts, use_l1):
    head = make_head(use_l1=use_l1)
    outs = head([torch.rand(2, 16, *cell) for cell in CELLS])
    losses = head.loss_by_feat(*outs, make_truth(*counts), [{}] * 2)
    assert list(losses) == ['loss_obj', 'loss_bbox', 'loss_cls'] + ['loss_l1'] * use_l1
    assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    if counts == (0, 0):
        assert losses['loss_bbox'] == losses['loss_cls'] == 0 < losses['loss_obj']


def test_losses_equal_the_definition_written_per_image():
    """Losses as sums over the matched cells of each image, given the assigner's result."""
    head, predictions, truth = make_head(use_l1=True), make_predictions(3), make_truth(4, 0, 9)
    losses = head.loss_by_feat(*predictions, truth, [{}] * 3)
    cls_logits, raw, obj_logits = (flatten_levels(levels) for levels in predictions)
    priors = torch.cat(head.level_priors(predictions[0]))
    boxes = decode_boxes(priors, raw)
    bce = nn.functional.binary_cross_entropy_with_logits
    sums = dict.fromkeys(losses, 0.0)
    total = 0
    for i, gt in enumerate(truth):
        target = torch.zeros(len(priors))
        if len(gt):
            arguments = (gt.bboxes[None], gt.labels[None], torch.ones(1, len(gt), dtype=torch.bool))
            one = slice(i, i + 1)
            out = head.assigner(boxes[one], cls_logits[one], obj_logits[one, :, 0], priors, *arguments)
            cells = out.matched[0].nonzero()[:, 0]
            own = gt.bboxes[out.gt_index[0, cells]]
            pred = boxes[i, cells]
            low, high = torch.maximum(own[:, :2], pred[:, :2]), torch.minimum(own[:, 2:], pred[:, 2:])
            inter = (high - low).clamp(min=0).prod(1)
            union = (own[:, 2:] - own[:, :2]).prod(1) + (pred[:, 2:] - pred[:, :2]).prod(1) - inter
            hull = (torch.maximum(own[:, 2:], pred[:, 2:]) - torch.minimum(own[:, :2], pred[:, :2])).prod(1)
            one_hot = nn.functional.one_hot(gt.labels[out.gt_index[0, cells]], 3) * (inter / union)[:, None]
            sums['loss_bbox'] += 5 * (1 - inter / union + (hull - union) / hull).sum()
            sums['loss_cls'] += bce(cls_logits[i, cells], one_hot, reduction='sum')
            sums['loss_l1'] += (raw[i, cells] - encode_boxes(priors[cells], own)).abs().sum()
            target[cells] = 1
            total += len(cells)
        sums['loss_obj'] += bce(obj_logits[i, :, 0], target, reduction='sum')
    assert total > 5
    for key, value in losses.items():
        assert value.item() == pytest.approx(float(sums[key] / total), rel=1e-5), key


def test_an_exploded_prediction_off_target_leaves_gradients_finite():
    predictions = make_predictions(1, requires_grad=True)
    with torch.no_grad():
        predictions[1][2][:, 2:, 1, 2] = 200.0  # exp overflows, in a corner far from the box
    head = make_head(use_l1=True)
    truth = [InstanceData(bboxes=torch.tensor([[4.0, 4, 20, 20]]), labels=torch.tensor([1]))]
    sum(head.loss_by_feat(*predictions, truth, [{}]).values()).backward()
    assert all(level.grad.isfinite().all() for levels in predictions for level in levels)


def test_ignored_regions():
    predictions, truth = make_predictions(1), make_truth(1)
    ignored = [InstanceData(bboxes=torch.tensor([[-1e4, -1e4, 1e4, 1e4]]))]  # everything
    with_all = make_head().loss_by_feat(*predictions, truth, [{}], ignored)
    assert with_all['loss_obj'] == make_head().loss_by_feat(*predictions, truth, [{}])['loss_obj']

    head = make_head(ignore_iof_thr=0.5)
    losses = head.loss_by_feat(*predictions, truth, [{}], ignored)
    obj_logits = flatten_levels(predictions[2])[..., 0]
    priors = torch.cat(head.level_priors(predictions[0]))
    boxes = decode_boxes(priors, flatten_levels(predictions[1]))
    gt = (truth[0].bboxes[None], truth[0].labels[None], torch.ones(1, 1, dtype=torch.bool))
    matched = head.assigner(boxes, flatten_levels(predictions[0]), obj_logits, priors, *gt).matched
    # Only the matched cells are left.
    expected = nn.functional.softplus(-obj_logits[matched]).sum() / matched.sum()
    assert losses['loss_obj'].item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = [InstanceData(bboxes=torch.zeros(0, 4))]
    assert head.loss_by_feat(*predictions, truth, [{}], nothing)['loss_obj'] == with_all['loss_obj']
    # Two images, of which the second is padded: it has no region.
    twice = [[torch.cat([level, level]) for level in levels] for levels in predictions]
    both = head.loss_by_feat(*twice, truth * 2, [{}, {}], ignored + nothing)['loss_obj'].item()
    assert both == pytest.approx((losses['loss_obj'] + with_all['loss_obj']).item() / 2, rel=1e-5)


def test_predictions_take_the_best_of_each_level():
    head = make_head()
    predictions = [[torch.full((1, n, *cell), -9.0) for cell in CELLS] for n in (3, 4, 1)]
    for level in predictions[1]:
        level.zero_()  # boxes of one stride around their cell
    predictions[0][0][0, 2, 1, 3] = 2.0
    predictions[2][0][0, 0, 1, 3] = 1.0
    predictions[0][2][0, 1, 1, 2] = 3.0
    predictions[2][2][0, 0, 1, 2] = 3.0
    cfg = {'nms_pre': 1000, 'score_thr': 0.2, 'nms': {'type': 'nms', 'iou_threshold': 0.7}}
    (result,) = head.predict_by_feat(*predictions, [{}], cfg=cfg)
    assert result.labels.tolist() == [1, 2]
    assert result.bboxes.tolist() == [[64, 32, 96, 64], [24, 8, 32, 16]]
    expected = (torch.tensor([3.0, 2]).sigmoid() * torch.tensor([3.0, 1]).sigmoid()).sqrt()
    assert torch.allclose(result.scores, expected)

    meta = {'scale_factor': (2.0, 2.0), 'ori_shape': (30, 40)}
    (result,) = head.predict_by_feat(*predictions, [meta], cfg=cfg, rescale=True)
    assert result.bboxes.tolist() == [[32, 16, 40, 30], [12, 4, 16, 8]]  # scaled, then clipped
    assert len(head.predict_by_feat(*predictions, [{}], cfg={**cfg, 'max_per_img': 1})[0]) == 1
    # A level gives at most nms_pre candidates and at most as many as it has cells, for any number of classes.
    everything = head.predict_by_feat(*make_predictions(1), [{}], cfg={**cfg, 'score_thr': 0.0}, with_nms=False)[0]
    assert len(everything) == 96 + 24 + 6

    # As YOLOXHead it takes images without a known original size, and without rescale needs to know nothing of them.
    unknown = {'scale_factor': (2.0, 2.0), 'img_shape': (60, 80, 3)}
    both = [torch.cat([level, level]) for level in predictions[0]], *([level.repeat(2, 1, 1, 1) for level in one]
                                                                    for one in predictions[1:])  # fmt: skip
    clipped, result = head.predict_by_feat(*both, [meta, unknown], cfg=Config(cfg), rescale=True)
    assert clipped.bboxes.tolist() == [[32, 16, 40, 30], [12, 4, 16, 8]]
    assert result.bboxes.tolist() == [[32, 16, 48, 32], [12, 4, 16, 8]]
    assert len(head.predict_by_feat(*predictions, cfg=cfg)[0]) == 2


def test_images_without_boxes_may_have_labels_of_any_dtype():
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    losses = make_head().loss_by_feat(*make_predictions(1), [nothing], [{}])
    assert losses['loss_cls'] == losses['loss_bbox'] == 0 < losses['loss_obj']


def test_trains_and_predicts_inside_mmdets_detector(small_model_cfg):
    model = MODELS.build(copy.deepcopy(small_model_cfg))
    model.init_weights()
    images = torch.rand(2, 3, 64, 96)
    outs = model(images, mode='tensor')
    assert [len(levels) for levels in outs] == [3, 3, 3]
    from mmdet.structures import DetDataSample

    samples = [
        DetDataSample(gt_instances=gt, metainfo={'img_shape': (64, 96), 'ori_shape': (64, 96), 'scale_factor': (1, 1)})
        for gt in make_truth(2, 1, num_classes=2)
    ]
    assert sum(model(images, samples, mode='loss').values()).isfinite()
    detections = model.eval()(images, samples, mode='predict')
    assert {'bboxes', 'scores', 'labels'} <= set(detections[0].pred_instances.keys())


def test_it_learns_one_image():
    """The whole chain at work: overfit a single image, and find its box."""
    model = MODELS.build(
        {
            'type': 'SingleStageDetector',
            'backbone': {'type': 'ELANNet', 'arch': 'tiny', 'widen_factor': 0.25},
            'neck': {'type': 'ELANPAFPN', 'in_channels': [32, 64, 128], 'out_channels': 32, 'num_stages': 1},
            'bbox_head': {'type': 'YOLOv7SimpleHead', 'num_classes': 2, 'in_channels': 32},
            'test_cfg': {'score_thr': 0.3, 'nms': {'type': 'nms', 'iou_threshold': 0.5}},
        }
    )
    model.init_weights()
    image = torch.zeros(1, 3, 64, 64)
    image[..., 16:40, 20:52] = 1.0
    gt = InstanceData(bboxes=torch.tensor([[20.0, 16, 52, 40]]), labels=torch.tensor([1]))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(80):
        losses = model.bbox_head.loss_by_feat(*model(image, mode='tensor'), [gt], [{}])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():  # in training mode, since so few steps do not settle BatchNorm's averages
        (found,) = model.bbox_head.predict_by_feat(*model(image, mode='tensor'), [{}], cfg=model.test_cfg)
    assert found.labels[0] == 1
    assert (found.bboxes[0] - gt.bboxes[0]).abs().max() < 3


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='num_classes must be a whole number, 1 or more, got 0'):
        YOLOv7SimpleHead(0, 16)
    with pytest.raises(ValueError, match=r'in_channels=16, but the neck gives \[32, 32, 32\]'):
        make_head()([torch.rand(1, 32, *cell) for cell in CELLS])
    with pytest.raises(ValueError, match='3 levels, but got 2'):
        make_head()([torch.rand(1, 16, *cell) for cell in CELLS[:2]])
    with pytest.raises(ValueError, match='must be a BatchSimOTAAssigner, which takes a whole batch; SimOTAAssigner'):
        make_head(train_cfg={'assigner': {'type': 'SimOTAAssigner'}})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'score_thr': float('nan')}, 'score_thr must be a number, 0 to 1'),
        ({'nms': {'iou_threshold': 2}}, r'nms\.iou_threshold must be a number, 0 to 1, got 2'),
        ({'nms': {'type': 'soft_nms', 'iou_threshold': -1}}, r'nms\.iou_threshold must be .* got -1'),
        ({'nms': {'class_agnostic': 'no'}}, r"nms\.class_agnostic must be True or False, got 'no'"),
    ],
)
def test_predictions_refuse_thresholds_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        YOLOv7SimpleHead(2, 8, test_cfg=options)
    head = YOLOv7SimpleHead(2, 8)
    with pytest.raises(OptionError, match=message):
        head.predict_by_feat(*head([torch.zeros(1, 8, 2, 2)] * 3), [{}], cfg=options)


@pytest.mark.parametrize('kind', [{}, {'split_thr': 10000}])
def test_predictions_of_one_object_are_one_box_if_classes_do_not_count(kind):
    head = YOLOv7SimpleHead(2, 8).eval()  # all classes of a cell have its box
    outputs = head([torch.zeros(1, 8, 2, 2)] * 3)
    counts = []
    for class_agnostic in (False, True):
        cfg = {'nms': {'type': 'nms', 'iou_threshold': 0.65, 'class_agnostic': class_agnostic, **kind}, 'nms_pre': -1}
        counts.append(len(head.predict_by_feat(*outputs, [{}], cfg=cfg)[0]))
    assert counts[0] == 2 * counts[1]
