"""Training samples: five source images -> one augmented image with its boxes.

Coordinates and matrices are as in :mod:`.geometry`. N boxes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Annotated

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.logging import print_log
from numpy.typing import NDArray

from ..utils.options import AtLeast0, Count, CountOr0, OptionError, Range, Share, checked_options
from .geometry import (
    clip_box,
    clip_boxes,
    draw,
    have_overlap,
    inverse,
    mirror,
    scaling,
    transform_box,
    transform_boxes,
    translation,
    zoom,
)
from .image_cache import ImageCache
from .image_reader import ImageReader, Source

Place = Callable[[NDArray], NDArray]
Part = tuple[NDArray, NDArray, NDArray]


@TRANSFORMS.register_module()
@checked_options
class MosaicAffineMixUp(BaseTransform):
    """Mosaic, random affine, YOLOX mixup, and flip in one warp for each source image.

    Resize, placement on the mosaic and affine of a source are composed into one matrix, and the source is warped once,
    straight into the output, without a canvas. A source that is not visible in the output is not decoded, and one that
    shrinks is decoded at the smallest JPEG scale that is not below its final size.

    Use it in :class:`SeededMixDataset` over a dataset whose own pipeline is ``LoadAnnotations`` alone, since images are
    read here. Once :class:`LastStageHook` has closed it, it only letterboxes and flips the single image.

    Required keys: ``img_path``, ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags``, ``mix_results``; ``width``
    and ``height`` if known; ``window`` of a part of an image, see :class:`TiledDataset`. Added: ``img``, ``img_shape``,
    ``content_shape`` (height and width of a letterbox, without padding). Modified: the three ``gt_``.

    Args:
        img_scale: Width and height of the output.
        center_ratio_range: The centre of the mosaic, relative to ``img_scale``, on a canvas twice that large.
        max_rotate_degree: Largest rotation, either way.
        max_shear_degree: Largest shear of each axis, either way.
        max_translate_ratio: Largest shift relative to ``img_scale``, either way.
        scaling_ratio_range: Scale of the mosaic (large scale jitter).
        mixup_ratio_range: Scale of the image that is mixed in, half and half, relative to its letterboxed size.
        mosaic_prob: Probability of a mosaic; otherwise the affine is that of the single image, in the middle, which is
            seen as a whole then, as in testing.
        mixup_prob: Probability that an image is mixed into a mosaic.
        flip_prob: Probability that the output is flipped left and right.
        min_bbox_size: Boxes with a side of fewer pixels are dropped, on the canvas and in the output.
        pad_val: Value of the pixels that no source covers.
        max_cached_images: Of configs of before, and without effect: see ``cache_images`` of the dataset.
        backend_args: Options of mmengine's file backend.

    Raises:
        ValueError: A range that is empty or does not begin above 0, or a probability outside of [0, 1].
    """

    def __init__(
        self,
        img_scale: tuple[Count, Count] = (640, 640),
        center_ratio_range: tuple[float, float] = (0.5, 1.5),
        max_rotate_degree: Annotated[float, Range(0, 180)] = 10.0,
        max_shear_degree: Annotated[float, Range(0, 80)] = 2.0,
        max_translate_ratio: AtLeast0 = 0.1,
        scaling_ratio_range: tuple[float, float] = (0.1, 2.0),
        mixup_ratio_range: tuple[float, float] = (0.5, 1.5),
        mixup_prob: Share = 1.0,
        flip_prob: Share = 0.5,
        min_bbox_size: AtLeast0 = 1.0,
        pad_val: Annotated[int, Range(0, 255)] = 114,
        max_cached_images: CountOr0 = 0,
        backend_args: dict | None = None,
        mosaic_prob: Share = 1.0,
    ) -> None:
        for name, (low, high) in {
            'center_ratio_range': center_ratio_range,
            'scaling_ratio_range': scaling_ratio_range,
            'mixup_ratio_range': mixup_ratio_range,
        }.items():
            if not 0 < low <= high:
                raise OptionError(f'MosaicAffineMixUp: {name} must be above 0 and rise, got {(low, high)}')
        if max_cached_images:
            print_log(
                'MosaicAffineMixUp: max_cached_images has no effect; cache_images=ram of the dataset is as fast, '
                'and draws from all images',
                'current',
                level=logging.WARNING,
            )
        self.img_scale = np.array(img_scale)
        self.center_ratio_range = center_ratio_range
        self.max_rotate_degree = max_rotate_degree
        self.max_shear_degree = max_shear_degree
        self.max_translate_ratio = max_translate_ratio
        self.scaling_ratio_range = scaling_ratio_range
        self.mixup_ratio_range = mixup_ratio_range
        self.mosaic_prob = mosaic_prob
        self.mixup_prob = mixup_prob
        self.flip_prob = flip_prob
        self.min_bbox_size = min_bbox_size
        self.pad_val = pad_val
        self.backend_args = backend_args
        self._image_cache: ImageCache | None = None
        # In shared memory, so that persistent workers see it change.
        self._closed = torch.zeros(1, dtype=torch.bool).share_memory_()

    def close(self, closed: bool = True) -> None:
        """Letterbox single images from now on, in all worker processes; with ``False``, make mosaics again."""
        self._closed.fill_(closed)

    @property
    def closed(self) -> bool:
        """Whether mosaic, affine and mixup are off."""
        return bool(self._closed)

    @property
    def enlargement(self) -> float:
        """By how much a letterboxed image is enlarged at most."""
        shear = math.tan(math.radians(self.max_shear_degree))
        return max(self.scaling_ratio_range[1] * math.hypot(1, shear), self.mixup_ratio_range[1], 1)

    def use_cache(self, cache: ImageCache) -> None:
        """Keep decoded images in a cache from now on."""
        self._image_cache = cache

    def get_indexes(self, dataset: Sequence) -> list[int]:
        """Draw the other sources, three for the mosaic and perhaps one to mix in."""
        if self.closed or (self.mosaic_prob < 1 and np.random.uniform() >= self.mosaic_prob):
            return []
        return np.random.randint(0, len(dataset), 3 + (np.random.uniform() < self.mixup_prob)).tolist()

    def transform(self, results: dict) -> dict:
        """Make the sample."""
        if 'gt_masks' in results:
            raise OptionError('MosaicAffineMixUp moves boxes, not masks: set with_mask=False in LoadAnnotations')
        reader = ImageReader(self.backend_args, self._image_cache)
        others = results.pop('mix_results', None)
        sources = [Source(source, reader) for source in (results, *(others or []))]
        flip = np.random.uniform() < self.flip_prob
        if self.closed:
            image, part, results['content_shape'] = self._letterbox(sources[0], flip)
            parts = [part]
        else:
            if others is None:
                raise OptionError('MosaicAffineMixUp needs other images: wrap the dataset in SeededMixDataset')
            flip_matrix = mirror(self.img_scale[0]) if flip else np.eye(3)
            image, parts = self._mosaic(sources[:4], flip_matrix) if others else self._single(sources[0], flip_matrix)
            for source in sources[4:]:
                image, part = self._mix_up(image, source, flip_matrix)
                parts.append(part)

        boxes, labels, ignored = (np.concatenate(values) for values in zip(*parts))
        results['img'] = image
        results['img_shape'] = image.shape[:2]
        results['gt_bboxes'] = HorizontalBoxes(boxes.astype(np.float32))
        results['gt_bboxes_labels'] = labels
        results['gt_ignore_flags'] = ignored
        return results

    def _draw_affine(self, center: NDArray) -> NDArray:
        """Draw the matrix from canvas to output, which centres, rotates and scales, shears and moves."""
        angle = math.radians(np.random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        scale = np.random.uniform(*self.scaling_ratio_range)
        shear_x, shear_y = np.tan(np.radians(np.random.uniform(-self.max_shear_degree, self.max_shear_degree, 2)))
        shift = np.random.uniform(0.5 - self.max_translate_ratio, 0.5 + self.max_translate_ratio, 2) * self.img_scale
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        rotation = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return translation(*shift) @ shear @ rotation @ translation(*-center)

    def _new_image(self, num_channels: int = 3) -> NDArray:
        return np.full((self.img_scale[1], self.img_scale[0], num_channels), self.pad_val, np.uint8)

    def _letterbox(self, source: Source, flip: bool) -> tuple[NDArray, Part, tuple[int, int]]:
        """Draw one source, as large as fits, in the top left corner; a flip keeps it there."""

        def place(size: NDArray) -> NDArray:
            fit = min(self.img_scale / size)
            return scaling(fit, fit) @ (mirror(size[0]) if flip else np.eye(3))

        image = self._new_image()
        part = self._add_source(image, source, place, self.img_scale, np.eye(3))
        width, height = np.ceil(min(self.img_scale / source.size) * source.size - 1e-6).astype(int).tolist()
        return image, part, (height, width)

    def _mosaic(self, sources: Sequence[Source], flip: NDArray) -> tuple[NDArray, list[Part]]:
        """Draw four sources around a point of a canvas that is twice the output and never made."""
        # OpenCV warps four channels in half the time of three; the fourth is not used.
        image = self._new_image(4)
        center = np.floor(np.random.uniform(*self.center_ratio_range, 2) * self.img_scale)
        to_output = flip @ self._draw_affine(self.img_scale)
        parts = []
        for source, left_above in zip(sources, ((1, 1), (0, 1), (1, 0), (0, 0))):

            def place(size: NDArray, left_above: tuple[int, int] = left_above) -> NDArray:
                fit = min(self.img_scale / size)
                return translation(*center - size * fit * left_above) @ scaling(fit, fit)

            # Sources are cut off at the edge of the canvas.
            parts.append(self._add_source(image, source, place, 2 * self.img_scale, to_output))
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR), parts

    def _single(self, source: Source, flip: NDArray) -> tuple[NDArray, list[Part]]:
        """Draw one source, letterboxed in the middle and moved by the affine of a mosaic."""

        def place(size: NDArray) -> NDArray:
            fit = min(self.img_scale / size)
            return translation(*(self.img_scale - fit * size) / 2) @ scaling(fit, fit)

        image = self._new_image(4)
        to_output = flip @ self._draw_affine(self.img_scale / 2)
        part = self._add_source(image, source, place, self.img_scale, to_output)
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR), [part]

    def _mix_up(self, image: NDArray, source: Source, flip: NDArray) -> tuple[NDArray, Part]:
        """Average the image with another one, letterboxed, scaled, flipped and cropped at random."""
        scale = np.random.uniform(*self.mixup_ratio_range)
        extent = scale * self.img_scale
        own_flip = mirror(extent[0]) if np.random.uniform() < 0.5 else np.eye(3)
        crop = np.floor(np.random.uniform(size=2) * np.maximum(extent - self.img_scale, 0))

        def place(size: NDArray) -> NDArray:
            fit = min(self.img_scale / size) * scale
            return own_flip @ scaling(fit, fit)

        other = self._new_image()
        part = self._add_source(other, source, place, extent, flip @ translation(*-crop))
        return cv2.addWeighted(image, 0.5, other, 0.5, 0, dst=other), part

    def _add_source(self, image: NDArray, source: Source, place: Place, extent: NDArray, to_output: NDArray) -> Part:
        """Draw one source into the image, and move its boxes there.

        Args:
            image: Drawn into.
            source: What to draw; decoded only if any of it is visible.
            place: Size of the source -> matrix from the source to the frame that cuts it off.
            extent: Width and height of that frame.
            to_output: Matrix from the frame to the image.

        Returns:
            Boxes (N, 4), clipped to the image, labels (N,), and ignore flags (N,).
        """

        def scale_of(size: NDArray) -> float:
            return zoom(to_output @ place(size))

        if source.size is None:
            source.read(scale_of)
        size = source.size
        to_frame = place(size)
        matrix = to_output @ to_frame
        # inside: the part of the source within the frame; seen: the part that the image has room for. Source pixels.
        inside = clip_box(transform_box(inverse(to_frame), (0, 0, *extent.tolist())), size.tolist())
        area = clip_box(transform_box(matrix, inside), self.img_scale.tolist())
        left, top, right, bottom = math.floor(area[0]), math.floor(area[1]), math.ceil(area[2]), math.ceil(area[3])
        seen = transform_box(inverse(matrix), (left, top, right, bottom))
        if left < right and top < bottom and have_overlap(seen, inside):
            if source.image is None:
                source.read(scale_of)
                if (source.size != size).any():
                    return self._add_source(image, source, place, extent, to_output)
            target = image[top:bottom, left:right]
            pixels, reduction, _ = source.image
            x, y = source.origin
            inside, seen = ((a + x, b + y, c + x, d + y) for a, b, c, d in (inside, seen))
            draw(pixels, reduction, inside, seen, translation(-left, -top) @ matrix @ translation(-x, -y), target)

        framed = clip_boxes(transform_boxes(to_frame, source.boxes), extent)
        boxes = clip_boxes(transform_boxes(to_output, framed), self.img_scale)
        # Sizes are also checked in the frame, since rotation gives a box without width some width again.
        sides = np.concatenate([framed[:, 2:] - framed[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        keep = (sides >= self.min_bbox_size).all(1)
        return boxes[keep], source.labels[keep], source.ignored[keep]


@TRANSFORMS.register_module()
@checked_options
class RandomHSVGain(BaseTransform):
    """Multiply hue, saturation and value by random gains, hue around the circle.

    Required and modified key: ``img``. A letterbox's padding, outside of ``content_shape``, keeps the colour that it
    has in testing. The result is a view of three planes, which ``PackDetInputs`` need not copy.

    Args:
        hue, saturation, value: Largest change of each, as a fraction, either way.

    Raises:
        ValueError: A gain that is not in [0, 1].
    """

    def __init__(self, hue: Share = 0.015, saturation: Share = 0.7, value: Share = 0.4) -> None:
        self.gains = np.array([hue, saturation, value])

    def transform(self, results: dict) -> dict:
        """Change the colours."""
        gains = 1 + np.random.uniform(-1, 1, 3) * self.gains
        image = np.ascontiguousarray(results['img'])  # a flipped one is a view that OpenCV cannot write to
        height, width = results.get('content_shape', image.shape[:2])
        content = image[:height, :width]
        hsv = cv2.cvtColor(content, cv2.COLOR_BGR2HSV)
        # Hue is 0 to 179 in OpenCV, whose conversion back takes it modulo 180.
        cv2.cvtColor(cv2.transform(hsv, np.diag(gains), dst=hsv), cv2.COLOR_HSV2BGR, dst=content)
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        cv2.split(image, list(planes))
        results['img'] = planes.transpose(1, 2, 0)
        return results
