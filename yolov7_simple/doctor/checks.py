"""What spoils training or evaluation: each check looks at the sets of all splits, and yields problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import examples
from .image_sets import ImageSet, InputSize
from .pixels import Pixels, find_near

# Two people never draw the same box within a twentieth; a file that was merged twice holds it twice.
TWICE_IOU = 0.95
# In 213 images of COCO 8% of the boxes are below 8 pixels at 640. With twice as many, much of the labelling is lost.
MAX_TINY_SHARE = 0.15
# The most in the same images is 22. Beyond is nearly a line, mostly of corners that were mixed up.
MAX_ASPECT = 25.0
# Of no class of ten boxes or more there do more than 57% touch the border. Boxes at a wrong scale are cut, and all do.
MAX_BORDER_SHARE, MIN_BORDER_BOXES = 0.8, 10
BORDER = 0.5  # pixels; coordinates are rounded
# Background teaches; beyond this share labels are more likely to be missing.
MAX_EMPTY_SHARE = 0.5


class Problem(NamedTuple):
    """One kind of problem in one set or between two.

    Args:
        check: Name of the check.
        count: How often.
        what: Of what there are so many, to be read behind the count; with a count of 0 the whole line.
        items: All cases: images, pairs of images, classes, or what is wrong with images.
        advice: What to do.
        places: Examples to draw, as (set, index of an image).
        is_error: The set cannot be trained on as it is.
        num_named: Cases that the line names.
    """

    check: str
    count: int
    what: str
    items: Sequence[str]
    advice: str
    places: tuple[tuple[str, int], ...] = ()
    is_error: bool = False
    num_named: int = 1

    @property
    def level(self) -> str:
        """'error' or 'warning'."""
        return 'error' if self.is_error else 'warning'

    def __str__(self) -> str:
        count = f'{self.count} ' if self.count else ''
        such = f', such as {examples(self.items, self.num_named)}' if self.items else ''
        return f'{self.level}: {count}{self.what}{such}{f": {self.advice}" if self.advice else ""}'


def check_twice(sets: Sequence[ImageSet]) -> Iterator[Problem]:
    """Boxes of one class at one place of an image."""
    for one in sets:
        doubled: set[int] = set()
        for a, b in equal_pairs(one.owners * len(one.classes) + one.labels):
            first, second = one.boxes[a], one.boxes[b]
            shared = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
            shared = shared.clip(min=0).prod(1)
            union = (first[:, 2:] - first[:, :2]).prod(1) + (second[:, 2:] - second[:, :2]).prod(1) - shared
            doubled.update(np.maximum(a, b)[shared >= TWICE_IOU * union.clip(min=1e-9)].tolist())
        if doubled:
            yield about_boxes(
                'boxes twice', one, sorted(doubled), 'are there twice, of the same class', 'take one of each two out'
            )


def check_tiny(sets: Sequence[ImageSet], sizes: Sequence[InputSize]) -> Iterator[Problem]:
    """Boxes that are far too small once the image is resized, as the first size does; the others are told beside it."""
    for one in sets:
        shorter = one.sides.min(1)
        tiny = [np.flatnonzero(shorter * size.factors(one.sizes)[one.owners] < size.min_side) for size in sizes]
        if not len(shorter) or len(tiny[0]) <= MAX_TINY_SHARE * len(shorter):
            continue
        others = ''.join(
            f'; at {size}, below {size.min_side:g}: {len(own) / len(shorter):.0%}'
            for size, own in zip(sizes[1:], tiny[1:])
        )
        yield about_boxes(
            'tiny boxes', one, tiny[0],
            f'({len(tiny[0]) / len(shorter):.0%}) are below {sizes[0].min_side:g} pixels when resized to {sizes[0]} '
            f'and are not learned{others}',
            'use a config of a larger size, or tools/train.py --data --tile, which trains on windows of the images',
        )  # fmt: skip


def check_aspects(sets: Sequence[ImageSet]) -> Iterator[Problem]:
    """Boxes that are next to lines."""
    for one in sets:
        wild = np.flatnonzero(one.sides.max(1) > MAX_ASPECT * one.sides.min(1))
        if len(wild):
            yield about_boxes(
                'aspect ratios', one, wild, f'have one side more than {MAX_ASPECT:g} times the other',
                'look whether their corners are right',
            )  # fmt: skip


def check_borders(sets: Sequence[ImageSet]) -> Iterator[Problem]:
    """Classes nearly all of whose boxes end at the border: they were drawn at another scale, and were cut."""
    for one in sets:
        limits = one.sizes[one.owners]
        touches = ((one.boxes[:, :2] <= BORDER) | (one.boxes[:, 2:] >= limits - BORDER)).any(1)
        total = one.num_per_class
        cut = np.bincount(one.labels[touches], minlength=len(total))
        bad = np.flatnonzero((total >= MIN_BORDER_BOXES) & (cut > MAX_BORDER_SHARE * total))
        if len(bad):
            yield about_boxes(
                'boxes at the border', one, np.flatnonzero(touches & np.isin(one.labels, bad)),
                f'touch the border, nearly all of {examples([one.classes[i] for i in bad])}',
                'look whether their scale and format are right (x, y, width, height; pixels or fractions)',
            )  # fmt: skip


def check_classes(sets: Sequence[ImageSet]) -> Iterator[Problem]:
    """Classes without a box in a split."""
    for one in sets:
        missing = [one.classes[i] for i in np.flatnonzero(one.num_per_class == 0)]
        if missing:
            advice = 'add some or take the class out: ' + (
                'it is never learned' if one.name == 'train' else 'nothing is measured of it'
            )
            yield Problem(
                'missing classes', len(missing), f'of {len(one.classes)} classes have no box in {one.name}', missing,
                advice, num_named=5,
            )  # fmt: skip


def check_empty(sets: Sequence[ImageSet]) -> Iterator[Problem]:
    """Sets most of whose images have no box; where none has one, nothing can be learned or measured."""
    for one in sets:
        empty = np.flatnonzero(one.num_per_image == 0).tolist()
        if len(empty) > MAX_EMPTY_SHARE * len(one.paths):
            yield Problem(
                'images without a box', len(empty), f'of {len(one.paths)} images of {one.name} have no box',
                [one.paths[i] for i in empty], 'look whether labels are missing', place(one, empty),
                is_error=not len(one.boxes) and one.name != 'test',
            )  # fmt: skip


def check_files(sets: Sequence[ImageSet]) -> Iterator[Problem]:
    """One file that is several images of a set, or images of several sets."""
    for earlier, one, pairs in shared([one.paths for one in sets]):
        yield about_pairs('same file', sets[earlier], sets[one], pairs, 'the same file')


def shared(keys: Sequence[Sequence]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Find images with equal keys, in one set and in two.

    Args:
        keys: Of each set, of each image; falsy: equal to none.

    Yields:
        An earlier set or the same one, a set, and for each of its images that has an equal: it, and the first there.
    """
    firsts: list[dict] = []
    for k, own in enumerate(keys):
        firsts.append({})
        pairs: dict[int, list[tuple[int, int]]] = {}
        for i, key in enumerate(own):
            for j, first in enumerate(firsts if key else ()):
                if key in first:
                    pairs.setdefault(j, []).append((i, first[key]))
            firsts[k].setdefault(key, i)
        for j, found in sorted(pairs.items()):
            yield j, k, found


def check_readable(sets: Sequence[ImageSet], pixels: Mapping[str, Sequence[Pixels]]) -> Iterator[Problem]:
    """Files that are missing, damaged, or of another size."""
    for one in sets:
        bad = [found.problem for found in pixels[one.name] if found.problem]
        if bad:
            what = f'of {len(one.paths)} images of {one.name} are missing, damaged, or of another size than annotated'
            yield Problem('images', len(bad), what, bad, 'restore them or take them out', is_error=True, num_named=3)


def check_content(sets: Sequence[ImageSet], pixels: Mapping[str, Sequence[Pixels]]) -> Iterator[Problem]:
    """Different files with the same pixels."""
    for earlier, one, pairs in shared([[own.content for own in pixels[one.name]] for one in sets]):
        other = [(i, j) for i, j in pairs if sets[one].paths[i] != sets[earlier].paths[j]]
        if other:
            yield about_pairs('same image', sets[earlier], sets[one], other, 'the same, pixel by pixel,')


def check_near(sets: Sequence[ImageSet], pixels: Mapping[str, Sequence[Pixels]]) -> Iterator[Problem]:
    """Images that look the same in two sets: copies of another size or quality, or a moment apart."""
    for k, one in enumerate(sets):
        for earlier in sets[:k]:
            base: dict[bytes, int] = {}
            for i, own in enumerate(pixels[earlier.name]):
                if own.hash:
                    base.setdefault(own.hash, i)
            contents = {own.content for own in pixels[earlier.name]}  # told of as the same
            queries = [i for i, own in enumerate(pixels[one.name]) if own.hash and own.content not in contents]
            found = find_near([pixels[one.name][i].hash for i in queries], list(base))
            partners = list(base.values())
            pairs = [(queries[i], partners[j]) for i, (j, _) in sorted(found.items(), key=lambda item: item[1][1])]
            if pairs:
                yield about_pairs('nearly the same image', earlier, one, pairs, 'nearly the same')


def check_colors(sets: Sequence[ImageSet], pixels: Mapping[str, Sequence[Pixels]]) -> Iterator[Problem]:
    """Images of one colour."""
    for one in sets:
        plain = [i for i, own in enumerate(pixels[one.name]) if own.content and not own.hash]
        if plain:
            yield Problem(
                'one colour', len(plain), f'of {len(one.paths)} images of {one.name} are of one colour',
                [one.paths[i] for i in plain], 'look whether they were written right', place(one, plain),
            )  # fmt: skip


def about_boxes(check: str, one: ImageSet, boxes: Sequence[int], what: str, advice: str) -> Problem:
    """A problem of some boxes of a set."""
    images = list(dict.fromkeys(one.owners[np.asarray(boxes, int)].tolist()))
    what = f'of {len(one.boxes)} boxes of {one.name} {what}'
    return Problem(check, len(boxes), what, [one.paths[i] for i in images], advice, place(one, images))


def about_pairs(check: str, earlier: ImageSet, one: ImageSet, pairs: Sequence[tuple[int, int]], what: str) -> Problem:
    """A problem of images of a set that equal others, of an earlier set or the same."""
    items = [f'{one.paths[i]} and {earlier.paths[j]}' for i, j in pairs]
    if earlier is one:
        what, advice = f'of {len(one.paths)} images of {one.name} are {what} as another of it', 'keep one of each two'
    else:
        what = f'of {len(one.paths)} images of {one.name} are {what} as one of {earlier.name}'
        advice = f'keep them in one split, or {one.name} measures what was learned by heart'
    i, j = pairs[0]
    return Problem(check, len({i for i, _ in pairs}), what, items, advice, (*place(earlier, [j]), *place(one, [i])))


def place(one: ImageSet, images: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """Where to look for a problem of some images: at the first."""
    return tuple((one.name, i) for i in images[:1])


def equal_pairs(keys: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    """Pairs of indices whose keys are equal, each pair once.

    Args:
        keys: (N,).
    """
    order = np.argsort(keys, kind='stable')
    keys = keys[order]
    left = np.arange(len(keys))
    for distance in range(1, len(keys)):
        left = left[left < len(keys) - distance]
        left = left[keys[left] == keys[left + distance]]
        if not len(left):
            return
        yield order[left], order[left + distance]
