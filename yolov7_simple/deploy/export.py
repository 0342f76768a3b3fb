"""The deploy graph: a trained detector as one ONNX file of standard operators.

B images, P priors (cells of all levels), N candidates (cell and class), K detections of an image, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor, nn

from ..models.boxes import decode_boxes, flatten_levels, gather_rows, smaller
from ..models.prediction import TestOptions
from ..ops.nms_batch import nms_batch
from ..runtime.errors import UserError

# 11 is the first with NonMaxSuppression and TopK as used here, 20 the last that torch's TorchScript exporter supports.
MIN_OPSET, DEFAULT_OPSET, MAX_OPSET = 11, 17, 20


class ExportError(UserError):
    """A model that cannot be exported, or an export that differs from the model."""


class OnnxNMS(torch.autograd.Function):
    """One NonMaxSuppression node, for an ONNX export only."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, class_scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
        """Only traced: boxes (B, N, 4), class_scores (B, C, N) -> (S, 3): image, class and box of each kept box."""
        return boxes.new_zeros((1, 3), dtype=torch.long)

    @staticmethod
    def symbolic(g: Any, boxes: Any, class_scores: Any, iou_threshold: float, score_threshold: float) -> Any:
        """Write the node, without a limit on the number of boxes of a class."""
        limit, iou, score = (
            g.op('Constant', value_t=torch.tensor(value))
            for value in ([2**31 - 1], [float(iou_threshold)], [float(score_threshold)])
        )
        return g.op('NonMaxSuppression', boxes, class_scores, limit, iou, score)


class DeployGraph(nn.Module):
    """Images -> detections, as tensors of fixed layout for deployment.

    Args:
        model: A single-stage detector with :class:`YOLOv7SimpleHead`; it is copied, and the copy's BatchNorms folded.
        with_nms: Whether to suppress doubles; if not, all boxes are returned.

    Raises:
        ExportError: The model has another head, or another NMS than plain ``nms``.
    """

    def __init__(self, model: nn.Module, with_nms: bool = True) -> None:
        super().__init__()
        head = getattr(model, 'bbox_head', None)
        if not hasattr(head, 'candidates'):
            raise ExportError(f'{type(model).__name__} with {type(head).__name__}: only YOLOv7SimpleHead is exported')
        options = TestOptions.from_cfg(head.test_cfg)
        if not options.is_plain_nms:
            raise ExportError(f'test_cfg.nms={options.nms}: ONNX has plain NMS alone; set nms=dict(type="nms", ...)')
        # The data preprocessor is not part of the graph, so it is not copied.
        self.backbone, self.neck, self.head = (
            fuse_conv_bn(deepcopy(part)).eval() for part in (model.backbone, model.neck, head)
        )
        self.with_nms = with_nms
        self.iou_threshold = options.iou_threshold
        self.class_agnostic = options.class_agnostic
        self.nms_pre = options.nms_pre
        self.score_threshold = options.score_thr
        self.max_per_img = options.max_per_img

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, 3, H, W), as the data preprocessor returns them; H and W are multiples of 32.

        Returns:
            With NMS, dets (B, K, 5): xyxy in pixels of the input and score, best first, and labels (B, K), -1 where
            an image has fewer than K. Without, boxes (B, P, 4), xyxy, and scores (B, P, C).
        """
        outputs = self.head(self.neck(self.backbone(images)))
        if not self.with_nms:
            return self.raw(outputs)
        boxes, scores, labels = self.head.candidates(*outputs, self.nms_pre)
        kept = self.kept(boxes, scores, labels)
        num_dets = scores.shape[1] if self.max_per_img < 1 else smaller(self.max_per_img, scores.shape[1])
        best, order = (scores * kept).topk(num_dets)  # (B, K)
        found = best > 0
        dets = torch.cat([gather_rows(boxes, order), best.unsqueeze(-1)], -1)
        dets = torch.where(found.unsqueeze(-1), dets, torch.zeros_like(dets))
        return dets, torch.where(found, labels.gather(1, order), -torch.ones_like(order))

    def kept(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Suppress doubles: (B, N, 4), (B, N), (B, N) -> (B, N), 1 for what is kept and 0 for the rest."""
        if not torch.onnx.is_in_onnx_export():
            classes = None if self.class_agnostic else labels
            indices = nms_batch(boxes, scores, scores > self.score_threshold, self.iou_threshold, labels=classes)
            return torch.stack([torch.zeros_like(row).index_fill(0, index, 1) for row, index in zip(scores, indices)])
        if self.class_agnostic:
            class_scores = scores.unsqueeze(1)  # (B, 1, N)
        else:
            # Each candidate has score 0 in all classes but its own, so that classes never suppress each other.
            class_scores = scores.new_zeros(scores.shape[0], self.head.num_classes, scores.shape[1])
            class_scores = class_scores.scatter(1, labels.unsqueeze(1), scores.unsqueeze(1))  # (B, C, N)
        selected = OnnxNMS.apply(boxes, class_scores, self.iou_threshold, self.score_threshold)  # (S, 3)
        kept = scores.new_zeros(scores.shape).flatten()  # (B * N,)
        return kept.scatter(0, selected[:, 0] * scores.shape[1] + selected[:, 2], 1.0).view_as(scores)

    def raw(self, outputs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Decode what the head gives, in its precision: boxes (B, P, 4), xyxy, and scores (B, P, C)."""
        cls_scores, bbox_preds, objectnesses = outputs
        priors = torch.cat(self.head.level_priors(cls_scores))
        scores = (flatten_levels(cls_scores).sigmoid() * flatten_levels(objectnesses).sigmoid()).sqrt()
        return decode_boxes(priors, flatten_levels(bbox_preds)), scores


@contextmanager
def constant_priors(graph: DeployGraph, images: Tensor) -> Iterator[None]:
    """Trace priors of this size as constants: OpenCV and converters to float16 fail on their computation."""
    head = graph.head
    priors = head.level_priors(head(graph.neck(graph.backbone(images)))[0])
    head.level_priors = lambda levels: priors
    try:
        yield
    finally:
        del head.level_priors


def export_onnx(
    graph: DeployGraph,
    path: Path,
    size: tuple[int, int],
    dynamic_size: bool = False,
    opset: int = DEFAULT_OPSET,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the graph as an ONNX file for batches of any size.

    Args:
        graph: The graph, on the CPU.
        path: File to write; overwritten if it exists.
        size: Height and width of the input; with ``dynamic_size``, of the tracing only.
        dynamic_size: Whether to accept any height and width.
        opset: Version of the ONNX operators.
        metadata: Key-value pairs to store in the file.

    Raises:
        ExportError: The opset is too old or new, or the graph needs operators beyond the standard ones.
    """
    import onnx

    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ExportError(f'opset {opset}: must be {MIN_OPSET} to {MAX_OPSET}; {DEFAULT_OPSET} is a good choice')
    names = ('dets', 'labels') if graph.with_nms else ('boxes', 'scores')
    axes = {'images': {0: 'batch', **({2: 'height', 3: 'width'} if dynamic_size else {})}}
    for name in names:
        axes[name] = {0: 'batch', **({1: 'count'} if dynamic_size else {})}
    # The TorchScript exporter needs no further package and writes all of these opsets. torch's newer one, dynamo, only
    # writes 18 and converts down from there.
    chosen = {'dynamo': False} if 'dynamo' in torch.onnx.export.__code__.co_varnames else {}
    images = torch.zeros(2, 3, *size)
    graph.eval()
    fixed = nullcontext() if dynamic_size else constant_priors(graph, images)
    with warnings.catch_warnings(), torch.no_grad(), fixed:
        warnings.simplefilter('ignore')  # on the older exporter, and on sizes becoming constants
        torch.onnx.export(
            graph,
            (images,),
            str(path),
            opset_version=opset,
            input_names=['images'],
            output_names=list(names),
            dynamic_axes=axes,
            **chosen,
        )
        shapes = [output.shape for output in graph(images[:1])]
    model = onnx.load(str(path))
    foreign = {node.op_type for node in model.graph.node if node.domain not in ('', 'ai.onnx')}
    if foreign:
        raise ExportError(f'the export needs operators beside the standard ones: {sorted(foreign)}')
    for output, shape in zip(model.graph.output, shapes):
        dims = output.type.tensor_type.shape.dim
        for i in range(2 if dynamic_size else 1, len(shape)):
            dims[i].dim_value = shape[i]  # the exporter cannot infer it
    onnx.helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
