"""The plan of a training as a function of the set: numbers of images and boxes, sizes of both. No config is read here.

All constants of the recipe that ``--data`` applies are in this file.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .box_sizes import SMALLEST_SIDE, BoxSizes
from .tiles import DIVISOR

ImageSize = tuple[int, int]  # width and height in pixels

# Length. A small set is seen more often: enough steps to learn something, and no fewer epochs than a fine-tuning needs.
MIN_STEPS = 5000
MIN_EPOCHS = 50
MIN_WARMUP_STEPS = 100
MAX_WARMUP_SHARE = 0.1
LAST_STAGE_SHARE = 0.3
# Options of MosaicAffineMixUp in the place of the config's.
AUGMENTATION: dict[str, Any] = {}
# Learning rate of AdamW for an update of RATE_BATCH images, in the place of the config's, from random weights and from
# trained ones. For another batch it grows with its root, up to MAX_SHORT_RATE, as AdamW's steps do not grow with it.
# Runs of more than SHORT_RUN steps have the config's.
RATE, TRAINED_RATE, MAX_SHORT_RATE = 0.003, 0.0005, 0.004
RATE_BATCH = 8
SHORT_RUN = 30_000

# Size of the images. It grows from the config's until at most such a share of the boxes has a shorter side below so
# many pixels, but neither above MAX_IMAGE_SIDE nor MAX_GROWTH times the config's, since the cost grows with the area.
SMALL_BOX_SIDE = 12.0
SMALL_BOX_SHARE = 0.25
MAX_IMAGE_SIDE = 640
MAX_GROWTH = 2.0
# Where that is not reached, the largest is taken only if it brings so many of the boxes above SMALLEST_SIDE.
MIN_GAIN = 0.1
# Images that are smaller than the config's size need no larger one, but the coarsest stride needs some cells.
MIN_IMAGE_SIDE = 160

# With a wall time: as long as fits, up to MAX_TIMED_EPOCHS; at a smaller size where ENOUGH_STEPS do not fit; refused
# below LEAST_STEPS.
MAX_TIMED_EPOCHS = 300
ENOUGH_STEPS = 400
LEAST_STEPS = 100

# A batch that is found, of all ranks together: it leaves so many steps an epoch, and the learning rate, which follows
# it, stays below so many times that of the config.
MIN_STEPS_AN_EPOCH = 25
MAX_RATE_GROWTH = 2.0


def num_below(boxes: BoxSizes, pixels: float, size: ImageSize) -> int:
    """Boxes whose shorter side is below so many pixels once their images fit into a size, as training fits them."""
    return int((boxes.shorter(size) < pixels).sum())


def share_below(boxes: BoxSizes, pixels: float, size: ImageSize) -> float:
    """The same as a share of all boxes."""
    return num_below(boxes, pixels, size) / max(len(boxes.sides), 1)


def scaled(size: ImageSize, longer: int) -> ImageSize:
    """The size of the same shape whose longer side is this, both in multiples of :data:`DIVISOR`."""
    if longer == max(size):
        return size
    width, height = (max(DIVISOR, DIVISOR * round(side * longer / max(size) / DIVISOR)) for side in size)
    return width, height


def named(size: ImageSize) -> str:
    """A size in words."""
    return f'{size[0]} x {size[1]}'


def choose_size(boxes: BoxSizes, base: ImageSize) -> tuple[ImageSize, str]:
    """Choose the size of the images that a set needs.

    Args:
        boxes: Of the training set.
        base: Size of the config.

    Returns:
        The size, and why.
    """
    longer = max(base)
    largest = int(boxes.images.max(initial=0))
    sensible = max(DIVISOR * math.ceil(largest / DIVISOR), MIN_IMAGE_SIDE)
    if largest and sensible < longer:
        return scaled(base, sensible), f'and not {named(base)}, since no image has a side above {largest} pixels'
    most = min(sensible, max(longer, min(MAX_IMAGE_SIDE, int(MAX_GROWTH * longer))))
    sizes = [scaled(base, side) for side in (longer, *range(DIVISOR * (longer // DIVISOR + 1), most + 1, DIVISOR))]
    share = share_below(boxes, SMALL_BOX_SIDE, base)
    why = f'{share:.0%} of the boxes have a shorter side below {SMALL_BOX_SIDE:g} pixels at {named(base)}'
    for size in sizes:
        if share_below(boxes, SMALL_BOX_SIDE, size) <= SMALL_BOX_SHARE:
            return size, 'as in the config' if size == base else f'since {why}'
    gain = share_below(boxes, SMALLEST_SIDE, base) - share_below(boxes, SMALLEST_SIDE, sizes[-1])
    if len(sizes) > 1 and gain >= MIN_GAIN:
        return sizes[-1], f'the largest for a config of {named(base)}, since {why}'
    return base, f'as in the config, though {why}'


def learning_rate(num_images: int, is_trained: bool) -> float:
    """Learning rate of a short run.

    Args:
        num_images: Of an update.
        is_trained: Whether it starts from trained weights.
    """
    return min((TRAINED_RATE if is_trained else RATE) * math.sqrt(num_images / RATE_BATCH), MAX_SHORT_RATE)


class EpochSchedule(NamedTuple):
    """A length, and what follows from it.

    Args:
        epochs: Length.
        steps: Of an epoch.
        warmup: Epochs of warm-up.
        last: Epochs of the last stage.
        interval: Epochs from one validation to the next, before the last stage.
        every: The same in the last stage.
    """

    epochs: int
    steps: int
    warmup: int
    last: int
    interval: int
    every: int = 1

    @property
    def num_validations(self) -> int:
        """How often mmengine's loop evaluates, which looks for the interval an epoch ahead."""
        first = self.epochs - self.last - 1
        return sum(
            epoch % (self.every if epoch >= first else self.interval) == 0 or epoch == self.epochs
            for epoch in range(1, self.epochs + 1)
        )


class Limits(NamedTuple):
    """What the config says of the length.

    Args:
        epochs: The most that are taken without being asked for.
        last: The most of the last stage.
        interval: The longest between two validations.
    """

    epochs: int
    last: int | None = None
    interval: int = 1


def default_epochs(steps: int, limits: Limits) -> int:
    """Enough for :data:`MIN_STEPS` steps and :data:`MIN_EPOCHS`, but no more than the config has."""
    return min(limits.epochs, max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps)))


def make_schedule(steps: int, epochs: int, limits: Limits, every: int = 1) -> EpochSchedule:
    """The schedule of a length.

    Args:
        steps: Of an epoch.
        epochs: Length.
        limits: Of the config.
        every: How many times rarer validations are than every twentieth of the length and each of the last epochs.
    """
    warmup = max(1, min(math.ceil(MIN_WARMUP_STEPS / steps), int(MAX_WARMUP_SHARE * epochs)))
    last = round(LAST_STAGE_SHARE * epochs)
    return EpochSchedule(
        epochs,
        steps,
        warmup,
        last if limits.last is None else min(last, limits.last),
        max(1, min(limits.interval, epochs // 20)) * every,
        every,
    )
