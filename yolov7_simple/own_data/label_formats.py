"""Labels of YOLO, VOC and labelme -> COCO's form. globox reads the files; here is found what belongs together."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from PIL import Image

from ..runtime.errors import InputError
from ..runtime.files import IMAGE_SUFFIXES

# What tells the split, as a word of the file's name or of the folders that it is in.
SPLIT_WORDS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
    **dict.fromkeys(('test', 'testing'), 'test'),
}
EXIF_ORIENTATION = 274
YOLO_LINE = re.compile(r'\d+(\s+[-+.\deE]+){4,}\s*')
MAX_YOLO_BOX = 6  # class, box, score; more numbers are a polygon


def split_of(file: str) -> str | None:
    """Which split the name of a file, or else those of its folders, innermost first, speak of."""
    for part in reversed(PurePosixPath(file).parts):
        for word in re.findall('[a-z]+', part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def with_suffix(files: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    """Those with one of some suffixes."""
    return [file for file in files if PurePosixPath(file).suffix.lower() in suffixes]


def pair(labels: Iterable[str], files: Sequence[str]) -> dict[str, str]:
    """Find the image of each file of labels: of the same name, in the most similar folder.

    ``labels/train/1.txt`` belongs to ``images/train/1.jpg``, not to ``images/val/1.jpg``.

    Returns:
        Labels by image; files without an image are left out.
    """
    by_stem: dict[str, list[str]] = {}
    for image in with_suffix(files, IMAGE_SUFFIXES):
        by_stem.setdefault(PurePosixPath(image).stem, []).append(image)
    pairs = {}
    for label in labels:
        folders = set(PurePosixPath(label).parent.parts)
        candidates = by_stem.get(PurePosixPath(label).stem)
        if candidates:
            pairs[max(candidates, key=lambda image: len(folders & set(PurePosixPath(image).parent.parts)))] = label
    return pairs


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF data says, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(EXIF_ORIENTATION, 1) >= 5 else (width, height)
    except OSError as error:
        raise InputError(f'{path}: not an image that can be read: {error}') from error


def to_coco(
    form: str,
    root: Path,
    pairs: dict[str, str | None],
    parse: Callable[[Any, Path, tuple[int, int]], Any],
    names: Sequence[str] | None = None,
    splits: dict[str, str] | None = None,
) -> dict[str, dict]:
    """Read labels into COCO's form.

    Args:
        form: Name of their form.
        root: The folder.
        pairs: Labels, or None where there is no box, by image.
        parse: Called with globox, path of the labels, and size of the image; returns globox's Annotation.
        names: Of the classes, where the labels are numbers; else the labels are the names.
        splits: By image; None: from the path. What has no split is for training.

    Returns:
        COCO's content by split.

    Raises:
        InputError: A file cannot be read.
    """
    try:
        import globox
    except ImportError as error:
        raise InputError(f'{root}: has labels of {form}; to convert them, pip install globox ({error})') from error
    found: dict[str, list] = {}
    for image, label in sorted(pairs.items()):
        size = image_size(root / image)
        try:
            boxes = parse(globox, root / label, size).boxes if label else []
            for box in boxes if names else ():
                if int(box.label) >= len(names):
                    raise ValueError(
                        f'class {box.label}, but the classes are 0 to {len(names) - 1}: {", ".join(names)}'
                    )
                box.label = names[int(box.label)]
        except Exception as error:  # whatever globox meets in a file
            reason = f'{type(error).__name__}: {getattr(error, "reason", error)}'
            raise InputError(f'{root / label}: cannot be read as labels of {form}: {reason}') from error
        split = splits.get(PurePosixPath(image).stem) if splits else split_of(image)
        found.setdefault(split or 'train', []).append(globox.Annotation(image, size, boxes))
    classes = names or sorted({box.label for annotations in found.values() for one in annotations for box in one.boxes})
    return {
        split: globox.AnnotationSet(annotations).to_coco(
            label_to_id={name: i for i, name in enumerate(classes)},
            imageid_to_id={one.image_id: i for i, one in enumerate(annotations)},
        )
        for split, annotations in found.items()
    }


def read_yolo(root: Path, files: Sequence[str]) -> dict[str, dict]:
    """Read YOLO's labels, of boxes or polygons, and the names in data.yaml or classes.txt; empty: there are none."""
    pairs = pair(with_suffix(files, {'.txt'}), files)
    lines = {label: (root / label).read_text(errors='replace').splitlines() for label in pairs.values()}
    pairs = {
        image: label if any(map(str.strip, lines[label])) else None
        for image, label in pairs.items()
        if all(YOLO_LINE.fullmatch(line.strip()) for line in lines[label] if line.strip())
    }
    if not any(pairs.values()):
        return {}
    # Beside images with labels, those without show background.
    folders = {PurePosixPath(image).parent for image in pairs}
    for image in with_suffix(files, IMAGE_SUFFIXES):
        if PurePosixPath(image).parent in folders:
            pairs.setdefault(image, None)

    def parse(globox: Any, path: Path, size: tuple[int, int]) -> Any:
        polygons = any(len(line.split()) > MAX_YOLO_BOX for line in path.read_text().splitlines())
        read = globox.Annotation.from_yolo_seg if polygons else globox.Annotation.from_yolo_v5
        return read(path, image_size=size, image_id=path.stem)

    return to_coco('YOLO', root, pairs, parse, names=yolo_names(root, files))


def yolo_names(root: Path, files: Sequence[str]) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    for file in with_suffix(files, {'.yaml', '.yml'}):
        try:
            content = yaml.safe_load((root / file).read_text())
        except yaml.YAMLError as error:
            raise InputError(f'{root / file}: not YAML: {error}') from error
        names = content.get('names') if isinstance(content, dict) else None
        if names:
            return [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else [str(n) for n in names]
    for file in files:
        if PurePosixPath(file).name in ('classes.txt', 'obj.names'):
            return [line.strip() for line in (root / file).read_text().splitlines() if line.strip()]
    raise InputError(
        f'{root}: has labels of YOLO, but no names of classes: neither a .yaml file with `names`, nor classes.txt'
    )


def read_voc(root: Path, files: Sequence[str]) -> dict[str, dict]:
    """Read VOC's labels, and the splits in ImageSets/Main; empty: there are none."""
    pairs = pair(with_suffix(files, {'.xml'}), files)
    pairs = {image: label for image, label in pairs.items() if b'<annotation' in (root / label).read_bytes()[:1000]}
    splits = {}
    for file in files:
        path = PurePosixPath(file)
        if path.parts[-3:-1] == ('ImageSets', 'Main') and path.stem in SPLIT_WORDS:
            for line in (root / file).read_text().splitlines():
                if line.strip():
                    splits[line.split()[0]] = SPLIT_WORDS[path.stem]
    if splits:
        pairs = {image: label for image, label in pairs.items() if PurePosixPath(image).stem in splits}
    return to_coco('VOC', root, pairs, lambda gx, path, _: gx.Annotation.from_pascal_voc(path), splits=splits)


def read_labelme(root: Path, files: Sequence[str]) -> dict[str, dict]:
    """Read labelme's rectangles, and polygons as the boxes around them; empty: there are none.

    Raises:
        InputError: Shapes of another kind, which would be lost.
    """
    pairs = pair(with_suffix(files, {'.json'}), files)
    shapes = {}
    for label in pairs.values():
        try:
            content = json.loads((root / label).read_bytes())
        except ValueError as error:
            raise InputError(f'{root / label}: not JSON: {error}') from error
        if isinstance(content, dict) and 'shapes' in content:
            if not isinstance(content['shapes'], list) or not all(isinstance(one, dict) for one in content['shapes']):
                raise InputError(f'{root / label}: `shapes` is not a list of objects, as labelme writes them')
            shapes[label] = content['shapes']
    pairs = {image: label for image, label in pairs.items() if label in shapes}
    kinds = Counter(shape.get('shape_type') for label in shapes for shape in shapes[label])
    others = {kind: count for kind, count in kinds.items() if kind not in ('rectangle', 'polygon')}
    if others:
        raise InputError(
            f'{root}: labelme shapes that are neither rectangle nor polygon: {others}. Redraw or remove them'
        )
    return to_coco('labelme', root, pairs, lambda gx, path, _: gx.Annotation.from_labelme(path, include_poly=True))


LABEL_FORMATS = {'YOLO': read_yolo, 'VOC': read_voc, 'labelme': read_labelme}
