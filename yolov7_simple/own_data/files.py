"""The files of a folder: listed once, and images found by whatever name a label gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ..datasets.headers import Header
from ..runtime.errors import InputError
from ..runtime.files import make_folder
from .findings import Findings
from .names import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    LABELLED_SUFFIXES,
    drop_image_suffix,
    is_drawing,
    name_variants,
    normalize,
    parts_of,
    split_of_folders,
    with_suffix,
)

# What earlier runs of this project and of others leave, by a name in them.
RUN_MARKS = {'last_checkpoint', 'vis_data', 'own_data', 'weights', 'results.csv', 'opt.yaml'}


def num_common_folders(paths: Sequence[str]) -> int:
    """How many folders all paths begin with: they tell no image from another."""
    folders = [parts_of(path)[:-1] for path in paths]
    first, last = min(folders), max(folders)
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


class Files:
    """The files below a folder.

    Args:
        root: The folder, absolute.
        names: Paths below it, with slashes.
        made_dir: Folder for images that are made of what is in other files.

    Attributes:
        images (list[str]): The files that are images by their suffix.
        made (dict[str, Path]): Images that are not below the folder, as if they were -> where they are.
        headers (dict[str, Header]): Those that were read; :func:`~.sizes.read_headers` reads each once.
        known_json (set[str]): JSON files whose format is known, and which may be large: no other reader looks at them.
    """

    def __init__(self, root: Path, names: Sequence[str], made_dir: Path) -> None:
        self.root = root
        self.names = sorted(names)
        self.images = with_suffix(self.names, LABELLED_SUFFIXES)
        self.made: dict[str, Path] = {}
        self.headers: dict[str, Header] = {}
        self.known_json: set[str] = set()
        self._made_dir = made_dir
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        common = num_common_folders(self.images) if self.images else 0
        for image in self.images:
            if is_drawing('/'.join(parts_of(image)[common:])):
                continue  # of no label, whatever its name
            name = normalize(PurePosixPath(image).name)
            self._by_name.setdefault(name, []).append(image)
            self._by_stem.setdefault(drop_image_suffix(name), []).append(image)

    def path(self, name: str) -> Path:
        """The absolute path of a file."""
        return self.made.get(name, self.root / name)

    def make_image(self, name: str, data: bytes) -> str:
        """Write the content of an image that has no file, and return its name, which is used like any other's."""
        path = self._made_dir / name
        make_folder(path.parent)
        path.write_bytes(data)
        self.made[name] = path
        return name

    def find_image(self, name: str, label: str = '', split: str | None = None) -> str | None:
        """Find the image that a label names, wherever it lies.

        The more of the named folders agree the better; then folders called images, then the split and the folder of
        the label decide. A picture in a folder of masks or drawings is never taken.

        Args:
            name: As the label has it: a name, a path of this or another machine, or an address; with a suffix, another
                one, or none.
            label: Path of the label file, which its image is looked for near to.
            split: Of the label file, if it has one.

        Returns:
            Path of the image, or None.

        Raises:
            InputError: Several images fit equally well.
        """
        for parts in name_variants(name):
            base = normalize(parts[-1])
            candidates = self._by_name.get(base) or self._by_stem.get(base)
            candidates = candidates or self._by_stem.get(drop_image_suffix(base), [])
            folders = parts_of(label)[:-1]

            def rank(image: str, parts: tuple[str, ...] = parts, folders: tuple[str, ...] = folders) -> tuple:
                own = parts_of(image)
                own_split = split_of_folders(image)
                return (
                    num_equal(map(normalize, own[-2::-1]), map(normalize, parts[-2::-1])),
                    own[-1] == parts[-1],
                    0 if split is None or own_split is None else 1 if own_split == split else -1,
                    bool(set(map(normalize, own[:-1])) & IMAGE_FOLDERS),
                    num_equal(own[:-1], folders),
                )

            found = self._best(candidates, rank, f'{label}: {name}' if label else name)
            if found:
                return found
        return None

    def image_of_label(self, label: str) -> str | None:
        """Find the image of a label file that names none: of the same stem, where such labels usually are.

        ``labels/train/1.txt`` belongs to ``images/train/1.jpg``, not to ``images/val/1.jpg`` or ``labels/train/1.png``.

        Raises:
            InputError: Several images fit equally well.
        """
        stem = normalize(PurePosixPath(label).stem)
        candidates = self._by_name.get(stem) or self._by_stem.get(drop_image_suffix(stem), [])
        own = parts_of(label)[:-1]
        place = [part for part in map(normalize, own) if part not in LABEL_FOLDERS]

        def place_of(image: str) -> list[str]:
            return [part for part in map(normalize, parts_of(image)[:-1]) if part not in IMAGE_FOLDERS]

        def is_possible(image: str) -> bool:
            # site_a/1.txt is not the label of site_b/1.jpg, nor labels/train/1.txt that of val/1.jpg.
            a, b = set(place), set(place_of(image))
            return a <= b or b <= a

        def rank(image: str) -> tuple:
            folders = parts_of(image)[:-1]
            is_beside = folders == own and not set(map(normalize, own)) & LABEL_FOLDERS
            in_images = bool(set(map(normalize, folders)) & IMAGE_FOLDERS)
            return is_beside or place_of(image) == place, in_images, folders == own, num_equal(folders, own)

        return self._best(list(filter(is_possible, candidates)), rank, label)

    def _best(self, candidates: Sequence[str], rank, label: str) -> str | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        ranks = [rank(image) for image in candidates]
        best = [image for image, own in zip(candidates, ranks) if own == max(ranks)]
        if len(best) > 1:
            raise InputError(
                f'{self.root}: {label} fits several images: {best[0]} and {best[1]}. Keep one of them, or give them '
                'different names'
            )
        return best[0]


def num_equal(a: Iterable, b: Iterable) -> int:
    """How many items two sequences share from their beginning."""
    count = 0
    for x, y in zip(a, b):
        if x != y:
            break
        count += 1
    return count


def list_files(root: Path, out_dir: Path, findings: Findings) -> Files:
    """List a folder, without hidden files, what training wrote, and links to folders that are in it anyway."""
    out_dir = out_dir.resolve()
    names: list[str] = []
    skipped: list[str] = []

    def walk(folder: Path) -> None:
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
        present = {entry.name for entry in entries}
        if folder != root and present & RUN_MARKS and not present & {'data.yaml', 'images', 'annotations'}:
            skipped.append(f'{folder.relative_to(root).as_posix()}/')
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith('.') or entry.name == '__MACOSX':
                continue
            if entry.is_dir():
                target = path.resolve()
                if target == out_dir or (entry.is_symlink() and target.is_relative_to(root)):
                    continue  # its files are listed where they are
                if entry.name in ('work_dirs', 'own_data'):
                    skipped.append(f'{path.relative_to(root).as_posix()}/')
                else:
                    walk(path)
            elif entry.is_file():
                names.append(path.relative_to(root).as_posix())

    walk(root)
    findings.leave_out('folders of earlier runs', skipped)
    return Files(root, names, out_dir / 'images')
