"""A folder of one's own photographs and labels -> COCO files, one a split, that CheckedCocoDataset reads.

Nothing is written into the folder: what is converted, repaired or split goes elsewhere, and is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..runtime.errors import InputError
from ..runtime.files import make_folder, write_json
from .copies import allow_heic, copy_images
from .files import Files
from .findings import Findings
from .label_formats import READERS
from .labels import LabelledImage, Labels
from .sizes import Header, fit_boxes, read_headers
from .source import open_source
from .splits import decide_splits


class Split(NamedTuple):
    """One of train, val and test.

    Args:
        ann_file: COCO file, absolute.
        img_dir: Folder that the file's names of images start from, relative to the data's, with a slash, or empty.
        num_images: Images of the file.
        num_boxes: Boxes of the file.
        has_copies: Some of its images are copies, outside of the data's folder.
    """

    ann_file: Path
    img_dir: str
    num_images: int
    num_boxes: int
    has_copies: bool = False


class OwnData(NamedTuple):
    """Data to train on.

    Args:
        root: The folder, absolute.
        form: Name of the label format.
        classes: Names of the classes, in the order of their numbers.
        splits: ``train`` and ``val``, and ``test`` if there is one.
        findings: Repairs, files that are not used, and remarks.
        images: Of each split, with boxes and ``size`` upright.
    """

    root: Path
    form: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    findings: Findings
    images: dict[str, list[LabelledImage]]


def read_own_data(folder: str | Path, out_dir: Path) -> OwnData:
    """Find out what is in a folder, and make it readable as COCO files.

    Args:
        folder: Images, and labels in one of the formats of :mod:`.label_formats`, anywhere in it; or a .zip file of
            that, or the one file of labels to read.
        out_dir: Folder for the files that are converted, repaired or split.

    Raises:
        InputError: It cannot be used; the message names what is wrong with it.
    """
    findings = Findings()
    files = open_source(folder, out_dir, findings)
    allow_heic(files.images, files.root)
    labels = read_labels(files, findings)
    names = [one.image for one in labels.images]
    findings.leave_out('images without labels', sorted(set(files.images) - set(names)))
    headers = read_headers(files, names)
    images = [
        one._replace(boxes=fit_boxes(one, headers[one.image], findings), size=headers[one.image][:2])
        for one in labels.images
    ]
    # Boxes that were fitted are in no file of the user's.
    fitted = {one.image for one in labels.images if one.size != headers[one.image][:2]}
    classes = labels.classes or tuple(sorted({box.name for one in images for box in one.boxes}))
    parts = decide_splits(images, labels.splits, findings, str(folder))
    check_parts(parts, findings, str(folder))
    copies = files.made | copy_images(files, names, out_dir, findings)
    splits = {}
    for split, part in parts.items():
        path, img_dir = labels.originals.get(split, (None, ''))
        names = {one.image for one in part}
        has_copies = not names.isdisjoint(copies)
        if path is None or has_copies or not names.isdisjoint(fitted):
            make_folder(out_dir)
            path, img_dir = out_dir.resolve() / f'{split}.json', ''
            write_json(path, to_coco(part, classes, headers, copies))
        splits[split] = Split(path, img_dir, len(part), sum(len(one.boxes) for one in part), has_copies)
    return OwnData(files.root, labels.form, classes, splits, findings, parts)


def read_labels(files: Files, findings: Findings) -> Labels:
    """Read the labels in the one format that the folder has.

    Raises:
        InputError: There are none, or labels of two formats, of which none is declared.
    """
    found: list[tuple[Labels, Findings]] = []
    reasons: list[str] = []  # why a format was not found
    for read in READERS.values():
        own = Findings()
        try:
            labels = read(files, own)
        except InputError as error:
            if str(files.root) in str(error):
                raise
            raise InputError(f'{files.root}: {error}') from error
        if labels is not None:
            found.append((labels, own))
        else:
            reasons += own.remarks
    if not found:
        raise InputError(
            f'{files.root}: no labels found among its {len(files.names)} files, {len(files.images)} of them images; '
            f'read are {", ".join(READERS)}' + ''.join(f'; {text}' for text in reasons)
        )
    chosen = [one for one in found if one[0].is_declared] or found
    if len(chosen) > 1:
        names = ' and '.join(f'{labels.form} ({labels.source})' for labels, _ in chosen)
        raise InputError(f'{files.root}: has labels of {names}. Move one of them elsewhere, or name its file as --data')
    labels, own = chosen[0]
    for other, _ in found:
        if other is not labels:
            own.leave_out(f'labels of {other.form}, as {labels.source} declares {labels.form}', [other.source])
    findings.add(own)
    return labels


def check_parts(parts: dict[str, list[LabelledImage]], findings: Findings, folder: str) -> None:
    """Refuse splits that nothing can be learnt from or evaluated on.

    Raises:
        InputError: No box to train or to evaluate on.
    """
    for split in list(parts):
        counts = Counter(box.name for one in parts[split] for box in one.boxes if not box.crowd)
        if not counts and split == 'test':
            findings.remark(f'The {len(parts.pop("test"))} test images have no box: the val split is tested on')
            continue
        if not counts:
            what = 'train' if split == 'train' else 'evaluate'
            crowds = sum(box.crowd for one in parts[split] for box in one.boxes)
            why = f', all {crowds} are crowd regions' if crowds else ''
            raise InputError(f'{folder}: no boxes to {what} on in the {split} split of {len(parts[split])} images{why}')


def to_coco(
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    headers: dict[str, Header],
    copies: dict[str, Path],
) -> dict:
    """COCO's content. All ids count from 1: COCO's metric takes an annotation with id 0 for none at all."""
    ids = {name: i for i, name in enumerate(classes, 1)}
    content: dict[str, list] = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': name} for name, i in ids.items()],
    }
    for image_id, one in enumerate(images, 1):
        header = headers[one.image]
        content['images'].append(
            {
                'id': image_id,
                'file_name': str(copies.get(one.image, one.image)),
                'width': header.width,
                'height': header.height,
            }
        )
        for box in one.boxes:
            width, height = box.x2 - box.x1, box.y2 - box.y1
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': image_id,
                    'category_id': ids[box.name],
                    'bbox': [box.x1, box.y1, width, height],
                    'area': width * height,
                    'iscrowd': int(box.crowd),
                }
            )
    return content
