"""Boxes by image, as the readers of label formats gather them: each image once, names and corners in order."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from ...runtime.errors import InputError, examples
from ..files import Files
from ..findings import NUM_NAMED, Findings
from ..labels import Box, LabelledImage, Labels
from ..names import drop_image_suffix, normalize, split_of_folders
from ..splits import splits_of_lists
from .documents import quote
from .shapes import XYXY

ONLY_CLASS = 'object'  # where labels name none


class Collector:
    """What a reader has found so far.

    Args:
        form: Name of the label format.
        files: Of the folder.
        findings: Told what is repaired or not used.

    Attributes:
        images (dict[str, LabelledImage]): By path.
        lost (list[str]): Labels without an image.
    """

    def __init__(self, form: str, files: Files, findings: Findings) -> None:
        self.form, self.files, self.findings = form, files, findings
        self.images: dict[str, LabelledImage] = {}
        self.lost: list[str] = []
        self._splits: dict[str, str] = {}
        self._spellings: dict[str, Counter[str]] = {}  # class -> how its name was written
        self._places: dict[str, str] = {}  # class -> where it was met first

    def box(self, where: str, name: Any, corners: XYXY, crowd: bool = False) -> Box | None:
        """A box from any two opposite corners; None: it has no area, and is left out.

        Raises:
            InputError: The class has no name.
        """
        written = str(name) if isinstance(name, (str, int, float)) and not isinstance(name, bool) else ''
        clean = unicodedata.normalize('NFC', written.strip())
        if not clean:
            raise InputError(f'{where}: has no name of a class, got {quote(name)}')
        self._spellings.setdefault(clean, Counter())[written] += 1
        self._places.setdefault(clean, where)
        x1, y1, x2, y2 = corners
        if x1 == x2 or y1 == y2:
            self.leave_out('boxes', where)
            return None
        if x1 > x2 or y1 > y2:
            self.findings.repair('boxes with swapped corners', where)
        return Box(clean, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), crowd)

    def leave_out(self, kind: str, where: str) -> None:
        """Count a shape without an area, such as a point."""
        self.findings.repair(f'{kind} without an area, left out', where)

    def add(
        self,
        image: str | None,
        boxes: Iterable[Box | None],
        label: str,
        size: tuple[float, float] | None = None,
        split: str | None = None,
    ) -> None:
        """Add an image; None as the image: there is no file for this label.

        Raises:
            InputError: It has boxes from another label already.
        """
        if image is None:
            self.lost.append(label)
            return
        if image in self.images:
            raise InputError(
                f'{self.files.path(image)}: has two labels, {self.images[image].label} and {label}. Move the one that '
                'does not count elsewhere'
            )
        self.images[image] = LabelledImage(image, [box for box in boxes if box], label, size)
        if split:
            self._splits[image] = split

    def pair(self, labels: dict[str, list[str]]) -> dict[str, str | None]:
        """Find the image of each label file, by the names in it or else by its own name.

        Copies of a label often keep the name of the first image: of several labels that name one image, each has the
        one of its own name, if there is one.

        Args:
            labels: Label file -> names of its image, the surest first; may be empty.

        Raises:
            InputError: Several images fit a label equally well.
        """
        named: dict[str, str] = {}
        for label, names in labels.items():
            split = split_of_folders(label)
            found = next(filter(None, (self.files.find_image(name, label, split) for name in names)), None)
            if found:
                named[label] = found
        counts = Counter(named.values())
        pairs: dict[str, str | None] = {}
        for label in labels:
            image = named.get(label)
            stem = normalize(drop_image_suffix(PurePosixPath(label).stem))
            if image is None or normalize(drop_image_suffix(PurePosixPath(image).name)) != stem:
                own = self.own_image(label, image is not None)
                if image and own and counts[image] == 1:
                    raise InputError(
                        f'{self.files.path(label)}: names {image} as its image, but {own} has its name. Correct it, or '
                        'rename one of them'
                    )
                if image and own:
                    self.findings.repair('labels that name the image of another, given that of their own name', label)
                image = own or image
            pairs[label] = image
        return pairs

    def own_image(self, label: str, is_named: bool) -> str | None:
        """The image with the name of a label file; None: there is none, or several, and it names another itself."""
        try:
            return self.files.image_of_label(label)
        except InputError:
            if is_named:
                return None
            raise

    def labels(self, source: str, classes: Sequence[str] | None = None) -> Labels | None:
        """All of it; None: there is nothing.

        Args:
            source: File or folder of the labels.
            classes: In their declared order, if there is one.

        Raises:
            InputError: Boxes of a class that is not declared, or in fractions of the image.
        """
        if not self.images:
            if self.lost:
                self.findings.remark(
                    f'There are {len(self.lost)} labels of {self.form}, but no image of theirs: '
                    f'{examples(self.lost, NUM_NAMED)}'
                )
            return None
        self.findings.leave_out('labels without an image', self.lost)
        empty = [one.image for one in self.images.values() if not one.boxes]
        if empty:
            self.findings.remark(
                f'{len(empty)} images have a label without boxes and are taken as background: '
                f'{examples(empty, NUM_NAMED)}'
            )
        self._check_pixels()
        return Labels(self.form, list(self.images.values()), self._check_classes(classes), self._find_splits(), source)

    def _check_pixels(self) -> None:
        boxes = [(box, one.label) for one in self.images.values() for box in one.boxes]
        if boxes and all(max(map(abs, box[1:5])) <= 1 for box, _ in boxes):
            raise InputError(
                f'{boxes[0][1]}: {quote(boxes[0][0][1:5])}: all boxes of the set lie within one pixel, as if they '
                f'were fractions of the image; {self.form} has pixels'
            )

    def _check_classes(self, classes: Sequence[str] | None) -> tuple[str, ...] | None:
        for name, spellings in self._spellings.items():
            others = [spelling for spelling in spellings if spelling != name]
            if others and len(spellings) > 1:
                count = sum(spellings[spelling] for spelling in others)
                self.findings.repair('boxes with blanks around the name of their class', self._places[name], count)
        folded = Counter(map(str.casefold, self._spellings))
        twins = [name for name in self._spellings if folded[name.casefold()] > 1]
        if twins:
            self.findings.remark(f'Classes whose names differ in capitals alone are different ones: {examples(twins)}')
        if classes is None:
            return None
        clean = tuple(unicodedata.normalize('NFC', name.strip()) for name in classes)
        doubled = [name for name, count in Counter(clean).items() if count > 1]
        if doubled or not all(clean):
            raise InputError(
                f'{self.files.root}: names of classes of {self.form} must differ and not be empty, got '
                f'{examples(doubled) or list(classes)}'
            )
        for name in self._spellings:
            if name not in clean:
                raise InputError(
                    f'{self._places[name]}: class {name!r} is not one of those declared: {examples(clean) or "none"}'
                )
        return clean

    def _find_splits(self) -> dict[str, str]:
        # What declares no split is for training beside what does. One split for all says as much as none.
        splits = {
            image: self._splits.get(image) or split_of_folders(image) or 'train' for image in self.images
        } if self._splits else {}  # fmt: skip
        return splits if len(set(splits.values())) > 1 else splits_of_lists(self.files, self.findings)
