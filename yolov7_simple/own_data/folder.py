"""A folder of one's own data -> COCO files, one a split, that CheckedCocoDataset reads.

Nothing is written into the folder: what is converted or split goes elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..datasets.annotation_checks import AnnotationError, find_problem, read_json
from ..runtime.errors import InputError
from ..runtime.files import make_folder, write_json
from .label_formats import LABEL_FORMATS, split_of

VAL_SHARE = 0.2
SPLIT_SEED = 0
NUM_EXAMPLES = 3


class Split(NamedTuple):
    """One of train, val and test.

    Args:
        ann_file: COCO file, absolute.
        img_dir: Folder that the file's names of images start from, relative to the data's, with a slash, or empty.
        num_images: Images of the file.
        num_boxes: Boxes of the file.
    """

    ann_file: Path
    img_dir: str
    num_images: int
    num_boxes: int


class OwnData(NamedTuple):
    """Data to train on.

    Args:
        root: The folder, absolute.
        form: COCO, YOLO, VOC or labelme.
        classes: Names of the classes, in the order of the files.
        splits: ``train`` and ``val``, and ``test`` if there is one.
    """

    root: Path
    form: str
    classes: tuple[str, ...]
    splits: dict[str, Split]


def read_own_data(folder: str | Path, out_dir: Path) -> OwnData:
    """Find out what is in a folder, and make it readable as COCO files.

    Args:
        folder: Images, and annotations in the form of COCO, YOLO, VOC or labelme, anywhere in it.
        out_dir: Folder for the files that are converted or split.

    Raises:
        InputError: It cannot be used; the message names what is wrong with it.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise InputError(f'{folder}: there is no such folder')
    files = list_files(root, out_dir)
    form, remarks = 'COCO', []
    found = read_coco(root, files, remarks)
    for foreign_form, read in LABEL_FORMATS.items():
        if not found:
            form, found = foreign_form, {split: (None, part) for split, part in read(root, files).items()}
    if not found:
        raise InputError(
            f'{folder}: no annotations found among its {len(files)} files: neither a COCO file (JSON with images, '
            'annotations and categories), nor labels of YOLO (.txt), VOC (.xml) or labelme (.json) that have an image'
            + ''.join(f'; {remark}' for remark in remarks)
        )
    if 'train' not in found:
        names = ', '.join(str(path or split) for split, (path, _) in found.items())
        raise InputError(
            f'{folder}: nothing to train on: {names} found, and no word "train" in the name of a file or folder'
            + ''.join(f'; {remark}' for remark in remarks)
        )
    for split, (path, content) in found.items():
        # Without a val split some of the images are evaluated on. What has no path was converted.
        problem = find_problem(content, evaluated=split != 'train' or 'val' not in found) if path else None
        if problem:
            raise InputError(f'{path}: {problem}')
    classes = shared_classes({path or f'the {split} split': content for split, (path, content) in found.items()})
    if 'val' not in found:
        content = found.pop('train')[1]
        found |= {split: (None, part) for split, part in split_content(content, folder).items()}

    known = set(files)
    splits = {}
    for split, (path, content) in found.items():
        if not content['annotations']:
            raise InputError(f'{path or folder}: no boxes to {"train" if split == "train" else "judge"} on')
        images = [image['file_name'] for image in content['images']]
        img_dir = find_img_dir(images, known, split, str(path or folder), root)
        if path is None:
            paths = [img_dir + name for name in images]
            img_dir = os.path.commonpath([os.path.dirname(name) for name in paths])
            img_dir = f'{img_dir}/' if img_dir else ''
            for image, name in zip(content['images'], paths):
                image['file_name'] = name.removeprefix(img_dir)
            make_folder(out_dir)
            path = out_dir.resolve() / f'{split}.json'
            write_json(path, content)
        splits[split] = Split(path, img_dir, len(images), len(content['annotations']))
    return OwnData(root, form, classes, splits)


def list_files(root: Path, out_dir: Path) -> list[str]:
    """Paths of all files, relative, with slashes; without what is hidden and what training wrote."""
    out_dir = out_dir.resolve()
    files = []
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith('.') and name != 'work_dirs' and Path(parent, name).resolve() != out_dir
        )
        relative = Path(parent).relative_to(root)
        files += [(relative / name).as_posix() for name in sorted(names) if not name.startswith('.')]
    return files


def read_coco(root: Path, files: Sequence[str], remarks: list[str]) -> dict[str, tuple[Path | None, dict]]:
    """Read the COCO files, by split. A file that is alone, or all that have no split, is for training.

    Args:
        root: The folder.
        files: Its files.
        remarks: Gets a line for each JSON file that is not COCO's.
    """
    found: dict[str | None, list[tuple[Path, dict]]] = {}
    labelme_folders = set()
    for file in files:
        path = root / file
        if path.suffix.lower() != '.json' or path.parent in labelme_folders:
            continue
        try:
            content = read_json(str(path))
        except AnnotationError as error:
            remarks.append(str(error))
            continue
        if isinstance(content, dict) and 'shapes' in content:
            labelme_folders.add(path.parent)  # one file an image: no need to read them all
            continue
        lacking = [
            key
            for key in ('images', 'annotations', 'categories')
            if not isinstance(content, dict) or not isinstance(content.get(key), list)
        ]
        if lacking:
            remarks.append(f'{file} is not COCO: it has no list of {", ".join(lacking)}')
            continue
        found.setdefault(split_of(file), []).append((path, content))
    if set(found) == {None}:
        found['train'] = found[None]
    found.pop(None, None)
    for split, candidates in found.items():
        if len(candidates) > 1:
            # COCO's own folder has keypoints as well.
            candidates[:] = [one for one in candidates if one[0].name.startswith('instances')] or candidates
        if len(candidates) > 1:
            names = ', '.join(str(path.relative_to(root)) for path, _ in candidates)
            raise InputError(f'{root}: several COCO files for {split}: {names}. Move all but one elsewhere')
    return {split: candidates[0] for split, candidates in found.items()}


def shared_classes(contents: dict[Any, dict]) -> tuple[str, ...]:
    """Names of the classes, which must be the same in each of some COCO files, by name.

    Raises:
        InputError: They are not.
    """
    names = {file: tuple(category['name'] for category in content['categories']) for file, content in contents.items()}
    (first, classes), *others = names.items()
    for file, other in others:
        if other != classes:
            raise InputError(
                f'{file} has other categories than {first}, or another order of them: {other} and {classes}'
            )
    return classes


def split_content(content: dict, folder: str | Path) -> dict[str, dict]:
    """Split a COCO file into train and val, by image, the same way each time."""
    images = content['images']
    if len(images) < 2:
        raise InputError(f'{folder}: one image is too few: one to train on and one to judge on are needed')
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    val = set(order[: max(1, round(VAL_SHARE * len(images)))].tolist())
    parts = {}
    for split in ('train', 'val'):
        kept = [image for i, image in enumerate(images) if (i in val) == (split == 'val')]
        ids = {image.get('id') for image in kept}
        boxes = [annotation for annotation in content['annotations'] if annotation.get('image_id') in ids]
        parts[split] = {**content, 'images': kept, 'annotations': boxes}
    return parts


def find_img_dir(names: Sequence[str], files: Collection[str], split: str, source: str, root: Path) -> str:
    """Find the folder, relative to ``root``, that names of images start from.

    Raises:
        InputError: There is none from which all are found.
    """
    prefixes = {
        file[: -len(name)] for name in names[:NUM_EXAMPLES] for file in files if f'/{file}'.endswith(f'/{name}')
    }
    # Images of two splits may have the same names.
    prefixes = [prefix for prefix in prefixes if split_of(f'{prefix}image') in (None, split)]
    if not prefixes:
        raise InputError(f'{source}: none of its {len(names)} images is in {root}, such as {names[0]}')

    def fit(prefix: str) -> tuple:
        return sum(prefix + name in files for name in names), split_of(f'{prefix}image') == split, -len(prefix), prefix

    best = max(prefixes, key=fit)
    missing = [name for name in names if best + name not in files]
    if missing:
        raise InputError(
            f'{source}: {len(missing)} of its {len(names)} images are missing in {root / best}, such as '
            + ', '.join(missing[:NUM_EXAMPLES])
        )
    return best
