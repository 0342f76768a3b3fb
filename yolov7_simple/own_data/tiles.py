"""Settings for small objects in large pictures: training, validation and detection in windows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from ..datasets.windows import num_windows
from ..runtime.errors import InputError
from ..utils.configs import innermost_dataset, type_name
from .box_sizes import SMALLEST_SIDE, BoxSizes, read_box_sizes

DIVISOR = 32
DEFAULT_SCALE = (640, 640)  # of MosaicAffineMixUp
MAX_LOST_SHARE = 1 / 3  # of the boxes; beyond it windows are used without being asked for
TOLD_SHARE = 0.02  # of the boxes; what is less is not told
# A window is chosen so that nine of ten boxes have a shorter side of this many pixels in the network's input.
SMALL_SHARE, SMALL_SIDE = 0.1, 16.0
MAX_ENLARGEMENT = 2
# The longer sides of nineteen of twenty boxes fit into what two windows have in common, within these limits.
LARGE_SHARE, OVERLAPS = 0.95, (0.2, 0.5)
COUNTED_BY_COCO = 100  # detections of a class in a picture


class Tiles(NamedTuple):
    """How a set is seen in windows.

    Args:
        side: Of the windows, in pixels of the pictures.
        overlap: Share of it that two windows have in common when pictures are detected in.
        scale: Side of the network's input.
        images: (N, 2), width and height of the training pictures.
        why: In words.
    """

    side: int
    overlap: float
    scale: int
    images: NDArray
    why: str

    @property
    def num_samples(self) -> int:
        """Training samples of an epoch: the windows that cover the pictures, and each picture as a whole."""
        return len(self.images) + sum(num_windows(size, self.side) for size in self.images.tolist())

    @property
    def views(self) -> NDArray:
        """Width and height of the smallest training sample of each picture, (N, 2)."""
        is_cut = self.images.max(1, keepdims=True) > self.side
        return np.where(is_cut, np.minimum(self.images, self.side), self.images)

    def __str__(self) -> str:
        return (
            f'windows of {self.side} pixels, {self.overlap:.0%} of them shared where they are detected in: {self.why}; '
            f'{self.num_samples} samples an epoch of {len(self.images)} pictures'
        )


def plan_tiles(cfg: Config, ann_file: Path, tile: int | Literal['auto'] | None) -> tuple[Tiles | None, str]:
    """Decide whether a set is seen in windows, and of what size.

    Args:
        cfg: The config, before :func:`set_tiles`.
        ann_file: Training annotations.
        tile: Side of the windows; ``'auto'``: to be chosen; 0: no windows; None: chosen if more than
            :data:`MAX_LOST_SHARE` of the boxes would be lost without, and else no windows.

    Returns:
        The windows, or None; and what there is to say of the sizes of boxes, which may be nothing.

    Raises:
        InputError: Windows of this size make no sense, or the config cannot have any.
    """
    given = tile if isinstance(tile, int) else None
    if given and given < 0:
        raise InputError(f'--tile {given}: must be the side of the windows in pixels, or 0 for none')
    if given and given % DIVISOR:
        below = given // DIVISOR * DIVISOR
        raise InputError(f'--tile {given}: must be a multiple of {DIVISOR}, such as {below or DIVISOR}')
    problem = find_problem_with_tiles(cfg)
    if problem and tile:
        raise InputError(f'{cfg.filename}: --tile needs {problem}')
    mosaic = find_mosaic(cfg)
    if mosaic is None:
        return None, ''  # and the size is not known
    sizes = read_box_sizes(ann_file)
    scale, height = mosaic.get('img_scale', DEFAULT_SCALE)
    lost = int((sizes.shorter((scale, height)) < SMALLEST_SIDE).sum())
    share = lost / max(len(sizes.sides), 1)
    why = (
        f'{lost} of {len(sizes.sides)} training boxes ({share:.0%}) are below {SMALLEST_SIDE:g} pixels at '
        f'{scale} x {height}'
    )
    advice = f'{why}: a larger size keeps more of them' if share >= TOLD_SHARE else ''
    if problem:
        return None, advice
    largest = int(sizes.images.max())
    if given and given >= largest:
        raise InputError(
            f'--tile {given}: has no effect, as no side of a picture is longer than {largest} pixels; {why}. Leave it '
            'out, or name a smaller side'
        )
    side = given or choose_side(sizes, scale)
    if side < DIVISOR or not (tile or (tile is None and share > MAX_LOST_SHARE)):
        if tile == 'auto':
            raise InputError(f'--tile: pictures of at most {largest} pixels are too small to be cut; leave it out')
        return None, advice and advice + ', or --tile, which trains and detects in windows' * (side >= DIVISOR)
    tiles = Tiles(side, choose_overlap(sizes, side), scale, sizes.images, why)
    factors = scale / np.minimum(sizes.images, side).max(1)
    left = int((sizes.sides.min(1) * factors[sizes.owners] < SMALLEST_SIDE).sum())
    return tiles._replace(why=f'{why}, {left} in windows'), ''


def find_mosaic(cfg: Config) -> dict | None:
    """The dict of the mosaic of a config, if it has one."""
    steps = cfg.train_dataloader.dataset.get('pipeline', ())
    mosaics = [step for step in steps if type_name(step) == 'MosaicAffineMixUp']
    return mosaics[0] if len(mosaics) == 1 else None


def find_problem_with_tiles(cfg: Config) -> str | None:
    """Say what a config lacks to be trained in windows; None if it lacks nothing."""
    dataset = cfg.train_dataloader.dataset
    mosaic = find_mosaic(cfg)
    if type_name(dataset) != 'SeededMixDataset' or mosaic is None:
        return 'a train_dataloader.dataset of type SeededMixDataset with one MosaicAffineMixUp, which reads the windows'
    steps = [type_name(step) for step in innermost_dataset(dataset).get('pipeline', ())]
    if steps != ['LoadAnnotations'] or type_name(dataset['dataset']) != 'CheckedCocoDataset':
        return f'a CheckedCocoDataset in it, with a pipeline of LoadAnnotations alone and not {steps}'
    width, height = mosaic.get('img_scale', DEFAULT_SCALE)
    if width != height or width % DIVISOR:
        return f'a square img_scale, in multiples of {DIVISOR}, and MosaicAffineMixUp has {width} x {height}'
    if type_name(cfg.model) != 'SingleStageDetector':
        return f'a model of type SingleStageDetector, and it is {type_name(cfg.model)}'
    for stage in ('val', 'test'):
        steps = [type_name(step) for step in innermost_dataset(cfg[f'{stage}_dataloader'].dataset).get('pipeline', ())]
        others = [name for name in steps if name == 'Pad' or 'Resize' in name or 'Crop' in name or 'Flip' in name]
        if others != ['Resize']:
            return f'one Resize in the pipeline of {stage}_dataloader, and no other step that moves pixels: {steps}'
    return None


def choose_side(sizes: BoxSizes, scale: int) -> int:
    """Side of the windows in which small boxes are large enough; below :data:`DIVISOR` if there can be none."""
    small = np.quantile(sizes.sides.min(1), SMALL_SHARE) if len(sizes.sides) else SMALL_SIDE
    side = max(scale * small / SMALL_SIDE, scale / MAX_ENLARGEMENT)
    # Windows nearly as large as the pictures would change little.
    return int(min(side, sizes.images.max() / 2) // DIVISOR * DIVISOR)


def choose_overlap(sizes: BoxSizes, side: int) -> float:
    """Share of a window that large boxes fit into, of those that fit into a window."""
    longer = sizes.sides.max(1)
    longer = longer[longer < side]
    large = np.quantile(longer, LARGE_SHARE) if len(longer) else 0.0
    return float(np.clip(np.ceil(20 * large / side) / 20, *OVERLAPS))


def set_tiles(cfg: Config, tiles: Tiles) -> None:
    """Let a config train, validate and detect in windows.

    Args:
        cfg: A config in which nothing is set any more.
        tiles: What :func:`plan_tiles` says.
    """
    dataset = cfg.train_dataloader.dataset
    dataset.dataset = dict(type='TiledDataset', tile=tiles.side, dataset=dataset.dataset)
    cfg.model.update(type='TiledDetector', tile=tiles.side, overlap=tiles.overlap, scale=tiles.scale)
    for stage in ('val', 'test'):
        inner = innermost_dataset(cfg[f'{stage}_dataloader'].dataset)
        inner['pipeline'] = [step for step in inner['pipeline'] if type_name(step) != 'Resize']
        evaluator = cfg[f'{stage}_evaluator']
        most = most_boxes_of_a_class(Path(inner.get('data_root') or '', inner['ann_file']))
        if type_name(evaluator) in ('CocoMetric', 'ExactFasterCocoMetric') and 2 * most > COUNTED_BY_COCO:
            evaluator.update(type='WholePictureCocoMetric', proposal_nums=(100, 300, max(1000, 2 * most)))
    for key in ('tta_model', 'tta_pipeline'):  # which resizes
        cfg.pop(key, None)


def most_boxes_of_a_class(ann_file: Path) -> int:
    """Most boxes of one class in one picture of a file in COCO's form."""
    annotations = json.loads(ann_file.read_text(encoding='utf-8'))['annotations']
    counts = Counter((one['image_id'], one['category_id']) for one in annotations)
    return max(counts.values(), default=0)
