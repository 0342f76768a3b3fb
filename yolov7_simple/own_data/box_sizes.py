"""How large the boxes of an annotation file are, in the images and once these are resized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST_SIDE = 8.0  # pixels of the network's input: the stride of its finest level


class BoxSizes(NamedTuple):
    """The M boxes of N images, without crowd regions.

    Args:
        sides: (M, 2), width and height in pixels of the image.
        owners: (M,), index of the image of each.
        images: (N, 2), width and height of each image.
    """

    sides: NDArray
    owners: NDArray
    images: NDArray

    @property
    def per_image(self) -> NDArray:
        """Boxes of each image, (N,)."""
        return np.bincount(self.owners, minlength=len(self.images))

    def shorter(self, img_scale: tuple[int, int]) -> NDArray:
        """Shorter side of each box, (M,), in an image that is letterboxed into this width and height."""
        factors = (np.array(img_scale) / self.images).min(1)
        return self.sides.min(1) * factors[self.owners]


def read_box_sizes(ann_file: str | Path) -> BoxSizes:
    """Measure the boxes of a file in COCO's form, as ``--data`` writes or checks it."""
    content = json.loads(Path(ann_file).read_text(encoding='utf-8'))
    images = {image['id']: i for i, image in enumerate(content['images'])}
    boxes = [one for one in content['annotations'] if not one.get('iscrowd') and min(one['bbox'][2:]) > 0]
    return BoxSizes(
        np.array([one['bbox'][2:] for one in boxes], float).reshape(-1, 2),
        np.array([images[one['image_id']] for one in boxes], int),
        np.array([(image['width'], image['height']) for image in content['images']], float).reshape(-1, 2),
    )


def shorter_sides(ann_file: str | Path, img_scale: tuple[int, int]) -> NDArray:
    """Shorter side of each box of a file, (M,), in images that are letterboxed into this width and height."""
    return read_box_sizes(ann_file).shorter(img_scale)
