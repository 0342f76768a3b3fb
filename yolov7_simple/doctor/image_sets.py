"""Images and their boxes as arrays, one set a split: what the doctor looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from ..apis.inference import quiet
from ..own_data.folder import OwnData
from ..runtime.errors import InputError
from ..utils.configs import innermost_dataset, tiling_of, type_name

MIN_INPUT_SIDE = 8.0  # pixels; BatchMultiScale's default


@dataclasses.dataclass
class ImageSet:
    """The N images and M boxes of one split. Crowd regions are counted and are no boxes.

    Args:
        name: Of the split.
        source: Annotation file.
        classes: Names.
        paths: N files.
        sizes: (N, 2), width and height of the upright images.
        boxes: (M, 4), xyxy in pixels.
        labels: (M,), indices of classes.
        owners: (M,), indices of the boxes' images.
        num_crowds: Crowd regions.
        repairs: What was done when it was read, and how often.
        backend_args: Of mmengine's file backend, which reads the images.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    paths: list[str]
    sizes: NDArray
    boxes: NDArray
    labels: NDArray
    owners: NDArray
    num_crowds: int = 0
    repairs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    backend_args: dict | None = None

    @property
    def sides(self) -> NDArray:
        """Width and height of the boxes, (M, 2)."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def num_per_image(self) -> NDArray:
        """Boxes of each image, (N,)."""
        return np.bincount(self.owners, minlength=len(self.paths))

    @property
    def num_per_class(self) -> NDArray:
        """Boxes of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))


class InputSize(NamedTuple):
    """What a config makes of an image.

    Args:
        config: Its name.
        scale: Width and height that an image is resized to fit into.
        min_side: Boxes whose shorter side is then below so many pixels are not learned.
        tile: Side of the windows that images are seen in.
    """

    config: str
    scale: tuple[int, int]
    min_side: float
    tile: int | None = None

    def factors(self, sizes: NDArray) -> NDArray:
        """By how much images of these sizes (N, 2) are enlarged, (N,); as mmcv's Resize with ``keep_ratio`` does."""
        if self.tile:
            sizes = np.minimum(sizes, self.tile)
        return np.minimum(max(self.scale) / sizes.max(1), min(self.scale) / sizes.min(1))

    def __str__(self) -> str:
        windows = f' in windows of {self.tile}' if self.tile else ''
        return f'{self.scale[0]} x {self.scale[1]}{windows} ({self.config})'


def input_size(cfg: Config) -> InputSize:
    """The size that a config's validation resizes to, and the smallest boxes that its training learns.

    Raises:
        InputError: It does not resize by ``Resize`` with a ``scale``.
    """
    dataset = innermost_dataset((cfg.get('val_dataloader') or {}).get('dataset') or {})
    scale = next((one.get('scale') for one in dataset.get('pipeline', ()) if type_name(one) == 'Resize'), None)
    tiling = tiling_of(cfg)
    if tiling:
        scale = (tiling.scale, tiling.scale)
    if not isinstance(scale, (tuple, list)):
        raise InputError(f'{cfg.filename}: has no Resize with a scale in the pipeline of val_dataloader')
    augments = cfg.get('model', {}).get('data_preprocessor', {}).get('batch_augments') or ()
    min_sides = [one.get('min_bbox_size', MIN_INPUT_SIDE) for one in augments]
    return InputSize(
        Path(cfg.filename).name, tuple(scale), max(min_sides, default=MIN_INPUT_SIDE), tiling and tiling.tile
    )


def dataset_configs(cfg: Config) -> dict[str, dict]:
    """Configs of the sets of a config by the names of their splits. One that is evaluated on twice is there once.

    Raises:
        InputError: One is not a CheckedCocoDataset.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    configs: dict[str, dict] = {}
    for name in ('train', 'val', 'test'):
        dataset = innermost_dataset((cfg.get(f'{name}_dataloader') or {}).get('dataset') or {})
        if not dataset:
            continue
        if type_name(dataset) != 'CheckedCocoDataset':
            raise InputError(
                f'{cfg.filename}: {name} is a {type_name(dataset)}; only CheckedCocoDataset can be checked'
            )
        if dict(dataset, pipeline=[]) not in configs.values():
            configs[name] = dict(dataset, pipeline=[])
    return configs


def build_set(name: str, config: dict) -> ImageSet:
    """Read a set as training does.

    Raises:
        UserError: It cannot be used.
    """
    with quiet():  # what it reports is in its repairs, and the doctor's to tell
        dataset = DATASETS.build(dict(config, lazy_init=False))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return make_set(
        name,
        str(dataset.ann_file),
        dataset.metainfo['classes'],
        [(info['img_path'], info['width'], info['height']) for info in infos],
        [[(one['bbox_label'], *one['bbox'], one.get('ignore_flag', 0)) for one in info['instances']] for info in infos],
        repairs=dataset.repairs,
        backend_args=dataset.backend_args,
    )


def own_sets(data: OwnData) -> list[ImageSet]:
    """The sets of one's own data, as its reader has left them in memory."""
    numbers = {name: i for i, name in enumerate(data.classes)}
    return [
        make_set(
            name,
            str(data.splits[name].ann_file),
            data.classes,
            [(str(data.root / one.image), *one.size) for one in images],
            [[(numbers[box.name], *box[1:]) for box in one.boxes] for one in images],
        )
        for name, images in data.images.items()
    ]


def make_set(
    name: str,
    source: str,
    classes: Sequence[str],
    images: Sequence[tuple[str, float, float]],
    boxes: Sequence[Sequence[tuple]],
    **options,
) -> ImageSet:
    """A set from lists.

    Args:
        name: Of the split.
        source: Annotation file.
        classes: Names.
        images: Path, width and height of each.
        boxes: Of each image (label, x1, y1, x2, y2, whether it is a crowd region).
        options: Of :class:`ImageSet`.
    """
    rows = np.array([(i, *box) for i, own in enumerate(boxes) for box in own], float).reshape(-1, 7)
    is_crowd = rows[:, 6] > 0
    used = rows[~is_crowd]
    return ImageSet(
        name,
        source,
        tuple(classes),
        [path for path, _, _ in images],
        np.array([size for _, *size in images], float).reshape(-1, 2),
        used[:, 2:6],
        used[:, 1].astype(int),
        used[:, 0].astype(int),
        int(is_crowd.sum()),
        **options,
    )


def class_rows(sets: Sequence[ImageSet]) -> list[list]:
    """A row for each class: its name, its boxes in each set, and the median of the roots of their areas."""
    classes = list(dict.fromkeys(name for one in sets for name in one.classes))
    rows = []
    for name in classes:
        own = [one.labels == one.classes.index(name) if name in one.classes else np.zeros(0, bool) for one in sets]
        sides = np.concatenate([np.sqrt(one.sides[mask].prod(1)) for one, mask in zip(sets, own) if len(mask)] or [[]])
        rows.append([name, *(int(mask.sum()) for mask in own), f'{np.median(sides):.1f} px' if len(sides) else '-'])
    return rows
