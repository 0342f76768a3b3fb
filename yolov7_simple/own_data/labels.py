"""What a reader of a label format returns: boxes by image, in the image's own words."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Box(NamedTuple):
    """One box, xyxy in pixels of the size that its label states.

    ``crowd``: a region with more objects than are boxed one by one; COCO's metric counts nothing in it.
    """

    name: str
    x1: float
    y1: float
    x2: float
    y2: float
    crowd: bool = False


class LabelledImage(NamedTuple):
    """One image and its boxes.

    Args:
        image: Path below the folder, with slashes.
        boxes: In no order.
        label: Where the boxes come from, for messages, such as a file, or a file and a line; empty: there is no label,
            the image shows background.
        size: Width and height that the label states; None or 0: it states none, and the boxes are on the upright image.
    """

    image: str
    boxes: list[Box]
    label: str = ''
    size: tuple[float, float] | None = None


class Labels(NamedTuple):
    """All that one reader has found in a folder.

    Args:
        form: Name of the format, such as 'YOLO'.
        images: Each image once.
        classes: Names in their declared order; None: none is declared, they are sorted.
        splits: Image -> 'train', 'val', 'test' or 'trainval', several joined by commas, where the format's own files
            declare it.
        source: What a user would call these labels, to name them when two formats are found: a file or a folder.
        is_declared: The folder itself says that it is of this format, as ``data.yaml`` does for YOLO.
        originals: Split -> annotation file in COCO's form that can be used as it is, and the folder of its images.
    """

    form: str
    images: list[LabelledImage]
    classes: tuple[str, ...] | None
    splits: dict[str, str]
    source: str
    is_declared: bool = False
    originals: dict[str, tuple[Path, str]] = {}
