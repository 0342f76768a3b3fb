"""Which images are for training, validation and testing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from ..runtime.errors import InputError, examples
from .files import Files, num_common_folders
from .findings import NUM_NAMED, Findings
from .labels import LabelledImage
from .names import BACKGROUND_WORDS, SPLIT_WORDS, parts_of, split_in, split_of_folders, with_suffix, words_of

VAL_SHARE = 0.2
SPLIT_SEED = 0


def read_lines(path, encoding: str = 'utf-8-sig') -> list[str]:
    """Lines of a text file that say something, without blanks at their ends.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding=encoding)
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror or error}') from error
    except UnicodeError as error:
        raise InputError(f'{path}: is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8') from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def images_of_list(files: Files, file: str, findings: Findings) -> list[str]:
    """The images that a list names, one a line: by a path, a name or a stem, perhaps with a flag of VOC behind it."""
    found, lost = [], []
    for line in read_lines(files.path(file)):
        image = files.find_image(line, file)
        if image is None and (match := re.fullmatch(r'(.+?)\s+(-1|0|1)', line)):
            if match[2] == '-1':
                continue  # of VOC's lists of one class: not in it
            image = files.find_image(match[1], file)
        (lost if image is None else found).append(image or line)
    if lost:
        findings.remark(f'{file}: {len(lost)} of its {len(lost) + len(found)} images are not there: '
                        f'{examples(lost, NUM_NAMED)}')  # fmt: skip
    return found


def splits_of_lists(files: Files, findings: Findings, labels: Iterable[str] = ()) -> dict[str, str]:
    """The splits that lists of images declare: train.txt, ImageSets/Main/Validation.txt and the like.

    Args:
        files: All files.
        findings: Told what the lists name that is not there.
        labels: Files that are known to be labels and no lists.

    Returns:
        Image -> splits, joined by commas. A list of all that is trained and validated on counts for what is in none for
        the one or other.
    """
    known = set(labels)
    # 'train' alone, not 'train labels' or 'cat_train', which VOC has for each class.
    split_by_file = {
        file: split
        for file in with_suffix(files.names, {'.txt'})
        if file not in known and (split := SPLIT_WORDS.get(re.sub('[^a-z]', '', PurePosixPath(file).stem.lower())))
    }
    # Beside ImageSets/Main VOC has lists for other tasks, with other splits.
    main = {file: split for file, split in split_by_file.items() if 'main' in map(str.lower, parts_of(file)[:-1])}
    lists: dict[str, list[str]] = {}
    for file, split in (main or split_by_file).items():
        images = images_of_list(files, file, findings)
        if images:
            lists.setdefault(split, []).extend(images)
    one = {'train', 'val'} & lists.keys()
    if one and 'trainval' in lists:
        known = {image for split in one for image in lists[split]}
        rest = [image for image in lists.pop('trainval') if image not in known]
        if len(one) == 1 and rest:
            lists['val' if 'train' in one else 'train'] = rest
    splits: dict[str, str] = {}
    for split, images in lists.items():
        for image in images:
            add_split(splits, image, split)
    return splits


def add_split(splits: dict[str, str], image: str, split: str) -> None:
    """Note that an image is for a split, perhaps for another as well: coco128's data.yaml trains on its val images."""
    known = splits.get(image, '').split(',')
    if split not in known:
        splits[image] = ','.join(filter(None, [*known, split]))


def decide_splits(
    images: Sequence[LabelledImage], declared: dict[str, str], findings: Findings, root: str
) -> dict[str, list[LabelledImage]]:
    """Put each image into its split.

    What is declared counts most, then the folders of the images, then, if every one has it, a word in their names.
    Where nothing sets images aside for validation, a random fifth of those for training is, the same each time.

    Args:
        images: All that are labelled.
        declared: Image -> split, or several joined by commas.
        findings: Told how it was decided.
        root: Of the folder, for messages.

    Returns:
        ``train`` and ``val``, and ``test`` if there is one.

    Raises:
        InputError: There is nothing to train on, or one image alone.
    """
    paths = [image.image for image in images]
    if declared:
        chosen = {path: declared.get(path) for path in paths}
        how = 'as the folder declares'
    else:
        common = num_common_folders(paths)
        chosen = {path: split_of_folders('/'.join(parts_of(path)[common:])) for path in paths}
        how = 'by the names of folders'
        if not any(chosen.values()):
            by_name = {path: split_in(PurePosixPath(path).stem) for path in paths}
            if all(by_name.values()) and {'train', 'val'} <= set(by_name.values()):
                chosen, how = by_name, 'by the names of the images'
    for image in images:
        if chosen[image.image] is None and not image.boxes and set(words_of(image.image)) & BACKGROUND_WORDS:
            chosen[image.image] = 'train'
    if not any(chosen.values()) or set(chosen.values()) == {'test'}:
        chosen, how = dict.fromkeys(paths, 'train'), 'all images are in one place'
    parts: dict[str, list[LabelledImage]] = {}
    for image in images:
        for split in (chosen[image.image] or '').split(','):
            parts.setdefault(split, []).append(image)
    findings.leave_out('images of no split', [image.image for image in parts.pop('', [])])
    several = [path for path, splits in chosen.items() if splits and ',' in splits]
    if several:
        findings.remark(
            f'{len(several)} images are in more than one split, so that what is measured on them says little: '
            f'{examples(several, NUM_NAMED)}'
        )
    parts['train'] = parts.get('train', []) + parts.pop('trainval', [])
    if not parts['train']:
        counts = Counter(filter(None, chosen.values()))
        raise InputError(f'{root}: nothing to train on: all its images are for {" and ".join(counts)} ({how})')
    if 'val' not in parts:
        parts |= split_randomly(parts['train'], root)
        findings.remark(
            f'Nothing is set aside for validation ({how}): a random fifth is, {len(parts["val"])} images of '
            f'{len(parts["val"]) + len(parts["train"])}'
        )
    else:
        findings.remark(f'Splits {how}: ' + ', '.join(f'{len(part)} {split}' for split, part in parts.items()))
    return {split: parts[split] for split in ('train', 'val', 'test') if split in parts}


def split_randomly(images: list[LabelledImage], root: str) -> dict[str, list[LabelledImage]]:
    """Set a share aside for validation.

    Raises:
        InputError: One image cannot be shared out.
    """
    if len(images) < 2:
        raise InputError(f'{root}: one image is too few: one to train on and one to evaluate on are needed')
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    val = set(order[: max(1, round(VAL_SHARE * len(images)))].tolist())
    return {
        split: [image for i, image in enumerate(images) if (i in val) == (split == 'val')] for split in ('train', 'val')
    }
