"""COCO: a JSON file a split, with images, annotations and categories; used as it is, or repaired in a copy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...datasets.annotation_reading import paused_gc
from ...runtime.errors import InputError, examples
from ..files import Files, num_common_folders
from ..findings import NUM_NAMED, Findings
from ..labels import Labels
from ..names import SPLIT_WORDS, parts_of, split_of_file, with_suffix, words_of
from .coco_part import CocoPart, read_part
from .coco_records import CocoFile, open_coco


@paused_gc()
def read_coco(files: Files, findings: Findings) -> Labels | None:
    """Read COCO's files, one a split or one for all.

    Raises:
        InputError: Several are for one split, or a record cannot be right.
    """
    candidates = {file: open_coco(files, file) for file in with_suffix(files.names, {'.json'})}
    files.known_json.update(file for file, coco in candidates.items() if coco is not None)
    opened = [coco for coco in candidates.values() if coco is not None]
    others = [file for file, coco in candidates.items() if coco is None]
    reason = 'JSON files that are not COCO, which has lists of images, annotations and categories'
    if not opened:
        if others:
            findings.remark(f'{len(others)} {reason}: {examples(others, NUM_NAMED)}')
        return None
    findings.leave_out(reason, others)
    chosen = by_split(opened, files, findings)
    if not chosen.keys() & {None, 'train', 'trainval'}:
        told = ' and '.join(f'{coco.file} is for {split}' for split, coco in chosen.items())
        more = f'; {len(others)} {reason}: {examples(others, NUM_NAMED)}' if others else ''
        raise InputError(f'{files.root}: nothing to train on: by its name {told}{more}')
    parts = {split: read_part(files, coco, split, findings) for split, coco in chosen.items()}
    splits: dict[str, str] = {}
    owners: dict[str, str] = {}
    for split, part in parts.items():
        for one in part.images:
            if one.image in owners:
                raise InputError(
                    f'{files.path(one.image)}: is in {owners[one.image]} and in {part.coco.file}: an image may be in '
                    'one split only. If each split has one of this name, one of them is missing'
                )
            owners[one.image] = part.coco.file
            if split is not None:
                splits[one.image] = split
    first, *more = parts.values()
    for other in more:
        check_categories(first, other, findings)
    originals = {}
    if {'train', 'val'} <= parts.keys():
        for split, part in parts.items():
            if part.img_dir is not None and tuple(n for n in part.names if n in first.names) == first.names:
                originals[split] = (Path(part.coco.path), part.img_dir)
    images = [one for part in parts.values() for one in part.images]
    return Labels('COCO', images, first.names, splits, first.coco.file, originals=originals)


def by_split(opened: Sequence[CocoFile], files: Files, findings: Findings) -> dict[str | None, CocoFile]:
    """The file of each split, the one to train on first; None: of all images, to be split.

    Words that all files share, in their folders or names, tell no split.

    Raises:
        InputError: Several files are for one split.
    """
    found: dict[str | None, list[CocoFile]] = {}
    common = num_common_folders([coco.file for coco in opened])
    stems = [set(words_of(PurePosixPath(coco.file).stem)) for coco in opened]
    shared = set.intersection(*stems) & SPLIT_WORDS.keys() if len(opened) > 1 else set()
    for coco in opened:
        text = '/'.join(parts_of(coco.file)[common:]).lower()
        for word in shared:
            text = re.sub(rf'(?<![a-z]){word}(?![a-z])', '', text)
        found.setdefault(split_of_file(text), []).append(coco)
    if len(found) > 1 and None in found:
        rest = found.pop(None)
        if 'train' in found or 'trainval' in found:
            findings.leave_out('COCO files whose names tell no split', [coco.file for coco in rest])
        else:
            found['train'] = rest
    if {'train', 'val', 'trainval'} <= found.keys():
        findings.leave_out('COCO files of train and val together', [coco.file for coco in found.pop('trainval')])
    chosen = {}
    for split in sorted(found, key=(None, 'train', 'trainval', 'val', 'test').index):
        instances = [coco for coco in found[split] if PurePosixPath(coco.file).name.lower().startswith('instances')]
        several = instances or found[split]
        if len(several) > 1:
            what = f'the {split} split' if split else 'all images'
            names = examples([coco.file for coco in several])
            raise InputError(f'{files.root}: several COCO files are for {what}: {names}. Move all but one elsewhere')
        chosen[split] = several[0]
        rest = [coco.file for coco in found[split] if coco is not several[0]]
        findings.leave_out(f'COCO files beside {several[0].file}', rest)
    return chosen


def check_categories(first: CocoPart, other: CocoPart, findings: Findings) -> None:
    """Compare the classes of a file with those of the one that is trained on, whatever their order and ids.

    Raises:
        InputError: It has boxes of another class.
    """
    more = [name for name in other.names if name not in first.names]
    used = {box.name for one in other.images for box in one.boxes}
    unknown = [name for name in more if name in used]
    if unknown:
        raise InputError(
            f'{other.coco.path}: has boxes of {len(unknown)} classes that {first.coco.file} does not have: '
            f'{examples(unknown)}. Classes are told by their names, which must be written alike'
        )
    if more:
        findings.remark(f'{other.coco.file}: {len(more)} classes without a box are not in {first.coco.file} and '
                        f'are left out: {examples(more)}')  # fmt: skip
