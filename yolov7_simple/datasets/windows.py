"""Windows of large pictures as training samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from mmdet.registry import DATASETS
from numpy.typing import NDArray

from ..utils.options import OptionError, Range, Share, checked_options


@DATASETS.register_module()
@checked_options
class TiledDataset:
    """Windows of the pictures of a dataset, and each picture as a whole, for small objects in large pictures.

    Use it inside :class:`SeededMixDataset`, around a dataset whose pipeline is ``LoadAnnotations`` alone. A picture
    gives as many windows as cover it, and is there once as a whole; one that fits into a window only as a whole. Each
    time a window is drawn anew: around one of the boxes that fit into it, or somewhere near its own place in the
    grid that covers the picture, so that all of it is met, empty parts too.

    A box that leaves the window is cut. One of which too little is seen is marked as ignored, which the head honours if
    its ``ignore_iof_thr`` is set.

    Args:
        dataset: Dataset of pictures, whose sizes are annotated, or its config.
        tile: Side of the windows in pixels.
        box_share: Share of the windows that are drawn around a box.
        min_seen: Share of a box that must be in the window.

    Raises:
        OptionError: A picture whose size is not annotated; images that are loaded before they are cut.
    """

    def __init__(
        self,
        dataset: dict | object,
        tile: Annotated[int, Range(32)],
        box_share: Share = 0.5,
        min_seen: Share = 0.3,
    ) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.dataset.full_init()
        self.tile = tile
        self.box_share = box_share
        self.min_seen = min_seen
        counts = []
        for i in range(len(self.dataset)):
            info = self.dataset.get_data_info(i)
            if not (info.get('width') and info.get('height')):
                raise OptionError(f'TiledDataset: {info["img_path"]} has no annotated width and height')
            counts.append(1 + num_windows((info['width'], info['height']), tile))
        self._ends = np.cumsum(counts)  # of the samples of each picture

    @property
    def metainfo(self) -> dict:
        """That of the pictures."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Nothing is left to do."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def get_data_info(self, index: int) -> dict:
        """Record of the picture that a sample is of."""
        return self.dataset.get_data_info(self._place(index)[0])

    def view_size(self, index: int) -> tuple[int, int]:
        """Width and height of a sample, in pixels of its picture."""
        info = self.get_data_info(index)
        size = info['width'], info['height']
        return (min(size[0], self.tile), min(size[1], self.tile)) if self._place(index)[1] else size

    def __getitem__(self, index: int) -> dict:
        """Draw a sample: that of the picture, with ``window`` (4,), xyxy in its pixels, and the boxes in it.

        A picture as a whole has no ``window``.
        """
        picture, place = self._place(index)
        results = self.dataset[picture]
        if 'img' in results:
            raise OptionError(
                'TiledDataset: the pipeline of its dataset must be LoadAnnotations alone, as MosaicAffineMixUp reads '
                'the images, and no more of them than the windows'
            )
        if place:
            boxes = results['gt_bboxes']
            corners = np.asarray(getattr(boxes, 'tensor', boxes))
            window = self._draw_window((results['width'], results['height']), place - 1, corners)
            shown, ignored, kept = cut_boxes(corners, window, self.min_seen)
            shown = shown.astype(np.float32)
            results['window'] = window
            results['gt_bboxes'] = type(boxes)(shown) if hasattr(boxes, 'tensor') else shown
            results['gt_bboxes_labels'] = results['gt_bboxes_labels'][kept]
            results['gt_ignore_flags'] = results['gt_ignore_flags'][kept] | ignored
        return results

    def _place(self, index: int) -> tuple[int, int]:
        """Index of the picture of a sample, and 0 for the whole or the number of its window, from 1."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        picture = int(np.searchsorted(self._ends, index, 'right'))
        return picture, int(index - (self._ends[picture - 1] if picture else 0))

    def _draw_window(self, size: Sequence[int], number: int, boxes: NDArray) -> NDArray[np.int64]:
        """Draw a window, xyxy, around a box or near its place in the grid."""
        size = np.array(size)
        sides = np.minimum(size, self.tile)
        fitting = boxes[((boxes[:, 2:] - boxes[:, :2]) <= sides).all(1)]
        # All are drawn in any case, so that what is drawn later does not depend on the boxes.
        is_around, which, shift = np.random.uniform(), np.random.uniform(), np.random.uniform(size=2)
        if len(fitting) and is_around < self.box_share:
            box = fitting[int(which * len(fitting))]
            low, high = box[2:] - sides, box[:2]
        else:
            columns, rows = np.ceil(size / self.tile)
            grid = np.array([number % columns, number // columns]) / np.maximum([columns - 1, rows - 1], 1)
            middle = grid * (size - sides)
            low, high = middle - sides / 2, middle + sides / 2
        start = np.clip(np.round(low + shift * (high - low)), 0, size - sides).astype(int)
        return np.concatenate([start, start + sides])


def num_windows(size: Sequence[int], tile: int) -> int:
    """Windows that cover a picture of this width and height; none if it is not larger than one."""
    return math.prod(math.ceil(side / tile) for side in size) if max(size) > tile else 0


def cut_boxes(boxes: NDArray, window: NDArray, min_seen: float) -> tuple[NDArray, NDArray, NDArray]:
    """Cut boxes to a window.

    Args:
        boxes: (N, 4), xyxy in pixels of the picture.
        window: (4,), xyxy.
        min_seen: Share of a box that must be in the window.

    Returns:
        The K boxes of which something is seen, (K, 4) in pixels of the window; whether it is too little, (K,); and
        their indices, (K,).
    """
    shown = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
    seen = (shown[:, 2:] - shown[:, :2]).prod(1)
    kept = np.flatnonzero(seen > 0)
    share = seen[kept] / np.maximum((boxes[kept, 2:] - boxes[kept, :2]).prod(1), 1e-9)
    return shown[kept] - np.tile(window[:2], 2), share < min_seen, kept
