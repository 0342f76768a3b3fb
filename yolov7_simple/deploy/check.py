"""Check that an exported file gives what the model gives, up to rounding.

B images, P priors, N candidates of an image, K detections of it, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.nms import pairwise_overlaps
from ..runtime.onnx_detector import OnnxDetector
from .export import DeployGraph, ExportError

# How often the rounding of PyTorch itself a file may differ: ONNX Runtime adds up in another order.
ROUNDING_FACTOR = 5
# Least differences that are allowed, in a score, and in a coordinate relative to the longer side of its box.
LEAST_TOLERANCE = 1e-3
# In an IoU, relative to that of a coordinate.
IOU_FACTOR = 5


class Tolerance(NamedTuple):
    """What rounding may change: a score, a coordinate relative to the longer side of its box, and an IoU."""

    score: float
    box: float
    iou: float


def measure_tolerance(graph: DeployGraph, images: Tensor) -> Tolerance:
    """Measure how far float32 is from float64 for this model and these images, and allow a small multiple of it.

    Where logits reach hundreds, as with large weights, float32 itself is more than 1e-3 off. Only boxes count that can
    be detected: one wild box that is none would let all others differ.

    Raises:
        ExportError: The model gives numbers that are not finite.
    """
    with torch.no_grad():
        (boxes, scores), (exact_boxes, exact_scores) = (
            one.raw(one.head(one.neck(one.backbone(inputs))))
            for one, inputs in ((graph, images), (deepcopy(graph).double(), images.double()))
        )
    if not all(values.isfinite().all() for values in (boxes, scores)):
        raise ExportError('the model gives boxes or scores that are not finite: export another checkpoint')
    seen = scores.amax(-1) > (graph.score_threshold if graph.with_nms else -1)  # (B, P)
    side = (exact_boxes[..., 2:] - exact_boxes[..., :2]).amax(-1).clamp(min=1)
    off = (boxes - exact_boxes).abs().amax(-1) / side
    score, box = (
        max(LEAST_TOLERANCE, ROUNDING_FACTOR * values[seen].max().item() if seen.any() else 0.0)
        for values in ((scores - exact_scores).abs().amax(-1), off)
    )
    return Tolerance(score, box, IOU_FACTOR * box)


class Difference(NamedTuple):
    """How much a file differs from the model.

    box: largest difference of a coordinate, in pixels. relative_box: that relative to the longer side of the box.
    score: largest difference of a score. count: boxes compared. faults: descriptions of what is not rounding.
    """

    box: float
    relative_box: float
    score: float
    count: int
    faults: list[str]


def compare(graph: DeployGraph, images: Tensor, outputs: Sequence[Tensor]) -> Difference:
    """Compare ONNX Runtime's outputs for a batch with the model's.

    Args:
        graph: The model.
        images: (B, 3, H, W).
        outputs: ``dets, labels`` or ``boxes, scores``, as :class:`DeployGraph` returns them.
    """
    tolerance = measure_tolerance(graph, images)
    with torch.no_grad():
        if graph.with_nms:
            parts = compare_detections(graph, images, *outputs, tolerance)
        else:
            parts = [compare_raw(graph(images), outputs)]
    faults = [fault for part in parts for fault in part.faults]
    box, relative_box, score, count = (
        [getattr(part, field) for part in parts] for field in ('box', 'relative_box', 'score', 'count')
    )
    for name, value, limit in (
        ('boxes', max(relative_box), tolerance.box),
        ('scores', max(score), tolerance.score),
    ):
        if not value <= limit:  # NaN is a fault, too
            faults.append(f'{name} differ by {value:.2g}, and rounding by no more than {limit:.2g}')
    return Difference(max(box), max(relative_box), max(score), sum(count), faults)


def compare_raw(wanted: Sequence[Tensor], given: Sequence[Tensor]) -> Difference:
    """Compare boxes (B, P, 4) and scores (B, P, C) one by one."""
    boxes, scores = wanted
    difference = (boxes - given[0]).abs().amax(-1)
    side = (boxes[..., 2:] - boxes[..., :2]).amax(-1).clamp(min=1)
    return Difference(
        difference.max().item(),
        (difference / side).max().item(),
        (scores - given[1]).abs().max().item(),
        difference.numel(),
        [],
    )


def compare_detections(
    graph: DeployGraph, images: Tensor, dets: Tensor, labels: Tensor, tolerance: Tolerance
) -> list[Difference]:
    """Check that detections are the result of exact NMS on the model's candidates, up to rounding.

    Comparing box by box would not work: a candidate that rounding moves across a threshold also changes the fate of
    those that it overlaps, and so on. Instead two conditions are checked, with room for rounding, that only the result
    of greedy NMS meets: (1) no box of it overlaps a better box of it, and (2) every other candidate does.

    Args:
        graph: The model.
        images: (B, 3, H, W).
        dets: (B, K, 5).
        labels: (B, K).
        tolerance: What rounding may change.

    Returns:
        The difference for each image.
    """
    outputs = graph.head(graph.neck(graph.backbone(images)))
    # All candidates: where scores are nearly equal, as early in training, rounding decides which are the best nms_pre.
    every = graph.head.candidates(*outputs, -1)
    boxes, scores, candidate_labels = graph.head.candidates(*outputs, graph.nms_pre)
    if graph.nms_pre > 0:
        cells = [level.shape[2] * level.shape[3] for level in outputs[0]]
        levels = scores.split([min(graph.nms_pre, count) for count in cells], 1)
        cut = torch.cat([level[:, -1:].expand_as(level) for level in levels], 1) + tolerance.score
    else:
        cut = torch.zeros_like(scores)
    cut = cut.clamp(min=graph.score_threshold + tolerance.score)

    differences = []
    for i in range(len(images)):
        found = labels[i] >= 0
        kept, kept_labels = dets[i][found], labels[i][found]
        sure = scores[i] > cut[i]
        if found.all() and len(kept) < scores.shape[1]:  # max_per_img is reached
            sure &= scores[i] > kept[-1, 4] + tolerance.score
        candidates = (boxes[i][sure], scores[i][sure], candidate_labels[i][sure])
        lowest = kept[-1, 4] if len(kept) else 1.0
        likely = every[1][i] > lowest - tolerance.score
        everything = tuple(values[i][likely] for values in every)
        differences.append(compare_image(graph, kept, kept_labels, candidates, everything, tolerance))
    return differences


def compare_image(
    graph: DeployGraph,
    kept: Tensor,
    kept_labels: Tensor,
    candidates: tuple[Tensor, Tensor, Tensor],
    everything: tuple[Tensor, Tensor, Tensor],
    tolerance: Tolerance,
) -> Difference:
    """Do :func:`compare_detections` for one image.

    Args:
        graph: The model.
        kept: (K, 5), the file's detections.
        kept_labels: (K,).
        candidates: Boxes (N, 4), scores (N,) and labels (N,) that NMS must have seen.
        everything: The same, for all that it may have seen.
        tolerance: What rounding may change.
    """
    faults = []
    if not len(kept):
        if len(candidates[0]):
            faults.append(f'the file finds nothing, the model has {len(candidates[0])} candidates')
        return Difference(0.0, 0.0, 0.0, 0, faults)

    def signature(box: Tensor, score: Tensor, label: Tensor) -> Tensor:
        return torch.cat([box, score[:, None] * 100, label[:, None].float() * 1e5], 1)

    signatures = signature(kept[:, :4], kept[:, 4], kept_labels)
    everything_signatures = signature(*everything)
    # In parts, to save memory: there can be a candidate for every cell and class.
    nearest = [torch.cdist(part, everything_signatures, p=torch.inf).argmin(1) for part in signatures.split(64)]
    nearest = torch.cat(nearest)
    partner_boxes, partner_scores, partner_labels = (values[nearest] for values in everything)
    difference = (kept[:, :4] - partner_boxes).abs().amax(1)
    side = (partner_boxes[:, 2:] - partner_boxes[:, :2]).amax(1).clamp(min=1)
    if (partner_labels != kept_labels).any():
        faults.append('the file finds a class that the model does not have there')

    def meet(rows: Tensor, columns: Tensor) -> Tensor:
        if graph.class_agnostic:
            return torch.ones(len(rows), len(columns), dtype=torch.bool)
        return rows[:, None] == columns

    doubled = pairwise_overlaps(kept[:, :4], kept[:, :4], graph.iou_threshold + tolerance.iou, 0)
    doubled &= meet(kept_labels, kept_labels)
    num_doubled = int(doubled.triu(1).any(0).sum())
    if num_doubled:
        faults.append(f'{num_doubled} detections should have been suppressed')

    boxes, scores, labels = candidates
    excused = pairwise_overlaps(kept[:, :4], boxes, graph.iou_threshold - tolerance.iou, 0)
    excused &= meet(kept_labels, labels) & (kept[:, 4:] >= scores - tolerance.score)
    # A kept candidate overlaps itself and so is excused, unless it has no area.
    missed = ~excused.any(0) & ((boxes[:, 2:] - boxes[:, :2]).amin(1) > 1e-3)
    if missed.any():
        faults.append(f'{int(missed.sum())} detections are missing (scores up to {scores[missed].max():.3f})')
    return Difference(
        difference.max().item(),
        (difference / side).max().item(),
        (kept[:, 4] - partner_scores).abs().max().item(),
        len(kept),
        faults,
    )


def check_export(graph: DeployGraph, detector: OnnxDetector, batches: Iterable[Tensor]) -> list[Difference]:
    """Run a file in ONNX Runtime, and compare it with the model.

    Args:
        graph: The exported model.
        detector: The file.
        batches: Batches of images, (B, 3, H, W), of sizes that the file accepts.

    Returns:
        The difference for each batch.

    Raises:
        ExportError: They differ by more than rounding.
    """
    differences = []
    names = ('dets', 'labels') if graph.with_nms else ('boxes', 'scores')
    for images in batches:
        outputs = [torch.from_numpy(output) for output in detector.engine.run(images.numpy(), names)]
        difference = compare(graph, images, outputs)
        if difference.faults:
            raise ExportError(
                f'ONNX Runtime differs from PyTorch for {len(images)} images of {images.shape[3]} x '
                f'{images.shape[2]}: ' + '; '.join(difference.faults)
            )
        differences.append(difference)
    return differences
