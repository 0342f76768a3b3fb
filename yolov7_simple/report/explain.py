"""Pictures of what a detector sees in an image, and of what it gets wrong.

C classes, L levels; h, w of a level, H, W of the image as it is resized for the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.visualization import Visualizer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from ..models.head import YOLOv7SimpleHead
from ..runtime.drawing import draw_detections
from ..runtime.images import read_image
from ..runtime.tiles import fit_view
from .matching import NOTHING, EvaluatedImage, missed_boxes

MAX_SIDE = 960  # pixels of the drawn pictures
RIGHT, MISSED, WRONG, CONFUSED = (255, 255, 255), (0, 200, 255), (60, 60, 255), (255, 120, 200)  # BGR


def draw_mistakes(image: EvaluatedImage, matched: NDArray, classes: Sequence[str]) -> tuple[NDArray, NDArray]:
    """Draw truth and detections of an image: right ones thin, in black and white; mistakes in colour, with a label.

    Args:
        image: Truth and detections.
        matched: Result of :func:`.matching.match`.
        classes: Names of the classes.

    Returns:
        Two BGR images: the truth, with missed boxes in yellow, and the detections, with those where nothing is in red
        and those of the wrong class in violet.
    """
    pixels = read_image(image.path, None)
    scale = min(1.0, MAX_SIDE / max(pixels.shape[:2]))
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    labels, boxes = image.labels[: len(matched)], image.boxes[: len(matched)] * scale
    missed = missed_boxes(image, matched)
    found = np.setdiff1d(np.flatnonzero(~image.gt_crowds), missed)
    gt_labels = image.gt_labels[missed]
    truth = draw_detections(
        draw_plain(pixels, image.gt_boxes[found] * scale),
        image.gt_boxes[missed] * scale,
        None,
        gt_labels,
        [f'missed {name}' for name in classes],
        [MISSED] * len(classes),
    )
    nothing = matched == NOTHING
    right = ~nothing
    right[matched >= 0] = image.gt_labels[matched[matched >= 0]] == labels[matched >= 0]
    wrong = ~right
    names = [f'{name}?' for name in classes] + [
        f'{classes[image.gt_labels[i]]} as {classes[label]}' for i, label in zip(matched[wrong], labels[wrong])
    ]
    # Labels of this picture: first one for each class where nothing is, then one for each confusion.
    kinds = np.where(nothing[wrong], labels[wrong], len(classes) + np.arange(wrong.sum()))
    colors = [WRONG] * len(classes) + [CONFUSED] * int(wrong.sum())
    plain = draw_plain(pixels, boxes[right])
    return truth, draw_detections(plain, boxes[wrong], image.scores[: len(matched)][wrong], kinds, names, colors)


def draw_plain(image: NDArray[np.uint8], boxes: NDArray) -> NDArray[np.uint8]:
    """Draw boxes (N, 4) that need no attention: a thin white line on black, without labels."""
    image = image.copy()
    for color, width in (((0, 0, 0), 3), (RIGHT, 1)):
        for x1, y1, x2, y2 in boxes.round().astype(int).tolist():
            cv2.rectangle(image, (x1, y1), (x2, y2), color, width)
    return image


def draw_inside(
    model: nn.Module, dataset: Dataset, index: int, labels: Sequence[int], score_thr: float
) -> tuple[dict[int, NDArray], dict[int, NDArray]]:
    """Draw the feature maps of an image, and the activation of classes in it.

    Feature maps are drawn by mmengine, as the mean over channels. For the activation of a class (Grad-CAM, Selvaraju et
    al., 2017) channels are weighted by the mean gradient of its detections' scores, and the levels are summed.

    Args:
        model: A detector with a neck.
        dataset: Dataset of the test split.
        index: Index of the image in it.
        labels: Classes whose activation to draw; each has a detection of at least ``score_thr``.
        score_thr: Lowest score of a detection that counts.

    Returns:
        Feature maps by stride and activations by class, RGB, drawn over the network's input. Activations are empty
        unless the head is :class:`YOLOv7SimpleHead`.
    """
    data = dataset[index]
    if tiling := getattr(model, 'tiling', None):  # the picture as a whole, in which it looks at windows, too
        pixels = data['inputs'].numpy().transpose(1, 2, 0)
        pixels = fit_view(pixels, tiling.scale / max(pixels.shape[:2]))
        data['inputs'] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    batch = model.data_preprocessor({'inputs': [data['inputs']], 'data_samples': [data['data_samples']]}, False)
    height, width = data['inputs'].shape[1:]
    size = batch['inputs'].shape[2:]
    image = np.ascontiguousarray(data['inputs'].numpy().transpose(1, 2, 0)[..., ::-1])  # (H, W, 3), RGB

    def overlay(level: Tensor) -> NDArray:
        level = interpolate(level[None, None], size, mode='bilinear')[0, :, :height, :width]  # (1, H, W)
        return Visualizer.draw_featmap(level, image, channel_reduction='squeeze_mean', alpha=0.5)

    with torch.no_grad():
        features = model.extract_feat(batch['inputs'])
    features = [level.detach().requires_grad_() for level in features]  # L x (1, channels, h, w)
    maps = {round(size[0] / level.shape[2]): overlay(level.detach()[0].mean(0)) for level in features}
    activations: dict[int, NDArray] = {}
    if not isinstance(model.bbox_head, YOLOv7SimpleHead):
        return maps, activations
    with torch.enable_grad():
        cls_scores, _, objectnesses = model.bbox_head(features)
        scores = [(cls.sigmoid() * obj.sigmoid()).sqrt() for cls, obj in zip(cls_scores, objectnesses)]
        for label in labels:
            target = sum(level[0, label][level[0, label] >= score_thr].sum() for level in scores)
            gradients = torch.autograd.grad(target, features, retain_graph=True)
            levels = [
                (gradient.mean((2, 3), keepdim=True) * level).sum(1, keepdim=True).relu().detach()
                for gradient, level in zip(gradients, features)
            ]
            total = sum(interpolate(level, levels[0].shape[2:], mode='bilinear') for level in levels)
            activations[label] = overlay(total[0, 0])
    return maps, activations
