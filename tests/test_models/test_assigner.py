"""The batched assigner against the definition, written plainly in float64.

Floating-point rounding decides between cells whose costs are equal up to rounding (outside the centre square float32
costs are multiples of 1/128), so an answer is accepted when it is optimal within TOLERANCE, and only then.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.assigners import sim_ota_assigner
from mmengine.structures import InstanceData

from yolov7_simple.models import assigner as assigner_module
from yolov7_simple.models.assigner import BatchSimOTAAssigner
from yolov7_simple.models.boxes import decode_boxes

STRIDES = (8, 16, 32)
OUTSIDE_COST = 100000.0


def make_priors(size):
    levels = []
    for stride in STRIDES:
        y, x = torch.meshgrid(*[(torch.arange(size // stride) + 0.5) * stride] * 2, indexing='ij')
        levels.append(torch.stack([x.flatten(), y.flatten(), *[torch.full((x.numel(),), float(stride))] * 2], 1))
    return torch.cat(levels)


def plain_costs(boxes, cls_logits, obj_logits, priors, gts, labels):
    """The definition for one image in float64: costs (G, P), IoUs (G, P), candidates (P,)."""
    boxes, priors, gts = boxes.double(), priors.double(), gts.double()
    # The score is float32, so that it saturates where the original's does.
    score = (cls_logits.float().sigmoid() * obj_logits.float().sigmoid()[:, None]).sqrt().double()
    x, y, sx, sy = (v[None] for v in priors.unbind(1))
    x1, y1, x2, y2 = (v[:, None] for v in gts.unbind(1))
    in_box = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    in_center = ((x - (x1 + x2) / 2).abs() < 2.5 * sx) & ((y - (y1 + y2) / 2).abs() < 2.5 * sy)
    low, high = torch.maximum(gts[:, None, :2], boxes[:, :2]), torch.minimum(gts[:, None, 2:], boxes[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    areas = (gts[:, 2:] - gts[:, :2]).prod(-1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    iou = inter / (areas - inter)
    one_hot = torch.nn.functional.one_hot(labels, cls_logits.shape[-1]).double()  # (G, C)
    bce = torch.nn.functional.binary_cross_entropy(
        score[None].expand(len(gts), -1, -1), one_hot[:, None].expand(-1, len(boxes), -1), reduction='none'
    ).sum(-1)
    cost = bce - 3 * (iou + 1e-8).log() + OUTSIDE_COST * ~(in_box & in_center)
    return cost, iou, (in_box | in_center).any(0)


def check(assignment, image, tensors):
    """Accept what the definition allows for one image, up to rounding, and nothing else."""
    boxes, cls_logits, obj_logits, priors, gts, labels = tensors
    matched, gt_index, iou = (field[image] for field in assignment)
    if len(gts) == 0:
        assert not matched.any()
        return
    cost, ious, candidate = plain_costs(*tensors)
    assert not matched[~candidate].any(), 'a cell that is no candidate'
    # Rounding of float32: relative in a sum over classes, steps of 1/128 above OUTSIDE_COST.
    tolerance = 3e-6 * (cost.clamp(max=OUTSIDE_COST) + cls_logits.shape[-1]) + 0.02 * (cost >= OUTSIDE_COST)
    cost = cost.masked_fill(~candidate, torch.inf)
    top = (ious * candidate).topk(min(10, len(boxes)), 1).values.sum(1)
    takers = torch.zeros_like(cost, dtype=torch.bool)  # certainly takes the cell
    maybe = torch.zeros_like(takers)  # takes it, or ties with a cell that is taken
    number = int(candidate.sum())
    if number:
        order = cost.sort(1).values  # (G, P)
        low, high = ((top + d).floor().long().clamp(min=1)[:, None] for d in (-1e-4, 1e-4))
        last, next_ = order.gather(1, low.clamp(max=number) - 1), order.gather(1, high.clamp(max=number - 1))
        takers = (cost + tolerance < next_ - tolerance) & (cost <= last - 2 * tolerance)
        maybe = cost <= order.gather(1, high.clamp(max=number) - 1) + 2 * tolerance
    assert matched[takers.any(0)].all(), 'a cell that a box takes is left out'
    assert maybe.any(0)[matched].all(), 'a cell that no box takes'
    cells = matched.nonzero().flatten()
    boxes_taken = gt_index[cells], cells
    alone = maybe.sum(0)[cells] == 1
    cheapest = cost[boxes_taken] <= cost[:, cells].min(0).values + 2 * tolerance[boxes_taken]
    fits = (maybe[boxes_taken] & alone) | cheapest | (maybe[boxes_taken] & (takers.sum(0)[cells] <= 1))
    assert fits.all(), 'the wrong box'
    torch.testing.assert_close(iou[cells].double(), ious[boxes_taken], rtol=1e-6, atol=1e-4)


def make_batch(rng, num_images, max_gts, num_classes, size, logit_scale, box_kind):
    """Random predictions near and far from random boxes of all kinds."""
    priors = make_priors(size)
    num_priors = len(priors)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    cls_logits = normal(num_images, num_priors, num_classes) * logit_scale
    obj_logits = normal(num_images, num_priors) * logit_scale
    boxes = decode_boxes(priors, normal(num_images, num_priors, 4) * 0.7 + torch.tensor([0.0, 0, 1, 1]))
    gts, labels = [], []
    for _ in range(num_images):
        n = int(rng.integers(0, max_gts + 1))
        wh = {
            'usual': rng.uniform(4, size, (n, 2)),
            'tiny': rng.uniform(0.2, 6, (n, 2)),
            'huge': rng.uniform(size, 3 * size, (n, 2)),
            'same': np.full((n, 2), size / 3),
        }[box_kind]
        centers = rng.uniform(-0.2 * size, 1.2 * size, (n, 2)) if box_kind != 'same' else np.full((n, 2), size / 2.1)
        gts.append(torch.tensor(np.concatenate([centers - wh / 2, centers + wh / 2], 1), dtype=torch.float32))
        labels.append(torch.tensor(rng.integers(0, num_classes, n)))
    return boxes, cls_logits, obj_logits, priors, gts, labels


def pad(gts, labels, pad_value=0.0):
    length = max(1, *(len(g) for g in gts))
    boxes = torch.full((len(gts), length, 4), pad_value)
    padded_labels = torch.zeros(len(gts), length, dtype=torch.long)
    mask = torch.zeros(len(gts), length, dtype=torch.bool)
    for i, (g, lab) in enumerate(zip(gts, labels, strict=True)):
        boxes[i, : len(g)], padded_labels[i, : len(g)], mask[i, : len(g)] = g, lab, True
    return boxes, padded_labels, mask


def run(batch, assigner=None, **padding):
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    assigner = assigner or BatchSimOTAAssigner()
    return assigner(boxes, cls_logits, obj_logits, priors, *pad(gts, labels, **padding))


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 4),
    max_gts=st.sampled_from([0, 1, 3, 12, 40]),
    num_classes=st.sampled_from([1, 2, 20, 80]),
    logit_scale=st.sampled_from([0.5, 3.0, 40.0]),
    box_kind=st.sampled_from(['usual', 'usual', 'tiny', 'huge', 'same']),
)
def test_equals_the_definition(seed, num_images, max_gts, num_classes, logit_scale, box_kind):
    batch = make_batch(np.random.default_rng(seed), num_images, max_gts, num_classes, 96, logit_scale, box_kind)
    assignment = run(batch)
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    for i in range(num_images):
        check(assignment, i, (boxes[i], cls_logits[i], obj_logits[i], priors, gts[i], labels[i]))


@pytest.mark.parametrize(('max_gts', 'num_classes'), [(300, 3), (5, 1203)])
def test_many_boxes_and_many_classes(max_gts, num_classes):
    batch = make_batch(np.random.default_rng(1), 2, max_gts, num_classes, 128, 2.0, 'usual')
    assignment = run(batch)
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    for i in range(2):
        check(assignment, i, (boxes[i], cls_logits[i], obj_logits[i], priors, gts[i], labels[i]))


def same(a, b):
    return torch.equal(a.matched, b.matched) and torch.equal(a.gt_index, b.gt_index) and torch.equal(a.iou, b.iou)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), box_kind=st.sampled_from(['usual', 'huge']))
def test_batch_order_tiles_and_padding_do_not_matter(seed, box_kind):
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, 4, 15, 5, 96, 2.0, box_kind)
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    whole = run(batch)

    for i in range(4):  # each image by itself
        alone = run(
            (boxes[i : i + 1], cls_logits[i : i + 1], obj_logits[i : i + 1], priors, gts[i : i + 1], labels[i : i + 1])
        )
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, whole, strict=True))

    order = torch.tensor(rng.permutation(4))  # images in another order
    moved = run(
        (
            boxes[order],
            cls_logits[order],
            obj_logits[order],
            priors,
            [gts[i] for i in order],
            [labels[i] for i in order],
        )
    )
    assert all(torch.equal(a, b[order]) for a, b in zip(moved, whole, strict=True))

    # Boxes in another order: the same cells learn the same boxes.
    shuffles = [torch.tensor(rng.permutation(len(g)), dtype=torch.long) for g in gts]
    mixed = run(
        (
            boxes,
            cls_logits,
            obj_logits,
            priors,
            [g[s] for g, s in zip(gts, shuffles, strict=True)],
            [lab[s] for lab, s in zip(labels, shuffles, strict=True)],
        )
    )
    assert torch.equal(mixed.matched, whole.matched)
    for i, shuffle in enumerate(shuffles):
        cells = whole.matched[i]
        assert torch.equal(shuffle[mixed.gt_index[i][cells]], whole.gt_index[i][cells])

    assert same(run(batch, BatchSimOTAAssigner(tile_size=1)), whole)  # tiles of ten cells
    assert same(run(batch, pad_value=torch.nan), whole)


@pytest.mark.parametrize('box_kind', ['usual', 'tiny', 'huge', 'same'])
@pytest.mark.parametrize('max_gts', [0, 3, 30])
def test_is_the_same_where_reading_back_would_wait(box_kind, max_gts, monkeypatch):
    """On a GPU all cells are compared and as many as might be contested; on a CPU only those that matter."""
    for seed in range(4):
        batch = make_batch(np.random.default_rng(seed), 3, max_gts, 80, 128, 2.0, box_kind)
        boxes, cls_logits, obj_logits, priors, gts, labels = batch
        levels = cls_logits.split([(128 // stride) ** 2 for stride in STRIDES], 1)
        outs = []
        for free in (True, False):
            monkeypatch.setattr(assigner_module, 'reads_freely', lambda _, free=free: free)
            for size in (None, 1, 2**16):
                for logits in (cls_logits, levels):
                    outs.append(run((boxes, logits, *batch[2:]), BatchSimOTAAssigner(tile_size=size)))
        assert all(same(out, outs[0]) for out in outs)


def test_priors_need_not_be_a_grid():
    batch = make_batch(np.random.default_rng(5), 2, 8, 3, 128, 2.0, 'usual')
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    scattered = torch.cat([torch.rand(len(priors), 2) * 128, priors[torch.randperm(len(priors)), 2:]], 1)
    order = torch.randperm(len(priors))  # a grid whose cells come in any order
    for some in (scattered, priors[order]):
        assignment = run((boxes, cls_logits, obj_logits, some, gts, labels))
        assert assignment.matched.any()
        for i in range(2):
            check(assignment, i, (boxes[i], cls_logits[i], obj_logits[i], some, gts[i], labels[i]))


def test_tile_is_chosen_by_device():
    cpu, cuda = torch.device('cpu'), torch.device('cuda')
    assert BatchSimOTAAssigner()._tile_width(16, 80, cpu) == 2**20 // 1280
    assert BatchSimOTAAssigner()._tile_width(16, 80, cuda) == 2**24 // 1280
    assert BatchSimOTAAssigner(tile_size=2**22)._tile_width(16, 80, cuda) == 2**22 // 1280


@pytest.mark.parametrize('seed', range(20))
def test_equals_mmdets(seed, monkeypatch):
    """mmdet's assigner with two constants set to ours: eps of the IoU (1e-7), and INF, which rounds costs to 1/128."""
    monkeypatch.setattr(sim_ota_assigner, 'EPS', 1e-8)
    monkeypatch.setattr(sim_ota_assigner, 'INF', 1000.0)
    batch = make_batch(np.random.default_rng(seed), 3, 10, 4, 128, 1.0, 'usual')
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    ours = run(batch)
    for i in range(3):
        scores = (cls_logits[i].sigmoid() * obj_logits[i].sigmoid()[:, None]).sqrt()  # as its head does
        theirs = sim_ota_assigner.SimOTAAssigner().assign(
            InstanceData(bboxes=boxes[i], scores=scores, priors=priors), InstanceData(bboxes=gts[i], labels=labels[i])
        )
        assert torch.equal(theirs.gt_inds > 0, ours.matched[i])
        assert torch.equal(theirs.gt_inds[ours.matched[i]] - 1, ours.gt_index[i][ours.matched[i]])


def test_a_contested_cell_goes_to_the_cheapest_box_of_all():
    priors = make_priors(64)
    cell = int(((priors[:, 0] == 36) & (priors[:, 1] == 36)).nonzero()[0])
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(len(priors), 1)
    boxes[cell] = torch.tensor([26.0, 26, 46, 46])
    gts = torch.tensor([[26.0, 26, 46, 46], [25.0, 25, 48, 48]])
    # Each of the two would take this cell if it were alone, as no other cell overlaps it.
    for labels, winner in (([0, 0], 0), ([0, 1], 1)):
        cls_logits = torch.zeros(1, len(priors), 2)
        cls_logits[..., labels[winner]] = 3.0
        cls_logits[..., labels[1 - winner]] = -3.0 if labels[0] != labels[1] else 3.0
        out = BatchSimOTAAssigner()(
            boxes[None], cls_logits, torch.zeros(1, len(priors)), priors, gts[None], torch.tensor([labels]),
            torch.ones(1, 2, dtype=torch.bool),
        )  # fmt: skip
        assert out.matched[0, cell] and out.gt_index[0, cell] == winner


def test_saturated_and_exploded_predictions_stay_finite():
    batch = list(make_batch(np.random.default_rng(0), 2, 6, 3, 96, 1e4, 'usual'))
    batch[0] = batch[0].clone()
    batch[0][0, ::3] = torch.tensor([-torch.inf, 0, torch.inf, 0])
    batch[0][1, ::5] = torch.nan
    assignment = run(batch)
    assert assignment.iou.isfinite().all()
    for i in range(2):
        assert (len(batch[4][i]) > 0) == bool(assignment.matched[i].any())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_is_float32_under_autocast(dtype):
    boxes, cls_logits, obj_logits, priors, gts, labels = make_batch(
        np.random.default_rng(3), 2, 8, 80, 96, 3.0, 'usual'
    )
    half = (boxes, cls_logits.to(dtype), obj_logits.to(dtype), priors, gts, labels)
    full = (boxes, cls_logits.to(dtype).float(), obj_logits.to(dtype).float(), priors, gts, labels)
    with torch.autocast('cpu', dtype=dtype):
        assert same(run(half), run(full))


def test_compiles_without_a_graph_break():
    batch = make_batch(np.random.default_rng(0), 2, 6, 3, 64, 2.0, 'usual')
    boxes, cls_logits, obj_logits, priors, gts, labels = batch
    assigner = BatchSimOTAAssigner()
    compiled = torch.compile(assigner, fullgraph=True, backend='eager')
    assert same(compiled(boxes, cls_logits, obj_logits, priors, *pad(gts, labels)), run(batch, assigner))


def test_mmdets_interface_takes_images_and_models_without_boxes():
    pred = InstanceData(bboxes=torch.rand(3, 4), priors=torch.rand(3, 4), scores=torch.rand(3, 2))
    some = InstanceData(bboxes=torch.rand(2, 4), labels=torch.tensor([0, 1]))
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))  # float, as an empty tensor is
    for cells, boxes in ((pred, none), (pred[:0], some), (pred[:0], none)):
        found = BatchSimOTAAssigner().assign(cells, boxes)
        assert found.num_gts == len(boxes)
        assert found.gt_inds.tolist() == found.max_overlaps.tolist() == [0] * len(cells)
        assert found.labels.tolist() == [-1] * len(cells)
        assert found.gt_inds.dtype == found.labels.dtype == torch.int64
