"""What is in a set, as one page: problems, classes, sizes and places of boxes, and images in which errors show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from ..datasets.loading import decode_image
from ..report.charts import COLORS, chart, shorten_name
from ..report.page import Page
from ..runtime.drawing import draw_detections
from ..runtime.errors import DamagedImageError
from .checks import Problem
from .doctor import Examination
from .image_sets import ImageSet, InputSize, class_rows
from .pixels import Pixels

MAX_BARS = 30
MAX_DRAWN_CLASSES = 20  # of which an image is shown
NUM_EXTREMES = 2  # images of each kind
MAX_PICTURES = 60
MAX_ROWS = 200  # of a problem
LONGER_SIDE = 512  # pixels of a picture
MIN_GRID, MAX_GRID = 8, 32  # cells of a heat map along each side


def doctor_page(title: str, found: Examination) -> Page:
    """The page of the sets of a config or a folder."""
    page = Page(title)
    sets, problems = found.sets, found.problems
    page.section('Problems', *found.remarks, *(map(str, problems) if problems else ['None was found.']))
    for problem in problems:
        rows = [[item] for item in problem.items[:MAX_ROWS]]
        if len(rows) > problem.num_named:
            page.table(f'{problem.check}: {len(rows)} of {len(problem.items)}', [problem.check], rows, folded=True)
    if not sets:
        return page
    page.section('Classes')
    page.figures(
        [(picture, f'{name}. The numbers are in the table below.', '') for name, picture in draw_classes(sets)]
    )
    header = ['class', *(one.name for one in sets), 'median side']
    page.table('Boxes of each class; side: the root of the area, in pixels', header, class_rows(sets))
    page.section('Sizes and places of boxes')
    pictures = [*draw_sizes(sets, found.sizes), *draw_places(sets)]
    page.figures([(picture, name, '') for name, picture in pictures])
    page.section('Images', 'Chosen so that errors show: look at these.')
    page.figures(list(draw_images(sets, problems, found.pixels)))
    return page


def draw_classes(sets: Sequence[ImageSet]) -> list[tuple[str, bytes]]:
    """Bars of the boxes of each class, and of the boxes of each image."""
    pictures: dict[str, bytes] = {}
    rows = sorted(class_rows(sets), key=lambda row: -sum(row[1:-1]))
    shown = rows[:MAX_BARS][::-1]
    title = 'Boxes of each class' + (f', {MAX_BARS} of {len(rows)}' if len(rows) > MAX_BARS else '')
    with chart(title, 'boxes', '', pictures, (5.2, 1.6 + 0.22 * len(shown))) as axes:
        left = np.zeros(len(shown))
        for i, one in enumerate(sets):
            count = np.array([row[1 + i] for row in shown])
            axes.barh([shorten_name(row[0]) for row in shown], count, left=left, color=COLORS[i], label=one.name)
            left = left + count
        axes.grid(axis='y', visible=False)
        axes.legend(loc='lower right')
    counts = [one.num_per_image for one in sets]
    most = max(int(count.max(initial=0)) for count in counts)
    with chart('Boxes of each image', 'boxes', 'images', pictures) as axes:
        bins = np.arange(0, most + 2, max(1, -(-most // 40))) - 0.5
        axes.hist(counts, bins, stacked=True, color=COLORS[: len(sets)], label=[one.name for one in sets])
        axes.legend()
    return list(pictures.items())


def draw_sizes(sets: Sequence[ImageSet], sizes: Sequence[InputSize]) -> list[tuple[str, bytes]]:
    """Histograms of the shorter sides when resized, with the least that is learned, and of widths and heights."""
    pictures: dict[str, bytes] = {}
    if not sum(len(one.boxes) for one in sets):
        return []
    for size in sizes:
        shorter = [(one.sides.min(1) * size.factors(one.sizes)[one.owners]).clip(0.5) for one in sets]
        every = np.concatenate(shorter)
        title = f'Shorter sides at {size.scale[0]} x {size.scale[1]}'
        with chart(title, 'pixels', 'boxes', pictures) as axes:
            bins = np.geomspace(every.min(), every.max() * 1.001, 41)
            axes.hist(shorter, bins, stacked=True, color=COLORS[: len(sets)], label=[one.name for one in sets])
            label = f'below {size.min_side:g} is not learned'
            axes.axvline(size.min_side, color='black', linestyle='--', linewidth=1, label=label)
            axes.set_xscale('log')
            axes.xaxis.set_major_formatter('{x:g}')
            axes.legend()
    sides = np.concatenate([one.sides for one in sets]).clip(0.5)
    with chart('Widths and heights', 'width [px]', 'height [px]', pictures, (5.2, 4.2)) as axes:
        bins = np.geomspace(sides.min() / 1.1, sides.max() * 1.1, int(np.clip(len(sides) ** 0.5, 12, 60)))
        counted = axes.hist2d(sides[:, 0], sides[:, 1], bins=[bins, bins], cmin=1, cmap='viridis_r')
        axes.figure.colorbar(counted[3], ax=axes, label='boxes')
        axes.set(xscale='log', yscale='log')
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter('{x:g}')
            axis.set_minor_formatter(NullFormatter())
    return list(pictures.items())


def draw_places(sets: Sequence[ImageSet]) -> list[tuple[str, bytes]]:
    """Heat maps of the centres of boxes, as shares of width and height, one a set."""
    pictures: dict[str, bytes] = {}
    for one in sets:
        if not len(one.boxes):
            continue
        centres = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2 / one.sizes[one.owners]
        with chart(f'Centres of boxes, {one.name}', 'share of the width', 'share of the height', pictures) as axes:
            cells = int(np.clip(len(centres) ** 0.5 / 3, MIN_GRID, MAX_GRID))  # some ten boxes each
            bins = np.linspace(0, 1, cells + 1)
            counted = axes.hist2d(centres[:, 0], centres[:, 1], bins=[bins, bins], cmap='viridis')
            axes.figure.colorbar(counted[3], ax=axes, label='boxes')
            axes.grid(False)
            axes.invert_yaxis()
    return list(pictures.items())


def choose_images(
    sets: Sequence[ImageSet], problems: Sequence[Problem], pixels: Mapping[str, Sequence[Pixels]]
) -> dict[tuple[str, int], list[str]]:
    """Choose images in which errors show: (set, index) -> why, the most telling first."""
    chosen: dict[tuple[str, int], list[str]] = {}

    def choose(one: ImageSet, images: Sequence[int], why: str) -> None:
        for i in images:
            chosen.setdefault((one.name, int(i)), []).append(why)

    for problem in problems:
        for key in problem.places:
            chosen.setdefault(key, []).append(problem.check)
    for one in sets:
        turned = [i for i, own in enumerate(pixels.get(one.name, ())) if own.orientation != 1]
        choose(one, turned[:NUM_EXTREMES], 'turned by EXIF')
        share = one.sides.prod(1) / one.sizes.prod(1)[one.owners]
        order = one.owners[np.argsort(share, kind='stable')].tolist()
        choose(one, list(dict.fromkeys(order))[:NUM_EXTREMES], 'smallest box')
        choose(one, list(dict.fromkeys(order[::-1]))[:NUM_EXTREMES], 'largest box')
        choose(one, np.argsort(-one.num_per_image, kind='stable')[:NUM_EXTREMES], 'most boxes')
        choose(one, np.random.default_rng(0).permutation(len(one.paths))[:NUM_EXTREMES], 'drawn at random')
    for one in sets:
        for label in np.argsort(-one.num_per_class, kind='stable')[:MAX_DRAWN_CLASSES].tolist():
            # Of each class the box of median size: such as most are, and no picture twice where it can be helped.
            own = np.flatnonzero(one.labels == label)
            own = own[np.argsort(one.sides[own].prod(1), kind='stable')]
            choose(one, one.owners[own[len(own) // 2 : len(own) // 2 + 1]], one.classes[label])
    return dict(list(chosen.items())[:MAX_PICTURES])


def draw_images(
    sets: Sequence[ImageSet], problems: Sequence[Problem], pixels: Mapping[str, Sequence[Pixels]]
) -> Iterator[tuple[NDArray, str, str]]:
    """Pictures of the chosen images with their boxes, in words, and captions."""
    by_name = {one.name: one for one in sets}
    for (name, i), reasons in choose_images(sets, problems, pixels).items():
        one = by_name[name]
        try:
            image = decode_image(one.paths[i], backend_args=one.backend_args)
        except DamagedImageError:
            continue  # it is among the problems
        own = one.owners == i
        scale = min(1, LONGER_SIDE / max(image.shape[:2]))
        boxes = one.boxes[own] * scale
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
        caption = f'{", ".join(dict.fromkeys(reasons))}: {name}, {one.paths[i]}, {own.sum()} boxes'
        yield (
            draw_detections(image, boxes, None, one.labels[own], one.classes),
            f'An image with its boxes: {caption}',
            caption,
        )
