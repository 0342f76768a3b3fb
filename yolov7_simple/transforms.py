"""Training samples: five source images -> one augmented image with its boxes.

Coordinates are continuous: pixel i covers [i, i + 1], so that a box and the pixels under it go through one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.models.data_preprocessors import BatchSyncRandomResize
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine import fileio
from numpy.typing import NDArray
from torch import Tensor

Place = Callable[[NDArray], NDArray]
Part = tuple[NDArray, NDArray, NDArray]

# JPEG decodes at these fractions for a fraction of the time.
REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def scaling(x: float, y: float) -> NDArray:
    """3x3 matrix that scales both axes."""
    return np.diag([x, y, 1.0])


def translation(x: float, y: float) -> NDArray:
    """3x3 matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def transform_boxes(matrix: NDArray, boxes: NDArray) -> NDArray:
    """Boxes around the transformed corners: (3, 3), (N, 4) xyxy -> (N, 4) xyxy."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def clip_boxes(boxes: NDArray, low: Sequence[float], high: Sequence[float]) -> NDArray:
    """Clip (N, 4) xyxy boxes to the rectangle from ``low`` to ``high``, both (x, y)."""
    return np.clip(boxes, np.tile(low, 2), np.tile(high, 2))


@TRANSFORMS.register_module()
class MosaicAffineMixUp(BaseTransform):
    """Mosaic, random affine, YOLOX mixup, and flip in one warp for each source image.

    The resize, the placement on the mosaic and the affine of a source are composed into one matrix and the source is
    warped once, straight into the output: there is no canvas. A source that the output does not see is not decoded,
    and one that shrinks is decoded at the smallest JPEG scale that is not below its final size.

    Used in mmdet's ``MultiImageMixDataset`` over a dataset whose own pipeline is ``LoadAnnotations`` alone: images
    are read here. Closed, which :class:`LastStageHook` does, it letterboxes the single image (and flips it).

    Required keys: ``img_path``, ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags``, ``mix_results``; ``width``
    and ``height`` if known. Added: ``img``, ``img_shape``. Modified: the three ``gt_``.

    Args:
        img_scale: Width and height of the output.
        center_ratio_range: The centre of the mosaic, relative to ``img_scale``, on a canvas twice that large.
        max_rotate_degree: Largest rotation, either way.
        max_shear_degree: Largest shear of each axis, either way.
        max_translate_ratio: Largest shift relative to ``img_scale``, either way.
        scaling_ratio_range: Scale of the mosaic (large scale jitter).
        mixup_ratio_range: Scale of the image that is mixed in, half and half, relative to its letterboxed size.
        mixup_prob: How often an image is mixed in.
        flip_prob: How often the output is flipped from left to right.
        min_bbox_size: Boxes with a side of fewer pixels are dropped.
        pad_val: Value of the pixels that no source covers.
        backend_args: Of mmengine's file backend.

    Raises:
        ValueError: A range that is empty or does not begin above 0.
    """

    def __init__(
        self,
        img_scale: tuple[int, int] = (640, 640),
        center_ratio_range: tuple[float, float] = (0.5, 1.5),
        max_rotate_degree: float = 10.0,
        max_shear_degree: float = 2.0,
        max_translate_ratio: float = 0.1,
        scaling_ratio_range: tuple[float, float] = (0.1, 2.0),
        mixup_ratio_range: tuple[float, float] = (0.5, 1.5),
        mixup_prob: float = 1.0,
        flip_prob: float = 0.5,
        min_bbox_size: float = 1.0,
        pad_val: int = 114,
        backend_args: dict | None = None,
    ) -> None:
        for name, (low, high) in {
            'img_scale': sorted(img_scale),
            'center_ratio_range': center_ratio_range,
            'scaling_ratio_range': scaling_ratio_range,
            'mixup_ratio_range': mixup_ratio_range,
        }.items():
            if not 0 < low <= high:
                raise ValueError(f'MosaicAffineMixUp: {name} must be above 0 and rise, got {(low, high)}')
        self.img_scale = np.array(img_scale)
        self.center_ratio_range = center_ratio_range
        self.max_rotate_degree = max_rotate_degree
        self.max_shear_degree = max_shear_degree
        self.max_translate_ratio = max_translate_ratio
        self.scaling_ratio_range = scaling_ratio_range
        self.mixup_ratio_range = mixup_ratio_range
        self.mixup_prob = mixup_prob
        self.flip_prob = flip_prob
        self.min_bbox_size = min_bbox_size
        self.pad_val = pad_val
        self.backend_args = backend_args
        # In shared memory: workers that live through all epochs see it change without being restarted.
        self._closed = torch.zeros(1, dtype=torch.bool).share_memory_()

    def close(self) -> None:
        """Letterbox single images from now on, in all worker processes."""
        self._closed.fill_(True)

    @property
    def closed(self) -> bool:
        """Whether mosaic, affine and mixup are off."""
        return bool(self._closed)

    def get_indexes(self, dataset: Sequence) -> list[int]:
        """Draw the other sources: three for the mosaic, and perhaps one to mix in."""
        if self.closed:
            return []
        num_sources = 3 + (np.random.uniform() < self.mixup_prob)
        return np.random.randint(0, len(dataset), num_sources).tolist()

    def transform(self, results: dict) -> dict:
        """Make the sample."""
        sources = [results, *results.pop('mix_results', [])]
        flip = np.random.uniform() < self.flip_prob
        if len(sources) == 1:
            image, parts = self._letterbox(sources[0], flip)
        else:
            flip_matrix = translation(self.img_scale[0], 0) @ scaling(-1, 1) if flip else np.eye(3)
            image, parts = self._mosaic(sources[:4], flip_matrix)
            for source in sources[4:]:
                image, part = self._mix_up(image, source, flip_matrix)
                parts.append(part)

        boxes, labels, ignored = (np.concatenate(values) for values in zip(*parts))
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_bbox_size).all(1)
        results['img'] = image
        results['img_shape'] = image.shape[:2]
        results['gt_bboxes'] = HorizontalBoxes(boxes[keep].astype(np.float32))
        results['gt_bboxes_labels'] = labels[keep]
        results['gt_ignore_flags'] = ignored[keep]
        return results

    def _draw_affine(self) -> NDArray:
        """Draw the matrix from mosaic to output: centred, scaled and rotated, sheared, moved."""
        angle = math.radians(np.random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        scale = np.random.uniform(*self.scaling_ratio_range)
        shear_x, shear_y = np.tan(np.radians(np.random.uniform(-self.max_shear_degree, self.max_shear_degree, 2)))
        shift = np.random.uniform(0.5 - self.max_translate_ratio, 0.5 + self.max_translate_ratio, 2) * self.img_scale
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        rotation = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return translation(*shift) @ shear @ rotation @ translation(*-self.img_scale)

    def _new_image(self) -> NDArray:
        return np.full((self.img_scale[1], self.img_scale[0], 3), self.pad_val, np.uint8)

    def _letterbox(self, source: dict, flip: bool) -> tuple[NDArray, list[Part]]:
        """One source, as large as it fits, top left; flipped within itself, to stay there."""

        def place(size: NDArray) -> NDArray:
            fit = min(self.img_scale / size)
            return scaling(fit, fit) @ (translation(size[0], 0) @ scaling(-1, 1) if flip else np.eye(3))

        image = self._new_image()
        return image, [self._add_source(image, source, place, self.img_scale, np.eye(3))]

    def _mosaic(self, sources: Sequence[dict], flip: NDArray) -> tuple[NDArray, list[Part]]:
        """Four sources around a point, on a canvas of twice the output that is never made."""
        image = self._new_image()
        center = np.floor(np.random.uniform(*self.center_ratio_range, 2) * self.img_scale)
        to_output = flip @ self._draw_affine()
        parts = []
        for source, left_above in zip(sources, ((1, 1), (0, 1), (1, 0), (0, 0))):

            def place(size: NDArray, left_above: tuple[int, int] = left_above) -> NDArray:
                fit = min(self.img_scale / size)
                return translation(*center - size * fit * left_above) @ scaling(fit, fit)

            # What lies beyond the canvas is cut off.
            parts.append(self._add_source(image, source, place, 2 * self.img_scale, to_output))
        return image, parts

    def _mix_up(self, image: NDArray, source: dict, flip: NDArray) -> tuple[NDArray, Part]:
        """Half the image, half another one, letterboxed, scaled, flipped and cropped at random."""
        scale = np.random.uniform(*self.mixup_ratio_range)
        extent = scale * self.img_scale
        own_flip = translation(extent[0], 0) @ scaling(-1, 1) if np.random.uniform() < 0.5 else np.eye(3)
        crop = np.floor(np.random.uniform(size=2) * np.maximum(extent - self.img_scale, 0))

        def place(size: NDArray) -> NDArray:
            fit = min(self.img_scale / size) * scale
            return own_flip @ scaling(fit, fit)

        other = self._new_image()
        part = self._add_source(other, source, place, extent, flip @ translation(*-crop))
        return cv2.addWeighted(image, 0.5, other, 0.5, 0, dst=other), part

    def _add_source(self, image: NDArray, source: dict, place: Place, extent: NDArray, to_output: NDArray) -> Part:
        """Warp one source into the image, and its boxes with it.

        Args:
            image: Drawn into.
            source: Annotations of one image.
            place: Size of the source -> matrix from the source to the frame it is cut off by.
            extent: Width and height of that frame.
            to_output: From the frame to the image.

        Returns:
            Boxes (N, 4), clipped to the image, labels (N,), and ignore flags (N,).
        """
        pixels, reduction = None, 0
        size = np.array([source.get('width') or 0, source.get('height') or 0])
        if not size.all():
            pixels, reduction = self._read(source['img_path'], 1), 1
            size = np.array(pixels.shape[1::-1])
        while True:
            matrix = place(size)
            whole = to_output @ matrix
            cut = transform_boxes(np.linalg.inv(matrix), np.array([[0, 0, *extent]]))
            visible = clip_boxes(cut, (0, 0), size)[0]
            low, high = np.split(clip_boxes(transform_boxes(whole, visible[None]), (0, 0), self.img_scale)[0], 2)
            low, high = np.floor(low).astype(int), np.ceil(high).astype(int)
            if (high <= low).any():
                break
            if pixels is None:
                shrunk = math.sqrt(abs(np.linalg.det(whole[:2, :2])))
                reduction = max(d for d in REDUCED_FLAGS if d == 1 or shrunk * d <= 1)
                pixels = self._read(source['img_path'], reduction)
                found = np.array(pixels.shape[1::-1])
                if (found != -(-size // reduction)).any():
                    # The annotation does not tell the size of the file: the file is right.
                    pixels, reduction = self._read(source['img_path'], 1), 1
                    size = np.array(pixels.shape[1::-1])
                    continue
            first = np.floor(visible[:2] / reduction).astype(int)
            last = np.ceil(visible[2:] / reduction).astype(int)
            # cv2 counts from the centre of the first pixel.
            warp = translation(-0.5, -0.5) @ translation(*-low) @ whole
            warp = warp @ scaling(reduction, reduction) @ translation(*first) @ translation(0.5, 0.5)
            cv2.warpAffine(
                pixels[first[1] : last[1], first[0] : last[0]],
                warp[:2],
                (high - low).tolist(),
                dst=image[low[1] : high[1], low[0] : high[0]],
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_TRANSPARENT,
            )
            break
        boxes = clip_boxes(transform_boxes(matrix, source['gt_bboxes'].numpy()), (0, 0), extent)
        boxes = clip_boxes(transform_boxes(to_output, boxes), (0, 0), self.img_scale)
        return boxes, source['gt_bboxes_labels'], source['gt_ignore_flags']

    def _read(self, path: str, reduction: int) -> NDArray:
        """Decode an image as mmcv's loader does, at 1 / reduction of its size."""
        data = np.frombuffer(fileio.get(path, backend_args=self.backend_args), np.uint8)
        image = cv2.imdecode(data, REDUCED_FLAGS[reduction]) if len(data) else None
        if image is None:
            raise ValueError(f'{path} cannot be read as an image: it is damaged or of an unknown kind')
        return image


@TRANSFORMS.register_module()
class RandomHSVGain(BaseTransform):
    """Multiply hue, saturation and value by random gains, hue around the circle.

    Required and modified key: ``img``, in place.

    Args:
        hue, saturation, value: Largest gain, as a fraction, either way.
    """

    def __init__(self, hue: float = 0.015, saturation: float = 0.7, value: float = 0.4) -> None:
        self.gains = np.array([hue, saturation, value])

    def transform(self, results: dict) -> dict:
        """Change the colours."""
        gains = 1 + np.random.uniform(-1, 1, 3) * self.gains
        levels = np.arange(256)[:, None] * gains
        levels[:, 0] %= 180
        table = np.clip(levels, 0, 255).astype(np.uint8)[None]  # (1, 256, 3)
        hsv = cv2.cvtColor(results['img'], cv2.COLOR_BGR2HSV)
        cv2.cvtColor(cv2.LUT(hsv, table, dst=hsv), cv2.COLOR_HSV2BGR, dst=results['img'])
        return results


@MODELS.register_module()
class BatchMultiScale(BatchSyncRandomResize):
    """Resize each training batch to a random square, the same on all ranks, and drop boxes that become too small.

    Args:
        random_size_range: Smallest and largest side in pixels.
        interval: Steps between two sizes.
        size_divisor: Sides are multiples of this.
        min_bbox_size: Boxes whose shorter side is then below this many pixels are dropped.
    """

    def __init__(
        self,
        random_size_range: tuple[int, int],
        interval: int = 1,
        size_divisor: int = 32,
        min_bbox_size: float = 8.0,
    ) -> None:
        super().__init__(random_size_range, interval, size_divisor)
        self.min_bbox_size = min_bbox_size

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample]) -> tuple[Tensor, list[DetDataSample]]:
        """Resize images (B, 3, H, W) and boxes."""
        inputs, data_samples = super().forward(inputs, data_samples)
        for data_sample in data_samples:
            boxes = data_sample.gt_instances.bboxes
            keep = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= self.min_bbox_size
            data_sample.gt_instances = data_sample.gt_instances[keep]
        return inputs, data_samples
